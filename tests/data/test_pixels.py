"""Every kind of file to 8-bit RGB, or to a reason that says what it is."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.data.decode import decode
from pipeline.data.pixel_options import AS_THEY_ARE, PixelOptions, parse_pixel_options
from pipeline.data.pixels import Picture, read_picture
from pipeline.data.raw_values import Unreadable
from pipeline.errors import DataError, how_to_install
from tests.helpers.images import encoded
from tests.helpers.pictures import quadrants, saved, stored, tiff

RANGE = PixelOptions(range=(0, 3000))
RAMP = np.linspace(0, 3000, 32).astype(np.uint16)[None].repeat(8, 0)  # gray
SHOWN = np.rint(RAMP / 3000 * 255).astype(np.uint8)


def pixels(data: bytes, options: PixelOptions = AS_THEY_ARE) -> np.ndarray:
    """What is shown; where the bytes are kept, the decoder of training has to show the same."""
    picture = read_picture(data, options)
    assert picture.image.mode == "RGB"
    shown = np.asarray(picture.image)
    if picture.as_stored and picture.image.width == picture.image.height:
        trained = decode(data, picture.image.width).permute(1, 2, 0).numpy()
        assert np.abs(trained.astype(int) - shown).max() <= 2
    return shown


def reason(data: bytes, options: PixelOptions = AS_THEY_ARE) -> str:
    with pytest.raises(Unreadable) as caught:
        read_picture(data, options)
    return str(caught.value)


# --- orientation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_every_format_is_shown_upright(kind: str, options: dict[str, Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(stored(quadrants(), orientation)), kind, exif=exif, **options)
    assert np.abs(pixels(data).astype(int) - quadrants()).max() <= 5
    assert read_picture(data, AS_THEY_ARE).as_stored == (orientation == 1 and kind != "AVIF")


def test_values_are_turned_too() -> None:
    values = stored(quadrants().astype(np.uint16) * 10, 6)
    data = tiff(values, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(pixels(data, PixelOptions(range=(0, 2550))), quadrants())
    np.testing.assert_array_equal(pixels(data, PixelOptions(range=(0, 2550), bands=(1, 2, 3))), quadrants())


@pytest.mark.parametrize("value", [b"Exif\0\0II*\0\x08\0\0\0\xff", b"Exif\0\0", b"junk"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_ignored_as_by_viewers(value: bytes) -> None:
    assert pixels(saved(Image.fromarray(quadrants()), "JPEG", exif=value)).shape == (16, 24, 3)


def test_heic_is_read_where_its_plugin_is_and_named_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    data = saved(Image.new("RGB", (64, 64), (200, 30, 30)), "HEIF", quality=100)
    assert np.abs(pixels(data).astype(int) - (200, 30, 30)).max() <= 3
    original = builtins.__import__

    def without_plugin(name: str, *arguments: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_plugin)
    assert reason(data) == f"HEIC, which needs pillow-heif; {how_to_install('formats')}"


# --- more than 8 bits ----------------------------------------------------------------------------------------

OPAQUE = np.full_like(RAMP, 65535)
DEEP = {
    "PNG of 1 band, uint16": imagecodecs.png_encode(RAMP),
    "PNG of 1 band and alpha, uint16": imagecodecs.png_encode(np.dstack([RAMP, OPAQUE])),
    "PNG of 3 bands, uint16": imagecodecs.png_encode(np.dstack([RAMP] * 3)),
    "PNG of 3 bands and alpha, uint16": imagecodecs.png_encode(np.dstack([RAMP] * 3 + [OPAQUE])),
    "TIFF of 1 band, uint16": tiff(RAMP),
    "TIFF of 3 bands, uint16": tiff(np.dstack([RAMP] * 3), photometric="rgb", compression="zstd"),
    "TIFF of 3 bands and alpha, uint16": tiff(
        np.dstack([RAMP] * 3 + [OPAQUE]), photometric="rgb", extrasamples=["unassalpha"]
    ),
    "TIFF of 1 band, int16": tiff(RAMP.astype(np.int16), byteorder=">"),
    "TIFF of 1 band, uint32": tiff(RAMP.astype(np.uint32)),
    "TIFF of 1 band, float16": tiff(RAMP.astype(np.float16)),
    "TIFF of 3 bands, float32": tiff(np.dstack([RAMP] * 3).astype(np.float32), photometric="rgb"),
    "TIFF of 1 band, float64": tiff(RAMP.astype(np.float64), tile=(16, 16)),
    "JPEG 2000 of 1 band, uint16": imagecodecs.jpeg2k_encode(RAMP, level=0, reversible=True),
    "JPEG 2000 of 3 bands, uint16": imagecodecs.jpeg2k_encode(np.dstack([RAMP] * 3), level=0, reversible=True),
    "JPEG XL of 1 band, uint16": imagecodecs.jpegxl_encode(RAMP, lossless=True),
    "JPEG XL of 3 bands, uint16": imagecodecs.jpegxl_encode(np.dstack([RAMP] * 3), lossless=True),
}


@pytest.mark.parametrize("what", DEEP)
def test_more_than_8_bits_need_a_range_and_then_use_all_of_it(what: str) -> None:
    assert reason(DEEP[what]) == f"{what}; give --range"
    shown = pixels(DEEP[what], RANGE)
    np.testing.assert_allclose(shown.astype(int), np.dstack([SHOWN] * 3), atol=1 if "float16" in what else 0)
    assert not read_picture(DEEP[what], RANGE).as_stored


def test_a_range_clips_and_may_be_negative() -> None:
    shown = pixels(tiff(RAMP.astype(np.int16) - 1500), PixelOptions(range=(-500, 500)))
    assert (shown[0, 0, 0], shown[0, -1, 0]) == (0, 255)
    assert pixels(tiff(np.full((4, 4), -128, np.int8)), PixelOptions(range=(-128, 127))).max() == 0


def test_white_is_zero_is_shown_as_viewers_do() -> None:
    data = tiff((3000 - RAMP).astype(np.uint16), photometric="miniswhite")
    np.testing.assert_allclose(pixels(data, RANGE)[..., 0].astype(int), SHOWN, atol=1)
    np.testing.assert_array_equal(pixels(tiff(255 - SHOWN, photometric="miniswhite"))[..., 0], SHOWN)


def test_percentiles_have_to_be_measured_first() -> None:
    with pytest.raises(
        ValueError, match=r"--range percentile .* has not been measured; take the options from the manifest"
    ):
        read_picture(tiff(RAMP), PixelOptions(range="percentile"))


def test_a_range_leaves_8_bits_alone() -> None:
    data = saved(Image.fromarray(quadrants()), "PNG")
    np.testing.assert_array_equal(pixels(data, RANGE), quadrants())
    assert read_picture(data, RANGE).as_stored


def test_fewer_than_8_bits_are_stretched_as_by_viewers() -> None:
    image = Image.fromarray(quadrants()).convert("1")
    for data in (saved(image, "PNG"), saved(image, "TIFF", compression="group4")):
        assert set(np.unique(pixels(data))) == {0, 255}


@pytest.mark.parametrize("header", [b"P5 2 1 65535\n", b"P6 2 1 4095\n", b"P5\n# c 1\n2 1\n# d\n1023\n"])
def test_deep_pnm_is_not_cut(header: bytes) -> None:
    assert reason(header + bytes(12)) == "PNM of more than 8 bits; convert it to TIFF or PNG and give --range"


# --- bands ---------------------------------------------------------------------------------------------------

FOUR = np.dstack([quadrants(), np.full((16, 24), 40, np.uint8)])
THIRTEEN = np.dstack([FOUR] * 4)[..., :13]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(FOUR, photometric="rgb", extrasamples=["unspecified"]), "TIFF of 4 bands, uint8; give --bands"),
        (tiff(FOUR[..., :2], photometric="minisblack", planarconfig="contig"), "TIFF of 2 bands, uint8; give --bands"),
        (tiff(FOUR, photometric="minisblack", planarconfig="contig"), "TIFF of 4 bands, uint8; give --bands"),
        (
            tiff(THIRTEEN.astype(np.uint16), photometric="minisblack", planarconfig="contig"),
            "TIFF of 13 bands, uint16; give --bands and --range",
        ),
        (
            tiff(THIRTEEN.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
            "TIFF of 13 bands, uint8; give --bands",
        ),
        (tiff(THIRTEEN.transpose(2, 0, 1), photometric="minisblack"), "TIFF of 13 pages, uint8; give --bands"),
    ],
    ids=["rgb+nir", "two", "four", "thirteen", "planar", "pages"],
)
def test_bands_without_a_meaning_need_to_be_chosen(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    if "2 bands" not in expected:
        chosen = PixelOptions(bands=(3, 2, 1), range=(0, 255))
        np.testing.assert_array_equal(pixels(data, chosen), quadrants()[..., ::-1])
    asked = PixelOptions(bands=(1, 2, 14), range=(0, 255))
    assert reason(data, asked) == f"{expected.partition(';')[0]}; --bands 1,2,14 asks for band 14"
    gray = pixels(data, PixelOptions(bands=(2,), range=(0, 255)))
    np.testing.assert_array_equal(gray, quadrants()[..., [1, 1, 1]])


def test_three_bands_are_red_green_and_blue() -> None:
    np.testing.assert_array_equal(
        pixels(tiff(quadrants(), photometric="minisblack", planarconfig="contig")), quadrants()
    )


def test_infrared_marked_as_alpha_is_an_alpha_until_bands_are_given() -> None:
    data = tiff(FOUR, photometric="rgb", extrasamples=["unassalpha"])
    assert pixels(data)[0, 0].tolist() == [255, 215, 215]
    np.testing.assert_array_equal(pixels(data, PixelOptions(bands=(1, 2, 3))), quadrants())
    np.testing.assert_array_equal(pixels(data, PixelOptions(bands=(4,))), np.full((16, 24, 3), 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_bands_are_counted_in_every_format(kind: str) -> None:
    data = saved(Image.fromarray(quadrants()), kind, quality=100)
    shown = pixels(data, PixelOptions(bands=(3, 2, 1)))
    assert np.abs(shown[2:6, 2:8].astype(int) - (0, 0, 255)).max() <= 8
    assert " of 3 bands, uint8; --bands 4,3,2 asks for band 4" in reason(data, PixelOptions(bands=(4, 3, 2)))


def test_several_pictures_are_not_cut_to_the_first() -> None:
    image, *others = (Image.fromarray(np.roll(quadrants(), turn, axis=1)) for turn in (0, 3, 6))
    pages = saved(image, "TIFF", save_all=True, append_images=others)
    assert reason(pages) == "TIFF of 3 pages, the first of 3 bands, uint8; save each as a file"
    assert reason(pages, PixelOptions(bands=(1, 2, 3))) == reason(pages)
    for kind, name in (("GIF", "GIF"), ("PNG", "PNG"), ("WEBP", "WebP")):
        moving = saved(image, kind, save_all=True, append_images=others)
        assert reason(moving) == f"{name} of 3 frames; save each as a file"


def test_what_viewers_leave_out_is_left_out() -> None:
    """The extras of a phone's JPEG (depth, a gain map), and the overviews of a GeoTIFF."""
    image = Image.fromarray(quadrants())
    phone = saved(image, "MPO", save_all=True, append_images=[image.resize((6, 4))], quality=95, subsampling=0)
    assert np.abs(pixels(phone).astype(int) - quadrants()).max() <= 5
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(quadrants(), photometric="rgb")
        file.write(quadrants()[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(pixels(buffer.getvalue()), quadrants())


def test_a_raw_photo_is_not_its_thumbnail() -> None:
    assert "raw photos" in reason(tiff(quadrants(), photometric="rgb", subfiletype=1))


def test_pixels_without_a_value_show_the_background() -> None:
    values = RAMP.astype(np.float32)
    values[0, :] = np.nan
    values[1, :] = np.inf
    shown = pixels(tiff(values), RANGE.model_copy(update={"background": "#102030"}))
    assert (shown[0] == (16, 32, 48)).all()
    assert (shown[1] == 255).all()
    values[0, :] = -9999
    marked = tiff(values, extratags=[(42113, "s", 0, "-9999", True)])
    assert (pixels(marked, RANGE)[0] == 255).all()
    assert (pixels(tiff(values), RANGE)[0] == 0).all()


def test_complex_values_have_no_range() -> None:
    assert reason(tiff(RAMP.astype(np.complex64)), RANGE) == (
        "TIFF of 1 band, complex64; complex numbers have no range; save their magnitude"
    )


# --- transparency --------------------------------------------------------------------------------------------


def shapes() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:16, :16]
    return {"disc": (x - 8) ** 2 + (y - 8) ** 2 < 25, "bar": abs(x - 8) < 2, "corner": (x < 8) & (y < 8), "no": x < 0}


def glyphs(shape: np.ndarray) -> dict[str, bytes]:
    """A black shape on nothing, in every encoding."""
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., 3] = shape * 255
    image, index = Image.fromarray(rgba), Image.fromarray(shape.astype(np.uint8))
    index = index.convert("P")
    index.putpalette([9, 9, 9, 0, 0, 0])
    return {
        "png": saved(image, "PNG"),
        "webp": saved(image, "WEBP", lossless=True),
        "tiff": saved(image, "TIFF"),
        "gray png": saved(Image.fromarray(rgba[..., [0, 3]]), "PNG"),
        "gray tiff": saved(Image.fromarray(rgba[..., [0, 3]]), "TIFF"),
        "palette": saved(index, "PNG", transparency=0),
        "gif": saved(index, "GIF", transparency=0),
        "colour key": saved(index.convert("RGB"), "PNG", transparency=(9, 9, 9)),
        "premultiplied": tiff(rgba, photometric="rgb", extrasamples=["assocalpha"]),
        "16 bits": imagecodecs.png_encode(rgba.astype(np.uint16) * 257),
        "jpeg xl": imagecodecs.jpegxl_encode(rgba, lossless=True),
    }


