"""The forms in which people send images: equal answers to equal images, and what cannot be meant refused by name."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image

from pipeline.serving.mlflow_model import save_mlflow_model
from tests.helpers.models import card, cluster_model
from tests.helpers.pictures import quadrants, saved, stored


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import mlflow.pyfunc

    folder: Path = tmp_path_factory.mktemp("forms") / "model"
    save_mlflow_model(folder, cluster_model(), card(names={0: "red & blue"}))
    return mlflow.pyfunc.load_model(str(folder))


def pictures() -> list[bytes]:
    return [saved(Image.fromarray(np.roll(quadrants(), shift, 1)), "PNG") for shift in (0, 5, 9)]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.array(opened(data))


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def lines(data: bytes) -> str:
    return base64.encodebytes(data).decode()


class Column(Sequence[Any]):
    """As Hugging Face's data sets give a column."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)


OF_ONE: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "base64 in lines": lines,
    "base64 in indented lines": lambda item: lines(item).replace("\n", "\n    "),
    "base64 in lines of DOS": lambda item: lines(item).replace("\n", "\r\n"),
    "base64 folded": lambda item: " ".join(lines(item).split()),
    "base64 without padding": lambda item: text(item).rstrip("="),
    "base64 safe in URLs": lambda item: base64.urlsafe_b64encode(item).decode(),
    "base64 safe in URLs, bare": lambda item: base64.urlsafe_b64encode(item).decode().rstrip("="),
    "base64 as bytes": base64.b64encode,
    "data URL": lambda item: f"data:image/png;base64,{text(item)}",
    "data URL in lines": lambda item: f"data:image/png;charset=utf-8;base64,{lines(item)}",
    "quoted data URL": lambda item: f"DATA:image/png;base64,{quote(text(item), safe='')}",
    "pixels": pixels,
    "pixels as int64": lambda item: pixels(item).astype(np.int64),
    "pixels of RGBA": lambda item: np.array(opened(item).convert("RGBA")),
    "pixels as lists": lambda item: pixels(item).tolist(),
    "tensor": lambda item: torch.from_numpy(pixels(item)),
    "file as an array": lambda item: np.frombuffer(item, np.uint8),
    "picture": opened,
    "picture of RGBA": lambda item: opened(item).convert("RGBA"),
    "record": lambda item: {"image": item, "label": 3},
    "record of Hugging Face": lambda item: {"bytes": item, "path": None},
    "nested record": lambda item: {"image": {"bytes": text(item), "path": "a.png"}},
}
OF_MANY: dict[str, Callable[[list[bytes]], Any]] = {
    "array of bytes": lambda data: np.array(data, dtype=object),
    "array of base64": lambda data: np.array([text(item) for item in data]),
    "values of a table": lambda data: pd.DataFrame({"image": data}).to_numpy(),
    "pixels": lambda data: np.stack([pixels(item) for item in data]),
    "pixels as lists": lambda data: np.stack([pixels(item) for item in data]).tolist(),
    "tensor": lambda data: torch.stack([torch.from_numpy(pixels(item)) for item in data]),
    "series": pd.Series,
    "series of pictures": lambda data: pd.Series([opened(item) for item in data]),
    "tuple": tuple,
    "column": Column,
    "dict of pixels": lambda data: {"image": np.stack([pixels(item) for item in data])},
    "table of records": lambda data: pd.DataFrame({"image": [{"bytes": item, "path": None} for item in data]}),
    "table of columns": lambda data: pd.DataFrame([{"bytes": item, "path": None} for item in data]),
    "TensorFlow Serving": lambda data: {"b64": np.array([text(item) for item in data])},
}


@pytest.mark.parametrize("form", OF_ONE)
def test_every_form_of_an_image_has_the_same_answer(served: Any, form: str) -> None:
    expected = served.predict(pictures())
    pd.testing.assert_frame_equal(served.predict([OF_ONE[form](item) for item in pictures()]), expected)
    pd.testing.assert_frame_equal(served.predict(OF_ONE[form](pictures()[0])), expected[:1])


