"""From an encoded image to a model's input: decoding, resizing, cropping, pixel normalization.

Every preset is a name, recorded with each result, because the float reference depends on it: DeiT-B has 81.98 % top-1
at crop_pct 0.9 and 81.80 % at 0.875, both bicubic. Resizing is PIL's, antialiased; sizes and crop offsets are those of
torchvision's Resize and CenterCrop (and so of timm's evaluation), pixel for pixel.
"""

import dataclasses
import functools
import io

import numpy as np
from jaxtyping import Float32, Real, UInt8


@dataclasses.dataclass(frozen=True)
class Preset:
    """The short side is resized to `resize` with `filter` (a name of PIL.Image.Resampling), the centre cropped out."""

    resize: int
    filter: str
    crop: int


# The name that a result records -> what is done; None leaves images as they are.
PRESETS: dict[str, Preset | None] = {
    "none": None,
    "resize256-bilinear": Preset(256, "BILINEAR", 224),
    "crop_pct0.9-bicubic": Preset(248, "BICUBIC", 224),
    "crop_pct0.875-bicubic": Preset(256, "BICUBIC", 224),
}

# Mean and standard deviation per channel of pixels in 0 … 1, subtracted and divided by.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5,), (0.5,)),
}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded."""


# What PIL identifies but hands to other programs, or does not decode at all.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


@functools.cache
def decoded_formats() -> tuple[str, ...]:
    """The formats that PIL decodes by itself."""
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in _NOT_DECODED)


def decode(encoded: bytes, preset: Preset | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """An image file's bytes as uint8 RGB (H, W, 3), resized and cropped by `preset`.

    Grey is repeated, of more than 8 bits the upper 8 are taken (as PIL does for 16-bit colours), CMYK, YCbCr and Lab
    are converted, colours come from the palette, and alpha is dropped, as torchvision drops it. Of several frames it is
    the first. EXIF orientation is ignored, as torchvision and TensorFlow ignore it.

    Raises:
      UnreadableImageError: not an image, truncated or damaged, more pixels than PIL.Image.MAX_IMAGE_PIXELS, or numbers
        whose range is not known (floats, integers of 32 bits or with a sign).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded), formats=decoded_formats()) as file:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and file.width * file.height > most:
                raise UnreadableImageError(f"{file.width} × {file.height} pixels are more than {most}, PIL's limit")
            image = _rgb(file)
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("of no kind of image file that PIL can identify") from error
    except Exception as error:  # every format has its own for damage
        raise UnreadableImageError(str(error).split("\n")[0] or type(error).__name__) from error
    return np.asarray(image if preset is None else _resize_and_crop(image, preset))


# Formats whose pixels of these modes of PIL are known to be of 16 bits (or as many as a TIFF file says).
_SIXTEEN_BITS = {"I;16": ("PNG", "TIFF", "JPEG2000", "ICO"), "I": ("PNG", "PPM")}
_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF


def _rgb(file):
    """A PIL image file as PIL image of mode RGB."""
    from PIL import Image

    mode = "I;16" if file.mode.startswith("I;16") else file.mode
    if mode in ("I", "F", "I;16"):
        if file.format not in _SIXTEEN_BITS.get(mode, ()):
            raise UnreadableImageError(f"pixels of mode {file.mode} in a {file.format} file have no known range")
        tags = file.tag_v2 if file.format == "TIFF" else {}
        bits = tags.get(_BITS, (16,))[0]
        pixels = np.asarray(file).astype(np.uint16)
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which PIL heeds up to 8 bits
            pixels = 2**bits - 1 - pixels
        return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if file.mode in ("P", "PA", "RGBa"):
        return file.convert("RGBA").convert("RGB")  # PIL warns of the direct way where a palette has alpha
    return file.convert("RGB")


def _resize_and_crop(image, preset: Preset):
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    if short != preset.resize:
        width, height = (int(preset.resize * side / short) if side != short else preset.resize for side in image.size)
        image = image.resize((width, height), Image.Resampling[preset.filter])
    left, top = (round((side - preset.crop) / 2) for side in (width, height))
    return image.crop((left, top, left + preset.crop, top + preset.crop))


def normalize(pixels: Real[np.ndarray, "*positions c"], normalization: str) -> Float32[np.ndarray, "*positions c"]:
    """Pixels (…, c), uint8 or floats in 0 … 1, as float32 with the mean and deviation that the model was trained on."""
    mean, std = (np.asarray(values, np.float32) for values in NORMALIZATIONS[normalization])
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / 255
    return (pixels - mean) / std