@pytest.mark.parametrize("background", ["white", "#0080ff"])
def test_a_shape_in_the_alpha_is_the_same_picture_in_every_encoding(background: str) -> None:
    options = PixelOptions(background=background, range=(0, 65535))
    seen = set()
    for shape in shapes().values():
        expected = np.where(shape[..., None], 0, options.background_rgb).astype(np.uint8)
        for encoding, data in glyphs(shape).items():
            np.testing.assert_array_equal(pixels(data, options), expected, err_msg=encoding)
        seen.add(expected.tobytes())
    assert len(seen) == 4


def test_half_transparent_pixels_are_mixed_alike_at_8_and_16_bits() -> None:
    rgba = np.full((4, 4, 4), (200, 100, 0, 51), np.uint8)
    eight, sixteen = saved(Image.fromarray(rgba), "PNG"), imagecodecs.png_encode(rgba.astype(np.uint16) * 257)
    premultiplied = tiff(
        (rgba * [0.2, 0.2, 0.2, 1] * 257).astype(np.uint16), photometric="rgb", extrasamples=["assocalpha"]
    )
    full = PixelOptions(range=(0, 65535))
    for data in (eight, sixteen, premultiplied):
        assert np.abs(pixels(data, full)[0, 0].astype(int) - (244, 224, 204)).max() <= 1


