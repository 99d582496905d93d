import numpy as np
import pytest
from PIL import Image

from beacon_jax.preprocessing import NORMALIZATIONS, PRESETS, UnreadableImageError, decode, normalize
from tests.pictures import encoded, photo


def by_hand(image, size, resample, crop):
    """The preset written out once more, for the shape at hand."""
    width, height = image.size
    if width <= height:
        image = image.resize((size, int(size * height / width)), resample)
    else:
        image = image.resize((int(size * width / height), size), resample)
    left, top = round((image.width - crop) / 2.0), round((image.height - crop) / 2.0)
    return np.asarray(image)[top : top + crop, left : left + crop]


@pytest.mark.parametrize(
    ("name", "size", "resample"),
    [
        ("resize256-bilinear", 256, Image.BILINEAR),
        ("crop_pct0.9-bicubic", 248, Image.BICUBIC),
        ("crop_pct0.875-bicubic", 256, Image.BICUBIC),
    ],
)
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (100, 130), (256, 301), (248, 248)])
def test_presets_equal_pil_pixel_by_pixel(rng, name, size, resample, shape):
    image = photo(rng, *shape)
    np.testing.assert_array_equal(decode(encoded(image), PRESETS[name]), by_hand(image, size, resample, 224))


@pytest.mark.parametrize(("name", "crop_pct", "interpolation"), [
    ("resize256-bilinear", 0.875, "bilinear"),
    ("crop_pct0.9-bicubic", 0.9, "bicubic"),
    ("crop_pct0.875-bicubic", 0.875, "bicubic"),
])  # fmt: skip
def test_presets_equal_timm_and_torchvision(rng, name, crop_pct, interpolation, torchvision_operators):
    pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    transform = timm.data.create_transform(224, interpolation=interpolation, crop_pct=crop_pct)
    for shape in ((375, 500), (500, 333), (231, 230)):
        image = photo(rng, *shape)
        ours = normalize(decode(encoded(image), PRESETS[name]), "imagenet")
        np.testing.assert_allclose(ours, transform(image).numpy().transpose(1, 2, 0), rtol=1e-6, atol=1e-6)


def test_without_a_preset_pixels_stay(rng):
    image = photo(rng, 31, 17)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(image))


def test_exif_orientation_is_ignored(rng):
    image = photo(rng, 40, 30)
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode(encoded(image, "JPEG", exif=exif.tobytes())).shape == (40, 30, 3)


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5])
def test_damaged_files(rng, keep):
    file = encoded(photo(rng, 200, 300), "JPEG")
    with pytest.raises(UnreadableImageError, match=r"image file|identify|Truncated"):
        decode(file[: int(keep * len(file)) if keep < 1 else keep])


def test_normalization():
    pixels = np.arange(0, 256, 15, dtype=np.uint8).repeat(3).reshape(-1, 3)
    out = normalize(pixels, "imagenet")
    assert out.dtype == np.float32
    mean, std = NORMALIZATIONS["imagenet"]
    np.testing.assert_allclose(out, (pixels / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(normalize(np.float32([[0], [0.5], [1]]), "half"), [[-1], [0], [1]])
