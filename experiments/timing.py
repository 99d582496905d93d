"""What experiments/benchmark.py measures with: problems, timing, and the literal evaluation as a yardstick.

Letters as in beacon_jax/quant/beacon.py: a layer has a kernel W (N, C), float inputs X and quantized inputs X̃.
"""

import dataclasses
import functools
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from beacon_jax import METHODS, GramStats, make_alphabet
from beacon_jax.quant.side_by_side import cores

FORMS = ("sums", "products")
SWEEPS = 6
PRODUCTS = SWEEPS + 2  # matrix products of a solve: one per sweep, two in the greedy start


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians in seconds of one case and of the reference called before it each time.

    compile_seconds is what the first call took beyond the median, output what it returned.
    """

    seconds: float
    reference_seconds: float
    compile_seconds: float
    output: Any


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    reference: Callable[[], Any] = lambda: None,
    *,
    repeats: int,
    budget: float = 60.0,
) -> dict[str, Timing]:
    """Times the cases in turn, the reference before each, so that what slows the machine meets all of them alike.

    Args:
      cases: functions by name. The first call of each is not part of its median.
      reference: what the cases are compared with.
      repeats: rounds; fewer, but at least 3 of them, once they have taken `budget` seconds.
    """
    timed(reference)
    first = {name: timed(case) for name, case in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    references: dict[str, list[float]] = {name: [] for name in cases}
    start = time.perf_counter()
    for made in range(repeats):
        if made >= 3 and time.perf_counter() - start > budget:
            break
        for name, case in cases.items():
            references[name].append(timed(reference)[0])
            seconds[name].append(timed(case)[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: Timing(medians[name], statistics.median(references[name]), max(first[name][0] - medians[name], 0), output)
        for name, (_, output) in first.items()
    }


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes until its result is there, and the result."""
    start = time.perf_counter()
    output = jax.block_until_ready(function())
    return time.perf_counter() - start, output


@functools.partial(jax.jit, static_argnames="count")
def matmuls(a: jax.Array, b: jax.Array, *, count: int) -> jax.Array:
    """a @ (a @ (… @ b)), `count` plain products in true float32, none of which can start before the one inside it."""
    for _ in range(count):
        b = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    return b


@jax.jit
def gram_matmuls(pairs: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
    """aᵀb in true float32 for every pair (a, b)."""
    return [jnp.matmul(a.T, b, precision=lax.Precision.HIGHEST) for a, b in pairs]


def random_inputs(n: int, rows: int, seed: int = 0, dtype=np.float32) -> tuple[jax.Array, jax.Array]:
    """X of correlated gaussian columns, (rows, n), and X̃ = X with 5 % of noise."""
    rng = np.random.default_rng(seed)
    # The identity plus as much noise: condition numbers like those of a network's activations.
    mix = np.eye(n, dtype=dtype) + rng.standard_normal((n, n), dtype) / dtype(np.sqrt(n))
    x = matmuls(jnp.asarray(rng.standard_normal((rows, n), dtype)), jnp.asarray(mix), count=1)
    return x, x + 0.05 * rng.standard_normal((rows, n), dtype)


def problem(n: int, c: int, seed: int = 0, dtype=np.float32) -> tuple[jax.Array, GramStats]:
    """A gaussian kernel (n, c), and statistics of 4 n rows of both streams, 2 n for wide layers."""
    kernel = np.random.default_rng(seed + 1).standard_normal((n, c), dtype)
    inputs = random_inputs(n, (2 if n >= 3072 else 4) * n, seed, dtype)
    return jnp.asarray(kernel), GramStats.zeros(n, dtype).update(*inputs)


def random_params(model, seed: int = 0) -> dict:
    """Parameters for a ViT: LayerNorm scales 1, everything else gaussian of standard deviation 0.02."""
    rng = np.random.default_rng(seed)

    def fill(path, a):
        if path[-1].key == "scale":
            return jnp.ones(a.shape, a.dtype)
        return jnp.asarray(rng.standard_normal(a.shape, np.float32) * np.float32(0.02), a.dtype)

    return jax.tree_util.tree_map_with_path(fill, model.param_shapes())


def torch_forward(model: Mapping[str, Any], images: np.ndarray) -> Callable[[], np.ndarray]:
    """The forward pass of transformers' ViT of that size, random weights; images (B, H, W, c).

    Raises:
      ImportError: without torch and transformers.
    """
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=model["image_size"],
        patch_size=model["patch_size"],
        num_channels=images.shape[-1],
        hidden_size=model["width"],
        num_hidden_layers=model["depth"],
        num_attention_heads=model["heads"],
        intermediate_size=model.get("mlp_ratio", 4) * model["width"],
        num_labels=model.get("classes", 1000),
    )
    vit = ViTForImageClassification(config).eval()
    inputs = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def forward():
        with torch.inference_mode():
            return vit(inputs).logits.numpy()

    return forward


