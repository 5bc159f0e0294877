"""The script of the docs reads an image as the served model does, or refuses it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import decode
from pipeline.data.pixel_options import PixelOptions
from pipeline.data.pixels import stored_bytes
from pipeline.inference.card import ModelCard
from tests.helpers.models import card
from tests.helpers.pictures import quadrants, saved, stored, tiff

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "use_onnx.py"
CASES = Path(os.environ.get("DIGPRO_CASES", Path(__file__).parents[3] / "shared" / "cases"))
ROUNDING = 2  # of 255: Pillow's resizing and JPEG decoding differ from torchvision's by this


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("use_onnx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_card(fit: str = "stretch", interpolation: str = "bilinear", **pixels: Any) -> ModelCard:
    decoding = {"size": 24, "fit": fit, "interpolation": interpolation}
    return card().model_copy(update={"decoding": decoding, "pixels": PixelOptions(**pixels)})


def read_both(script: Any, path: Path, known: ModelCard) -> tuple[Any, Any]:
    """What the script and the served model make of a file: pixels, or the error."""
    found = []
    for read in (
        lambda: script.read(path, known.model_dump(mode="json")),
        lambda: decode(stored_bytes(path.read_bytes(), known.pixels), **known.decoding).permute(1, 2, 0).numpy(),
    ):
        try:
            found.append(read())
        except Exception as error:
            found.append(error)
    return found[0], found[1]


def smooth(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 5 + phase) * np.cos(columns / (7 + phase)) for phase in range(3)]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))


def pictures() -> dict[str, bytes]:
    """Files that people have, by name."""
    rows, columns = np.mgrid[:32, :32]
    alpha = np.zeros((32, 32, 4), np.uint8)
    alpha[..., 3] = 255 * ((columns - 16) ** 2 + (rows - 16) ** 2 < 100)
    alpha[20:, :, 3] = 100
    shape, photo = Image.fromarray(alpha), smooth(60, 90)
    palette, exif = photo.quantize(16), Image.Exif()
    files = {
        "alpha.png": saved(shape, "PNG"),
        "alpha.webp": saved(shape, "WEBP", lossless=True),
        "gray_alpha.png": saved(shape.convert("LA"), "PNG"),
        "gray.png": saved(photo.convert("L"), "PNG"),
        "gray.jpg": saved(photo.convert("L"), "JPEG", quality=95),
        "bilevel.png": saved(photo.convert("1"), "PNG"),
        "palette.png": saved(palette, "PNG"),
        "palette_transparent.png": saved(palette, "PNG", transparency=3),
        "colour_transparent.png": saved(Image.fromarray(quadrants()), "PNG", transparency=(255, 0, 0)),
        "still.gif": saved(palette, "GIF", transparency=3),
        "plain.bmp": saved(photo, "BMP"),
        "cmyk.jpg": saved(photo.convert("CMYK"), "JPEG", quality=95),
        "wide.jpg": saved(smooth(31, 100), "JPEG", quality=95),
        "tall.png": saved(smooth(101, 30), "PNG"),
        "small.png": saved(smooth(9, 7), "PNG"),
        "fitting.png": saved(smooth(24, 24), "PNG"),
    }
    for turn in range(1, 9):
        exif[0x0112] = turn
        picture = Image.fromarray(stored(quadrants(), turn))
        files[f"turned_{turn}.jpg"] = saved(picture, "JPEG", quality=95, exif=exif, subsampling=0)
        files[f"turned_{turn}.png"] = saved(picture, "PNG", exif=exif)
    return files


def refused() -> dict[str, bytes]:
    """Files that the script does not read."""
    deep, photo = np.full((9, 9, 3), 3000, np.uint16), saved(smooth(60, 90), "PNG")
    frames = [smooth(9, 9), smooth(9, 8).resize((9, 9))]
    return {
        "deep.png": imagecodecs.png_encode(deep),
        "deep_gray.png": imagecodecs.png_encode(np.ascontiguousarray(deep[..., 0])),
        "deep.tif": tiff(deep),
        "plain.tif": tiff(quadrants()),
        "moving.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "moving.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "cut.png": photo[:-400],
        "flipped.png": photo[:300] + bytes([photo[300] ^ 1]) + photo[301:],
        "cut.jpg": saved(smooth(60, 90), "JPEG")[:-900],
        "page.jpg": b"<html></html>",
        "empty.png": b"",
    }


@pytest.mark.parametrize("name", pictures())
def test_an_image_is_read_as_the_served_model_reads_it(script: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pictures()[name])
    for fit, interpolation in itertools.product(("stretch", "crop"), ("bilinear", "bicubic")):
        for background in ("white", "#ff8000"):
            known = model_card(fit, interpolation, background=background)
            ours, served = read_both(script, tmp_path / name, known)
            assert ours.dtype == np.uint8
            difference = np.abs(ours.astype(int) - served)
            assert difference.max() <= (0 if name == "fitting.png" else ROUNDING), (fit, interpolation, background)


@pytest.mark.parametrize("name", refused())
def test_what_is_not_implemented_is_refused(script: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(refused()[name])
    for known in (model_card(), model_card(range=(0.0, 3000.0))):
        with pytest.raises(Exception, match=r"."):
            script.read(tmp_path / name, known.model_dump(mode="json"))


def test_a_model_of_chosen_bands_is_refused(script: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(pictures()["gray.png"])
    with pytest.raises(ValueError, match="chosen bands"):
        script.read(tmp_path / "a.png", model_card(bands=(3, 2, 1)).model_dump(mode="json"))


@pytest.mark.parametrize("kind", ["exif_orientation", "sixteen_bit", "bands", "alpha_shapes", "damaged", "suffixes"])
def test_cases_that_people_met_are_read_alike_or_refused(script: Any, tmp_path: Path, kind: str) -> None:
    if not (CASES / f"{kind}.py").is_file():
        pytest.skip("the cases are not on this machine")
    subprocess.run([sys.executable, str(CASES / f"{kind}.py"), str(tmp_path)], check=True, capture_output=True)
    alike = 0
    for path, fit in itertools.product(sorted(tmp_path.rglob("*")), ("stretch", "crop")):
        if path.is_file():
            ours, served = read_both(script, path, model_card(fit, "bicubic"))
            if not isinstance(ours, Exception):
                assert not isinstance(served, Exception), (path.name, served)
                assert np.abs(ours.astype(int) - served).max() <= ROUNDING, path.name
                alike += 1
    assert alike or kind in ("sixteen_bit", "bands")


def test_the_script_goes_on_after_a_file_that_it_refuses(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
            assert given["images"].shape == (1, 24, 24, 3)
            return [np.array([[0.1, 0.9, 0.2]], np.float32)]

    monkeypatch.setattr(script.onnxruntime, "InferenceSession", Session)
    (tmp_path / "model.json").write_text(model_card().model_copy(update={"names": {0: "1"}}).model_dump_json())
    (tmp_path / "page.jpg").write_bytes(b"<html></html>")
    (tmp_path / "a.png").write_bytes(pictures()["gray.png"])
    assert script.main(tmp_path, tmp_path / "page.jpg", tmp_path / "a.png") == 1
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'a.png'} cluster 1 0.900\n"
    assert shown.err.startswith(f"{tmp_path / 'page.jpg'} refused: ")
