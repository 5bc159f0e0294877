"""The table of sorted images in the forms that other tools import."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline.errors import ConfigError, did_you_mean
from pipeline.storage import Folder

Row = Mapping[str, str]
"""A line of ``images.csv``."""


def label_studio(rows: Sequence[Row], folder: Folder) -> dict[str, str]:
    """Tasks of Label Studio with the clusters as predictions, and the labeling interface for them.

    Label Studio serves local files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is the folder above this one.
    """
    tasks = [
        {
            "data": {"image": _address(row["file"], folder)},
            "predictions": [
                {
                    "model_version": "DigPro",
                    "score": max(float(row["similarity"]), 0.0),
                    "result": [
                        {
                            "from_name": "cluster",
                            "to_name": "image",
                            "type": "choices",
                            "value": {"choices": [_title(row)]},
                        }
                    ],
                }
            ],
        }
        for row in rows
    ]
    choices = "\n".join(f"    <Choice value={quoteattr(title)}/>" for title in _titles(rows))
    interface = (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="cluster" toName="image" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )
    return {"label-studio.json": _json(tasks), "label-studio.xml": interface}


def fiftyone(rows: Sequence[Row], folder: Folder) -> dict[str, str]:
    """The labels of a FiftyOneImageClassificationDataset; its data is this folder."""
    labels = {
        row["file"].rpartition(".")[0]: {
            "label": _title(row),
            "confidence": float(row["similarity"]),
            "attributes": {name: float(row[name]) for name in ("margin", "outlier")},
        }
        for row in rows
    }
    return {"fiftyone.json": _json({"classes": None, "labels": labels})}


def coco(rows: Sequence[Row], folder: Folder) -> dict[str, str]:
    """Images, categories and annotations in COCO's format, without boxes."""
    number = {title: i for i, title in enumerate(_titles(rows), start=1)}
    sizes = ("width", "height")
    return {
        "coco.json": _json(
            {
                "info": {"description": "clusters found by DigPro"},
                "images": [
                    {"id": i, "file_name": row["file"], **{size: int(row[size]) for size in sizes}}
                    for i, row in enumerate(rows, start=1)
                ],
                "annotations": [
                    {"id": i, "image_id": i, "category_id": number[_title(row)], "score": float(row["similarity"])}
                    for i, row in enumerate(rows, start=1)
                ],
                "categories": [{"id": i, "name": title} for title, i in number.items()],
            }
        )
    }


FORMATS: dict[str, Callable[[Sequence[Row], Folder], dict[str, str]]] = {
    "csv": lambda rows, folder: {},
    "label-studio": label_studio,
    "fiftyone": fiftyone,
    "coco-classification": coco,
}


def check_format(name: str) -> None:
    """ConfigError for a format that is not known."""
    if name not in FORMATS:
        raise ConfigError(f"--format {name} is not one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")


def write_tables(name: str, table: bytes, folder: Folder) -> list[str]:
    """Write the files of a format, made from ``images.csv``, into its folder; returns their paths."""
    rows = list(csv.DictReader(StringIO(table.decode())))
    files = FORMATS[name](rows, folder)
    for file, text in files.items():
        folder.write_bytes(file, text.encode())
    return [folder.file(file) for file in files]


def _title(row: Row) -> str:
    return row["name"] or f"cluster {row['cluster']}"


def _titles(rows: Sequence[Row]) -> list[str]:
    """The titles of all clusters, in the order of their numbers."""
    numbers = {_title(row): int(row["cluster"]) for row in reversed(rows)}
    return sorted(numbers, key=lambda title: (numbers[title], title))


def _address(file: str, folder: Folder) -> str:
    return f"/data/local-files/?d={quote(f'{folder.name}/{file}')}" if folder.is_local else folder.file(file)


def _json(values: object) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False)
