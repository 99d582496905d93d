"""What `decode` makes of every mode and depth, from files written here byte by byte, against NumPy."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beacon_jax.preprocessing import UnreadableImageError, decode, decoded_formats
from tests.pictures import encoded, photo

H, W = 5, 6


def packed(samples, bits):
    """Rows (H, …) of samples as bytes, the first in the upper bits, rows filled up to a byte; 16 and 32 big-endian."""
    rows = np.asarray(samples).reshape(len(samples), -1)
    if bits in (16, 32):
        return [row.astype(f">u{bits // 8}").tobytes() for row in rows]
    shifts = np.arange(bits - 1, -1, -1)
    return [np.packbits((row[:, None] >> shifts & 1).astype(np.uint8)).tobytes() for row in rows]


def png(samples, bits, color, *chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", W, H, bits, color, 0, 0, 0)
    data = b"".join(b"\0" + row for row in packed(samples, bits))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(samples, bits, photometric, kind=1, extra=(), order=">"):
    """An uncompressed TIFF file with one strip; `kind` 1 unsigned, 2 signed, 3 floats; `order` of bytes."""
    channels = np.asarray(samples).reshape(H, W, -1).shape[2]
    rows = (
        packed(samples, bits) if bits < 16 else [row.astype(f"{order}{'uif'[kind - 1]}{bits // 8}") for row in samples]
    )
    data = b"".join(bytes(row) for row in rows)
    data += b"\0" * (len(data) % 2)
    tags = {256: [W], 257: [H], 258: [bits] * channels, 259: [1], 262: [photometric], 273: [8], 277: [channels]}
    tags |= {278: [H], 279: [len(data)], 339: [kind] * channels} | dict(extra)
    directory, after = struct.pack(f"{order}H", len(tags)), b""
    beyond = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        value = b"".join(struct.pack(f"{order}H", v) for v in values)
        if len(value) > 4:
            value, after = struct.pack(f"{order}I", beyond + len(after)), after + value
        directory += struct.pack(f"{order}HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    start = struct.pack(f"{order}I", 8 + len(data))
    return (b"MM\0*" if order == ">" else b"II*\0") + start + data + directory + bytes(4) + after


def pnm(samples, most, magic):
    kind = ">u2" if most > 255 else "u1"
    return f"{magic}\n{W} {H}\n{most}\n".encode() + np.asarray(samples).astype(kind).tobytes()


rng = np.random.default_rng(0)
GREY = {bits: rng.integers(0, 2**bits, (H, W)) for bits in (1, 2, 4, 8, 12, 16)}
RGB = {bits: rng.integers(0, 2**bits, (H, W, 3)) for bits in (8, 16)}
ALPHA = {bits: rng.integers(0, 2**bits, (H, W, 1)) for bits in (8, 16)}
PALETTE = rng.integers(0, 256, (256, 3), dtype=np.uint8)
FOUR = rng.integers(0, 256, (H, W, 4))


def upper(samples, bits):
    """In 8 bits: fewer are spread over 0 … 255, of more the upper ones are taken."""
    samples = np.asarray(samples)
    return samples * 255 // (2**bits - 1) if bits <= 8 else samples >> (bits - 8)


def grey(samples, bits):
    return np.repeat(upper(samples, bits)[..., None], 3, -1)


def with_alpha(samples, bits):
    return np.concatenate([np.asarray(samples).reshape(H, W, -1), ALPHA[bits]], -1)


def from_cmyk(samples):
    c, k = samples[..., :3] / 255, samples[..., 3:] / 255
    return 255 * (1 - c) * (1 - k)


def from_ycbcr(samples):
    y, cb, cr = np.moveaxis(samples.astype(float), -1, 0)
    cb, cr = cb - 128, cr - 128
    return np.clip(np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1), 0, 255)


def from_lab(lab):
    """CIE Lab (L in 0 … 100) about the white of D50, to sRGB, by Bradford's adaptation to D65."""
    L, a, b = np.moveaxis(lab, -1, 0)
    f = np.stack([(L + 16) / 116 + a / 500, (L + 16) / 116, (L + 16) / 116 - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = xyz @ np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


CMYK, YCBCR = rng.integers(0, 256, (2, H, W, 4))[0], rng.integers(60, 200, (H, W, 3))
LAB = np.stack([rng.integers(30, 80, (H, W)), *rng.integers(-20, 20, (2, H, W))], -1)
LAB_BYTES = np.stack([np.round(LAB[..., 0] * 2.55), LAB[..., 1] % 256, LAB[..., 2] % 256], -1).astype(int)
PLTE = (b"PLTE", PALETTE.tobytes())

# The file, the pixels wanted, and by how much they may differ.
FILES = {
    **{f"PNG grey {bits}": (png(GREY[bits], bits, 0), grey(GREY[bits], bits), 0) for bits in (1, 2, 4, 8, 16)},
    **{f"PNG RGB {bits}": (png(RGB[bits], bits, 2), upper(RGB[bits], bits), 0) for bits in (8, 16)},
    **{f"PNG LA {b}": (png(with_alpha(GREY[b], b), b, 4), grey(GREY[b], b), 0) for b in (8, 16)},
    **{f"PNG RGBA {b}": (png(with_alpha(RGB[b], b), b, 6), upper(RGB[b], b), 0) for b in (8, 16)},
    **{f"PNG palette {b}": (png(GREY[b], b, 3, PLTE), PALETTE[GREY[b]], 0) for b in (1, 2, 4, 8)},
    "PNG palette, alpha": (png(GREY[8], 8, 3, PLTE, (b"tRNS", bytes(range(256)))), PALETTE[GREY[8]], 0),
    "PNG palette, one clear": (png(GREY[8], 8, 3, PLTE, (b"tRNS", b"\xff\0")), PALETTE[GREY[8]], 0),
    "PNG grey, one clear": (png(GREY[8], 8, 0, (b"tRNS", b"\0\7")), grey(GREY[8], 8), 0),
    "PNG RGB, one clear": (png(RGB[8], 8, 2, (b"tRNS", b"\0\7" * 3)), RGB[8], 0),
    **{f"TIFF grey {bits}": (tiff(GREY[bits], bits, 1), grey(GREY[bits], bits), 0) for bits in (1, 8, 16)},
    **{f"TIFF II grey {b}": (tiff(GREY[b], b, 1, order="<"), grey(GREY[b], b), 0) for b in (1, 2, 4, 8, 12, 16)},
    **{f"TIFF white is zero {b}": (tiff(GREY[b], b, 0, order="<"), grey(2**b - 1 - GREY[b], b), 0) for b in (1, 8, 16)},
    **{f"TIFF RGB {bits}": (tiff(RGB[bits], bits, 2), upper(RGB[bits], bits), 0) for bits in (8, 16)},
    "TIFF CMYK": (tiff(CMYK, 8, 5), from_cmyk(CMYK), 1),
    "TIFF YCbCr": (tiff(YCBCR, 8, 6, extra={530: [1, 1]}), from_ycbcr(YCBCR), 2),
    "TIFF Lab": (tiff(LAB_BYTES, 8, 8), from_lab(LAB), 4),
    "PBM": (f"P1\n{W} {H}\n".encode() + b" ".join(b"%d" % v for v in GREY[1].ravel()), grey(1 - GREY[1], 1), 0),
    "PGM 8": (pnm(GREY[8], 255, "P5"), grey(GREY[8], 8), 0),
    "PGM of 16 levels": (pnm(GREY[4], 15, "P5"), grey(GREY[4], 4), 0),
    "PGM 16": (pnm(GREY[16], 65535, "P5"), grey(GREY[16], 16), 0),
    "PPM 8": (pnm(RGB[8], 255, "P6"), RGB[8], 0),
    "PPM 16": (pnm(RGB[16], 65535, "P6"), upper(RGB[16], 16), 1),
}  # fmt: skip
FILES["PGM of 4096 levels"] = (pnm(GREY[12], 4095, "P5"), grey(GREY[12], 12), 1)


@pytest.mark.parametrize("name", FILES)
def test_pixels(name):
    file, expected, tolerance = FILES[name]
    pixels = decode(file)
    assert pixels.shape == (H, W, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("L", "GIF"), ("RGBA", "WEBP"), ("YCbCr", "JPEG")]
)
def test_lossy_files_are_near_the_picture(mode, kind):
    image = photo(np.random.default_rng(0), 40, 48)
    image = image.convert("L") if mode == "L" else image
    options = dict(quality=98) if kind != "GIF" else {}
    pixels = decode(encoded(image.convert(mode), kind, **options)).astype(float)
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            tiff(np.linspace(0, 1, H * W).reshape(H, W), 32, 1, kind=3),
            "pixels of mode F in a TIFF file have no known range",
        ),
        (
            tiff(np.arange(H * W).reshape(H, W) - 9, 32, 1, kind=2),
            "pixels of mode I in a TIFF file have no known range",
        ),
        (
            tiff(np.arange(H * W).reshape(H, W) - 9, 16, 1, kind=2),
            "pixels of mode I in a TIFF file have no known range",
        ),
        (f"Pf\n{W} {H}\n-1.0\n".encode() + np.ones((H, W), "<f4").tobytes(), "pixels of mode F in a PPM file"),
    ],
    ids=["floats", "32 bits", "signed", "PFM"],
)
def test_numbers_without_a_range_are_refused_by_name(file, message):
    with pytest.raises(UnreadableImageError, match=message):
        decode(file)


