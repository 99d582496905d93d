"""What the annotations call an array, where NumPy's will do as well as JAX's (traced ones among them)."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
