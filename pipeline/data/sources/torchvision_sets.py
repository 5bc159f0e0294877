"""torchvision's data sets, read from disk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pipeline.data.pixels import png
from pipeline.data.shards import Quarantined
from pipeline.data.sources.base import Row, Source, SourcePart, cut, shuffled, stamp
from pipeline.data.sources.cifar20 import with_superclasses
from pipeline.data.sources.listing import list_files
from pipeline.errors import DataError, did_you_mean, first_line
from pipeline.storage import filesystem

_BOTH = [{"train": True}, {"train": False}]
_TRAIN_TEST = [{"split": "train"}, {"split": "test"}]
_TRAIN_VAL_TEST = [{"split": "train"}, {"split": "val"}, {"split": "test"}]
TORCHVISION: dict[str, list[dict[str, Any]]] = {  # data set -> the arguments of its splits, ingested as one set
    **dict.fromkeys(["CIFAR10", "CIFAR100", "CIFAR20", "MNIST", "FashionMNIST", "KMNIST", "USPS"], _BOTH),
    **dict.fromkeys(["STL10", "SVHN", "GTSRB", "Food101"], _TRAIN_TEST),
    **dict.fromkeys(["Flowers102", "DTD"], _TRAIN_VAL_TEST),
    "OxfordIIITPet": [{"split": "trainval"}, {"split": "test"}],
    "EuroSAT": [{}],
}
FILES_OF = {"CIFAR20": "CIFAR100"}  # data sets that torchvision has under another name, with other classes


def open_torchvision(source: str, path: str, rows_per_part: int) -> Source:
    """All splits of a data set on disk as one, each shuffled. Its rows are counted, not the files that hold them."""
    name, _, where = path.partition(":")
    if name not in TORCHVISION or not where:
        hint = did_you_mean(name, TORCHVISION, cutoff=0.4)
        raise DataError(
            f"{source!r} is not torchvision:NAME:PATH{hint or '.'} Valid names: {', '.join(sorted(TORCHVISION))}"
        )
    fs, root = filesystem(where)
    parts: list[SourcePart] = []
    seen = 0
    class_names: tuple[str, ...] = ()
    for split in TORCHVISION[name]:
        dataset = _torchvision(name, root, split)
        class_names = tuple(getattr(dataset, "classes", ()))
        seen += len(dataset)
        items = cut(shuffled(range(len(dataset))), rows_per_part)
        parts += [partial(_rows, name, root, split, numbers) for numbers in items]
    mark = stamp(f"torchvision:{name}", class_names, list_files(fs, root).files)
    return Source(source, "torchvision", class_names, tuple(parts), "rows", seen, mark, (fs, root))


def _rows(name: str, root: str, split: dict[str, Any], numbers: tuple[int, ...]) -> Iterator[Row | Quarantined]:
    """Items of one split, re-encoded as PNG."""
    dataset = _torchvision(name, root, split)
    prefix = "-".join([name, *(str(value).lower() for value in split.values())])
    for i in numbers:
        path = f"{prefix}/{i:06d}.png"
        try:
            image, label = dataset[i]
            row: Row | Quarantined = Row(png(image), path, int(label), path)
        except Exception as error:  # each data set reads its files its own way
            row = Quarantined(path=path, reason=f"cannot be read: {error!r}")
        yield row


def _torchvision(name: str, root: str, split: dict[str, Any]) -> Any:
    import torchvision.datasets

    known = FILES_OF.get(name, name)
    try:
        dataset = getattr(torchvision.datasets, known)(root, download=False, **split)
    except Exception as error:  # unpacking damaged files can raise anything
        call = ", ".join([repr(root), *(f"{key}={value!r}" for key, value in split.items()), "download=True"])
        raise DataError(
            f"torchvision cannot open {name} in {root} ({first_line(error)}); "
            f"download it first: torchvision.datasets.{known}({call})"
        ) from error
    return with_superclasses(dataset) if name == "CIFAR20" else dataset
