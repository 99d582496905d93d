"""Pictures made by the tests, and a look at those made by the scripts."""

import io

import numpy as np
from PIL import Image


def photo(rng, height, width, mode="RGB"):
    """A smooth picture with an edge, so that filters and offsets show."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 40) + y / rng.uniform(5, 40)) for _ in range(3)]
    pixels = (127 + 100 * np.stack(waves, -1) * (x > width / 3)[..., None]).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def assert_is_a_plot(path):
    """A picture large enough to read, with more than two colours, of which none covers nearly all or all of it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) >= 200
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 10 and 0.3 < counts.max() / counts.sum() < 0.99
