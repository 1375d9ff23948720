"""Pictures as people bring them: what a viewer shows is what is read, and nothing else decides."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from magihuman_core.errors import InputError
from magihuman_core.media.image import load_image, to_rgb

SKIN = (224, 172, 140)
# Primaries of Display P3 with sRGB's curve, as phones write them.
P3_FROM_XYZ = np.array([[2.4934969, -0.9313836, -0.4027108], [-0.8294890, 1.7626641, 0.0236247],
                        [0.0358458, -0.0761724, 0.9568845]])
SRGB_TO_XYZ = np.array([[0.4123908, 0.3575843, 0.1804808], [0.2126390, 0.7151687, 0.0721923],
                        [0.0193308, 0.1191948, 0.9505322]])


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes | None = None) -> bytes:
    """A PNG in one color, with these chunks before its pixels."""
    rows = (b"\0" + bytes(SKIN) * width) * height if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def p3_profile() -> bytes:
    """Display P3, built of the sRGB profile with other primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # Adapted to D50, as profiles hold them: Apple's published values.
    columns = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
               b"bXYZ": (0.1571, 0.06657, 0.78407)}
    count = struct.unpack(">I", profile[128:132])[0]
    for index in range(count):
        entry = 132 + 12 * index
        tag, offset = bytes(profile[entry : entry + 4]), struct.unpack(">I", profile[entry + 4 : entry + 8])[0]
        if tag in columns:
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *(round(v * 65536) for v in columns[tag]))
        if tag == b"desc":
            length = struct.unpack(">I", profile[entry + 8 : entry + 12])[0]
            text = bytes(profile[offset : offset + length])
            profile[offset : offset + length] = text.replace("sRGB".encode("utf-16-be"), "Prim".encode("utf-16-be"))
    return bytes(profile)


def in_p3(color: tuple[int, int, int]) -> tuple[int, ...]:
    """The numbers that stand for a color of sRGB in Display P3."""
    value = np.array(color) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = P3_FROM_XYZ @ SRGB_TO_XYZ @ linear
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(int(v) for v in np.round(value * 255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_wide_gamut_is_brought_to_srgb(tmp_path, mode, form):
    assert in_p3(SKIN) != SKIN
    if (form == "JPEG" and mode != "RGB") or (form == "WEBP" and mode == "P"):
        pytest.skip("the format has no such images")
    image = Image.new("RGB", (16, 16), in_p3(SKIN))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    extra = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    image.save(tmp_path / "a", form, icc_profile=p3_profile(), **extra)
    assert np.abs(np.array(load_image(tmp_path / "a").getpixel((4, 4))) - SKIN).max() <= 2


def test_an_srgb_profile_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels)


def test_a_profile_that_is_none_is_left_out(tmp_path, caplog):
    Image.new("RGB", (8, 8), SKIN).save(tmp_path / "a.png", icc_profile=b"not a profile")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == SKIN
    assert "color profile cannot be used" in caplog.text


def exif(tag: int, text: bytes) -> bytes:
    """An EXIF block in which a number is a text."""
    return (b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", tag, 2, len(text), 26) + struct.pack("<I", 0)
            + text)


@pytest.mark.parametrize("damaged", [
    chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 << 20))),
    chunk(b"zTXt", b"c\0\0" + zlib.compress(b"a" * (3 << 20))),
    chunk(b"eXIf", exif(0x11A, b"three hundred dots\0")), chunk(b"eXIf", exif(0x112, b"upright, please\0")),
    chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), chunk(b"tEXt", b"no separator"), chunk(b"gAMA", b"\0"),
    chunk(b"pHYs", b"\0\1"), chunk(b"iTXt", b"a\0\1\0\0\0" + b"not zlib")],
    ids=["a large profile", "a large text", "resolution", "orientation", "no EXIF", "text", "gamma", "dots", "utf-8"])
def test_metadata_never_decides(tmp_path, damaged):
    (tmp_path / "a.png").write_bytes(png(16, 16, damaged))
    assert load_image(tmp_path / "a.png").getpixel((3, 3)) == SKIN


@pytest.mark.parametrize("tag", [0x112, 0x11A, 0x11B, 0x128, 0x8769, 0x8825])
@pytest.mark.parametrize("keep_jfif", [True, False])
def test_metadata_of_a_photograph_never_decides(tmp_path, tag, keep_jfif):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), SKIN).save(buffer, "JPEG", quality=100, subsampling=0)
    data, block = buffer.getvalue()[2:], b"Exif\0\0" + exif(tag, b"of no kind that is known\0")
    if not keep_jfif:
        data = data[2 + struct.unpack(">H", data[2:4])[0] :]
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data)
    assert np.abs(np.array(load_image(tmp_path / "a.jpg").getpixel((3, 3))) - SKIN).max() <= 2


@pytest.mark.parametrize("cut", [60, 100, 130])
def test_damaged_pixels_are_refused(tmp_path, cut):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:cut])
    with pytest.raises(InputError, match=r"a\.png: (cannot be decoded|is not an image)"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(("dtype", "value", "gray"), [
    (np.float32, 0.5, 127), (np.float32, 1.0, 255), (np.int32, 200, 200), (np.int32, 32896, 128),
    (np.int32, 128 << 24 >> 1, 128), (np.uint16, 65535, 255)])
def test_other_depths_keep_their_brightness(tmp_path, dtype, value, gray):
    pixels = np.full((8, 8), value, dtype)
    if value == 128 << 24 >> 1:
        pixels[0, 0] = 2**31 - 1
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert abs(load_image(tmp_path / "a.tif").getpixel((5, 5))[0] - gray) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 37.0])
def test_floating_numbers_of_an_unknown_range_are_refused(tmp_path, value):
    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[1, 1] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif: holds values from .*8 bits"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("width", "height"), [(1, 178_000_000), (1, 60_000_000), (9000, 9000), (2, 1001), (65500, 20)])
def test_a_small_file_with_a_large_picture_costs_nothing(tmp_path, width, height):
    import resource

    (tmp_path / "a.png").write_bytes(png(width, height, pixels=bytes(100)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=rf"a\.png: is {width}x{height} pixels"):
        load_image(tmp_path / "a.png")
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale < 50_000_000


def test_a_huge_photograph_is_read_smaller(tmp_path):
    Image.new("RGB", (9000, 8000), SKIN).save(tmp_path / "a.jpg", quality=30)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (4500, 4000)
    assert np.abs(np.array(image.getpixel((9, 9))) - SKIN).max() <= 4


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in (SKIN, (0, 0, 0))]
    for form in ("GIF", "PNG", "WEBP"):
        frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:])
        assert np.abs(np.array(load_image(tmp_path / "a").getpixel((3, 3))) - SKIN).max() <= 4


def test_a_heic_photograph_is_named(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(InputError, match=r"a\.heic: is a HEIC photograph.*JPEG"):
        load_image(tmp_path / "a.heic")


def test_an_image_in_memory_is_bounded_too():
    with pytest.raises(InputError, match="too narrow"):
        to_rgb(Image.new("RGB", (1, 501)))