def test_files_that_other_programs_would_decode_are_not_handed_to_them():
    assert "JPEG" in decoded_formats() and "EPS" not in decoded_formats()
    with pytest.raises(UnreadableImageError, match="of no kind of image file that PIL can identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def test_only_the_first_frame_is_read():
    frames = [Image.new("RGB", (W, H), color) for color in ((255, 0, 0), (0, 0, 255))]
    np.testing.assert_array_equal(
        decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0], [255, 0, 0]
    )


@pytest.mark.parametrize("factor", [1.5, 3])  # at which PIL itself warns, and raises
def test_images_that_unpack_to_too_many_pixels(monkeypatch, factor):
    file = encoded(Image.new("1", (3000, 1000)))
    assert len(file) < 3000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(3e6 / factor))
    with pytest.raises(UnreadableImageError, match=r"3000 × 1000 pixels are more|3000000 pixels"):
        decode(file)


def test_the_limit_is_pils_own(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(encoded(Image.new("1", (3000, 1000)))).shape == (1000, 3000, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA"])
def test_damaged_files_are_decoded_or_refused_in_one_sentence(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"PIL was built without {kind}")
    rng = np.random.default_rng(0)
    good = encoded(photo(rng, 20, 24), kind)
    for i in range(40):
        file = np.frombuffer(good, np.uint8).copy()
        file[rng.integers(min(len(good), 200), size=3)] = rng.integers(256)
        try:
            decode(file[: rng.integers(len(good)) if i % 3 == 0 else None].tobytes())
        except UnreadableImageError as error:
            assert str(error) and "\n" not in str(error)