def test_an_alpha_that_hides_nothing_keeps_the_bytes() -> None:
    image = Image.fromarray(quadrants()).convert("RGBA")
    for kind in ("PNG", "WEBP", "TIFF"):
        picture = read_picture(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})), AS_THEY_ARE)
        assert picture.as_stored
        np.testing.assert_array_equal(np.asarray(picture.image), quadrants())


# --- other formats and damage --------------------------------------------------------------------------------


HEIGHT = b"\1\1\4\0\1\0\0\0"  # the tag of the height: one number of four bytes
HUGE = tiff(np.zeros((1, 1), np.uint16)).replace(HEIGHT + b"\1\0\0\0", HEIGHT + b"\0\0\0\x40")


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "JPEG2000"])
def test_other_still_formats_are_read_and_rewritten(kind: str) -> None:
    picture = read_picture(saved(Image.fromarray(quadrants()), kind), AS_THEY_ARE)
    assert picture == Picture(picture.image, as_stored=False)
    assert np.abs(np.asarray(picture.image).astype(int) - quadrants()).max() <= 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty file; fetch it again"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page, perhaps the error page of a download; fetch the file again"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, which is not supported; convert it to PNG"),
        (
            bytes(128) + b"DICM",
            "DICOM, which is not supported; convert it to PNG, or to TIFF if it has more than 8 bits",
        ),
        (b"\x93NUMPY\x01\0", "NumPy array; save it as TIFF"),
        (encoded(kind="JPEG")[:30], "JPEG, damaged: Truncated"),
        (encoded(kind="JPEG").replace(b"\xff\xc0", b"\xff\x01"), "JPEG, damaged: its header cannot be read"),
        (encoded(kind="TIFF")[:9], "TIFF, damaged: "),
        (b"II*\0" + bytes(8), "TIFF, damaged: its directory cannot be read"),
        (encoded(kind="PNG")[:-30], "PNG, damaged: "),
        (saved(Image.new("LAB", (4, 4)), "TIFF"), "TIFF with colours of type CIELAB, uint8; convert it to RGB"),
        (encoded(size=(20_000, 10_000), mode="1"), "PNG that may be a decompression bomb"),
        (encoded(size=(12_000, 10_000), mode="1"), "PNG of 12000 x 10000 pixels, more than the 89478485 that are safe"),
        (HUGE, "TIFF of 1 x 1073741824 pixels, more than the 89478485 that are safe to decode"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_reasons_say_what_the_file_is(data: bytes, expected: str) -> None:
    assert reason(data).startswith(expected)


def zero_tail(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def test_a_png_with_a_zeroed_tail_is_refused_and_trailing_garbage_is_not() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    data = saved(noise, "PNG")
    assert "checksum" in reason(zero_tail(data))
    for whole in (data + b"garbage" * 50, data[:-2]):
        assert read_picture(whole, AS_THEY_ARE).as_stored
        np.testing.assert_array_equal(pixels(whole), np.asarray(noise))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_values_cut_short_are_refused(compression: str | None, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 3000, (40, 40, 3), dtype=np.uint16)
    data = tiff(noise, photometric="rgb", compression=compression, rowsperstrip=8)
    assert reason(data[: int(len(data) * part)], RANGE).startswith("TIFF, damaged: ")


def test_what_libtiff_prints_is_kept_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(Image.fromarray(quadrants(60, 60)), "TIFF", compression="tiff_adobe_deflate"))
    data[20] ^= 0x55
    reason(bytes(data))
    assert capfd.readouterr() == ("", "")


def test_the_docs_have_the_reasons_as_printed() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    image, *others = (Image.fromarray(np.roll(quadrants(), turn, axis=1)) for turn in (0, 3, 6))
    printed = [
        reason(DEEP["PNG of 3 bands, uint16"]),
        reason(tiff(THIRTEEN.astype(np.uint16), photometric="minisblack", planarconfig="contig")),
        reason(tiff(THIRTEEN.transpose(2, 0, 1), photometric="minisblack")),
        reason(saved(image, "TIFF"), PixelOptions(bands=(4, 3, 2))),
        reason(saved(image, "TIFF", save_all=True, append_images=others)),
        reason(saved(image, "GIF", save_all=True, append_images=others)),
        reason(tiff(quadrants(), photometric="rgb", subfiletype=1)),
        reason(tiff(RAMP.astype(np.complex64))),
        reason(saved(Image.new("LAB", (4, 4)), "TIFF")),
        reason(b"P5 2 1 65535\n" + bytes(4)),
        reason(bytes(128) + b"DICM"),
        reason(zero_tail(saved(image.resize((99, 99)), "PNG"))),
        reason(b"<html>"),
    ]
    assert [text for text in printed if f"`{text}`" not in docs] == []


# --- options -------------------------------------------------------------------------------------------------


def test_options_are_parsed_and_print_as_typed() -> None:
    options = parse_pixel_options("4,3,2", "0,3000", "white")
    assert options == PixelOptions(bands=(4, 3, 2), range=(0, 3000))
    assert str(options) == "--bands 4,3,2 --range 0,3000 --background white"
    assert parse_pixel_options("1", "percentile", "#fff").range == "percentile"
    assert PixelOptions.model_validate_json(options.model_dump_json()) == options
    assert parse_pixel_options(None, None, "white") == AS_THEY_ARE


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("4;3", None, "white"), r"--bands '4;3' is not a list of numbers; give one or three"),
        (("", None, "white"), r"--bands '' is not a list of numbers"),
        (("4,3", None, "white"), r"--bands: \(4, 3\) are not valid; give one band .* counted from 1"),
        (("0,1,2", None, "white"), r"--bands: \(0, 1, 2\) .* counted from 1"),
        ((None, "3000", "white"), r"--range '3000' is not LOW,HIGH; give --range 0,3000, or --range percentile"),
        ((None, "percent", "white"), r"--range 'percent' is not LOW,HIGH"),
        ((None, "9,1", "white"), r"--range: 9,1 is not a range"),
        ((None, "0,nan", "white"), r"--range: 0,nan is not a range"),
        ((None, None, "blau"), r"--background: .*'blau'"),
    ],
)
def test_bad_options_are_named(typed: tuple[str | None, str | None, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_pixel_options(*typed)