def exponent(x, y) -> tuple[float, float]:
    """(p, f) of the least-squares fit y ≈ f · xᵖ of the logarithms."""
    p, log_f = np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)
    return float(p), float(np.exp(log_f))


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "platform": platform.platform(),
        "cpus": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "compilation_cache": jax.config.jax_compilation_cache_dir,
    }


def peak_memory() -> dict[str, int | None]:
    """Bytes at the highest so far, of the process and, where the backend tells, of the device."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = jax.devices()[0].memory_stats() or {}
    return {
        "process_bytes": resident if sys.platform == "darwin" else resident * 1024,
        "device_bytes": device.get("peak_bytes_in_use"),
    }


@dataclasses.dataclass(frozen=True)
class Dense:
    """Beacon as it is stated: for every coordinate all K candidate vectors and their cosines, vmapped over channels.

    In the N coordinates of a triangular factor H = L̃ᵀL̃ the outputs are L̃q and their targets Lw, L̃ᵀL = G. It follows
    the rules of beacon.quantize for symmetric alphabets without a level 0 (with one, its rule for ties is missing).

    Fields: columns_tilde and columns (N, N), whose row t is column t of L̃ and of L; W (C, N); first (C,), the level
    for an empty running sum; levels (K,).
    """

    columns_tilde: jax.Array
    columns: jax.Array
    W: jax.Array
    first: jax.Array
    levels: jax.Array
    form: str

    @classmethod
    def of(cls, kernel: jax.Array, stats: GramStats, alphabet: str, form: str) -> "Dense":
        """The evaluation of a layer.

        form says how a cosine's numerator is computed: "sums", elementwise and summed up, or "products", a
        matrix-vector product of all candidates.
        """
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; expected one of {', '.join(FORMS)}")
        factor = jnp.linalg.cholesky(stats.H)
        columns = solve_triangular(factor, stats.G, lower=True).T
        levels = jnp.asarray(make_alphabet(alphabet), kernel.dtype)
        nearest = METHODS["rtn"](kernel, stats, alphabet, scale="lsq").codes[0]
        return cls(factor, columns, kernel.T, levels[nearest], levels, form)

    def start(self) -> tuple[jax.Array, jax.Array]:
        """The greedy start: q (C, N) and the running sums L̃q (C, N)."""
        return _dense_start(self.columns_tilde, self.columns, self.W, self.first, self.levels, form=self.form)

    def sweep(self, q: jax.Array, s: jax.Array, count: int | None = None) -> tuple[jax.Array, jax.Array]:
        """One sweep over the first `count` coordinates, all on None: q and L̃q after it."""
        count = jnp.asarray(q.shape[1] if count is None else count)  # traced, so that all counts share one compilation
        return _dense_sweep(self.columns_tilde, self.columns, self.W, self.levels, q, s, count, form=self.form)


def _best_candidate(levels, x, y, s, form):
    candidates = s[None, :] + levels[:, None] * x[None, :]
    if form == "products":
        along = jnp.matmul(candidates, y, precision=lax.Precision.HIGHEST)
    else:
        along = (candidates * y[None, :]).sum(1)
    best = jnp.argmax(along / jnp.linalg.norm(candidates, axis=1))
    return levels[best], candidates[best]


@functools.partial(jax.jit, static_argnames="form")
def _dense_start(columns_tilde, columns, W, first, levels, *, form):
    def channel(w, first):
        def visit(t, carry):
            q, s, y = carry
            y = y + w[t] * columns[t]
            p, after = _best_candidate(levels, columns_tilde[t], y, s, form)
            p, after = jnp.where(t == 0, first, p), jnp.where(t == 0, first * columns_tilde[0], after)
            return q.at[t].set(p), after, y

        zero = jnp.zeros_like(w)
        return lax.fori_loop(0, w.size, visit, (zero, zero, zero))[:2]

    return jax.vmap(channel)(W, first)


@functools.partial(jax.jit, static_argnames="form")
def _dense_sweep(columns_tilde, columns, W, levels, q, s, count, *, form):
    targets = jnp.matmul(W, columns, precision=lax.Precision.HIGHEST)

    def channel(y, q, s):
        def visit(t, carry):
            q, s = carry
            p, s = _best_candidate(levels, columns_tilde[t], y, s - q[t] * columns_tilde[t], form)
            return q.at[t].set(p), s

        return lax.fori_loop(0, count, visit, (q, s))

    return jax.vmap(channel)(targets, q, s)