@pytest.mark.parametrize("form", OF_MANY)
def test_every_form_of_many_images_has_the_same_answer(served: Any, form: str) -> None:
    pd.testing.assert_frame_equal(served.predict(OF_MANY[form](pictures())), served.predict(pictures()))


def test_gray_pixels_are_those_of_a_gray_file(served: Any) -> None:
    files = [saved(opened(item).convert("L"), "PNG") for item in pictures()]
    gray, expected = np.stack([pixels(item) for item in files]), served.predict(files)
    for form in (gray, gray[..., None], list(gray), list(gray[..., None]), gray.astype(np.int32), gray.tolist()):
        pd.testing.assert_frame_equal(served.predict(form), expected)
    pd.testing.assert_frame_equal(served.predict(gray[0][..., None]), expected[:1])


def test_transparent_pixels_show_the_background_of_the_card(served: Any) -> None:
    rgba = np.zeros((2, 24, 24, 4), np.uint8)
    rgba[:, 6:18, 6:18, 3] = 255
    rgba[1, :, 12:, 3] = 100
    expected = served.predict([saved(Image.fromarray(item), "PNG") for item in rgba])
    for form in (rgba, list(rgba), [Image.fromarray(item) for item in rgba]):
        pd.testing.assert_frame_equal(served.predict(form), expected)
    assert expected["similarity"][0] != expected["similarity"][1]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_file_is(served: Any, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(Image.fromarray(stored(quadrants(), turn)), "PNG", exif=exif)
    pd.testing.assert_frame_equal(served.predict([opened(data)]), served.predict([data]))


@pytest.mark.parametrize(
    "index",
    [pd.Index(["x", "y", "z"], name="id"), pd.Index([7, 7, 3]), pd.MultiIndex.from_tuples([(1, 1), (1, 2), (2, 1)])],
    ids=["names", "repeated", "of two levels"],
)
def test_the_answer_has_the_index_of_the_question(served: Any, index: pd.Index) -> None:
    for given in (pd.DataFrame({"image": pictures()}, index=index), pd.Series(pictures(), index=index)):
        assert served.predict(given).index.equals(index)


def test_more_images_than_a_batch_join_row_by_row(served: Any) -> None:
    question = pd.DataFrame({"image": pictures() * 44, "number": range(132)})
    answer = served.predict(question)
    assert answer.index.equals(pd.RangeIndex(132))
    assert question.join(answer)["number"].tolist() == list(range(132))
    expected = served.predict(pictures())["similarity"].tolist() * 44
    assert answer["similarity"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            np.zeros((2, 9, 9, 3), np.float32),
            r"image 0: float32 of shape \(9, 9, 3\); send integers .*\(255 \* pixels\)",
        ),
        (np.zeros((2, 9, 9), np.float64), r"image 0: float64 of shape \(9, 9\); send integers"),
        (np.zeros((2, 9, 9, 3), bool), r"image 0: bool of shape"),
        (np.zeros((2, 3, 9, 9), np.uint8), r"image 0: uint8 of shape \(3, 9, 9\), with channels first"),
        ([np.zeros((1, 9, 9), np.uint8)], r"image 0: uint8 of shape \(1, 9, 9\), with channels first"),
        (torch.zeros((2, 3, 9, 9)), r"image 0: float32 of shape \(3, 9, 9\); send integers"),
        (np.zeros((2, 9, 9, 2), np.uint8), r"image 0: uint8 of shape \(9, 9, 2\); send integers"),
        (np.zeros((2, 784), np.int64), r"int64 of shape \(2, 784\) is not a batch of images; .*\(N, height, width\)"),
        ([np.zeros(784, np.uint8)], r"image 0: only zero bytes"),
        (list(np.zeros((9, 9, 3), np.uint8)), r"image 0: uint8 of shape \(9, 3\); send integers"),
        (np.zeros((1, 2, 9, 9, 3), np.uint8), r"is not a batch of images"),
        (np.full((1, 9, 9), 300), r"image 0: values from 300 to 300"),
        (np.zeros((1, 0, 9, 3), np.uint8), r"image 0: uint8 of shape \(0, 9, 3\)"),
        ([[1, 2], [3]], r"lists of unequal lengths"),
        ([None], r"image 0: None is not an image"),
        (pd.Series([float("nan")]), r"image 0: nan is not an image"),
        ([7], r"image 0: 7 is not an image"),
        ([""], r"image 0: an empty text"),
        ([b""], r"image 0: empty file"),
        (["two.png"], r"image 0: text that is not base64 \('two\.png'\.\.\.\)"),
        (["AAAAA"], r"image 0: text that is not base64"),
        (["ä"], r"image 0: text that is not base64"),
        (["data:image/svg+xml,<svg/>"], r"image 0: a data URL that is not base64"),
        ([text(b"\xfb" * 99).replace("+", " ")], r"image 0: text that is not base64"),
        ([{"bytes": None, "path": "a.png"}], r"image 0: the record .*'a\.png'.* has no bytes; send them"),
        ([{"path": "a.png"}], r"image 0: there is no column 'image' but \['path'\]"),
        ({}, r"there is no column 'image' but \[\]"),
        ([], r"no image was sent"),
        (pd.DataFrame([[b"", b""]], columns=["image", "image"]), r"several columns with the same name"),
        ([Image.new("I;16", (9, 9))], r"image 0: Pillow image of more than 8 bits \(mode I;16\)"),
        ([Image.new("F", (9, 9))], r"image 0: Pillow image of more than 8 bits \(mode F\)"),
    ],
)
def test_what_is_no_image_is_refused_by_name(served: Any, given: Any, message: str) -> None:
    with pytest.raises(MlflowException, match=message):
        served.predict(given)


def test_a_file_of_16_bits_is_refused_as_a_picture_too(served: Any) -> None:
    file = imagecodecs.png_encode(np.full((9, 9, 3), 3000, np.uint16))
    for given in (file, opened(file)):
        with pytest.raises(MlflowException, match=r"image 0: PNG of (3 bands, uint16|more than 8 bits)"):
            served.predict([given])


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["no image"]},
        {"inputs": "no image"},
        {"inputs": [text(b"%PDF-1.7" + bytes(3_000_000))]},
        {"dataframe_records": [{"picture": "x" * 3_000_000}]},
        {"inputs": {"x" * 3_000_000: 1}},
    ],
    ids=["list", "one", "large", "column", "key"],
)
def test_an_error_over_http_is_short_and_begins_with_the_reason(served: Any, body: dict[str, Any]) -> None:
    with pytest.raises(MlflowException) as refused:
        invocations(json.dumps(body), "application/json", served, None)
    answer = json.loads(refused.value.serialize_as_json())
    assert refused.value.get_http_status_code() == 400
    assert re.match(r"image 0: |there is no column 'image'", answer["message"])
    assert len(answer["message"]) < 300
    assert "stack_trace" not in answer


@pytest.mark.parametrize(
    "body",
    [
        lambda item: {"inputs": item},
        lambda item: {"inputs": [item]},
        lambda item: {"instances": [item]},
        lambda item: {"instances": [{"b64": item}]},
        lambda item: {"inputs": {"image": item}},
        lambda item: {"inputs": [{"image": {"bytes": item, "path": None}}]},
        lambda item: {"dataframe_records": [{"image": item}]},
        lambda item: {"dataframe_records": [{"image": {"bytes": item}}]},
        lambda item: {"dataframe_split": {"columns": ["image"], "index": [5], "data": [[item]]}},
    ],
)
def test_every_request_over_http_is_answered(served: Any, body: Callable[[str], Any]) -> None:
    answer = invocations(json.dumps(body(text(pictures()[0]))), "application/json", served, None)
    (row,) = json.loads(answer.response)["predictions"]
    expected = served.predict(pictures()[:1]).to_dict("records")[0]
    assert row["similarity"] == pytest.approx(expected["similarity"])
    assert row["name"] == expected["name"]
