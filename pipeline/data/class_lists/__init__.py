"""Lists of classes: which classes of a source an ingest takes, and how many images each of them should have.

A list is a text with one class per line: its name, optionally a tab and the number of its images, and optionally
another tab and its title. Lines that start with # are comments. The .txt files of this folder are the lists of
well-known data sets.
"""

from __future__ import annotations

import os
from importlib import resources

from pydantic import BaseModel, ConfigDict

from pipeline.errors import DataError, did_you_mean
from pipeline.storage import filesystem


class ClassList(BaseModel):
    """Classes by name, each with the number of its images, or None if the list does not give it.

    `titles` are the names that pictures and pages show, for classes that have one.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    images: dict[str, int | None]
    titles: dict[str, str] = {}

    @property
    def rule(self) -> str:
        """The rule that leaves other classes out of an ingest."""
        return f"its class is not on the list: {self.name}"

    def __contains__(self, name: object) -> bool:
        return name in self.images


def class_list_names() -> list[str]:
    """Names of the lists that come with the package."""
    files = (file.name for file in resources.files("pipeline.data.class_lists").iterdir())
    return sorted(name.removesuffix(".txt") for name in files if name.endswith(".txt"))


def load_class_list(given: str, folder: str = "") -> ClassList:
    """Load a list of the package by its name, or one in a file by its path or URI.

    Parameters
    ----------
    folder : str
        Where a relative path starts; the current folder if empty.

    Raises
    ------
    DataError
        When there is no such list, or a line of it cannot be used.
    """
    if given in class_list_names():
        text = resources.files("pipeline.data.class_lists").joinpath(f"{given}.txt").read_text(encoding="utf-8")
    else:
        text = _read_file(given, given if "://" in given else os.path.join(folder, given))
    images: dict[str, int | None] = {}
    titles: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            name, count, title = _parse(line, f"line {number} of the list of classes {given!r}")
            if name in images:
                raise DataError(
                    f"the list of classes {given!r} names {name!r} a second time in line {number}; remove one"
                )
            images[name] = count
            if title:
                titles[name] = title
    if not images:
        raise DataError(f"the list of classes {given!r} is empty; write the name of one class in each line")
    return ClassList(name=given, images=images, titles=titles)


def _read_file(given: str, path: str) -> str:
    try:
        fs, inner = filesystem(path)
        with fs.open_input_file(inner) as file:
            return str(file.read().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        known = class_list_names()
        raise DataError(
            f"{given!r} is neither a list of classes that comes with the package{did_you_mean(given, known)} "
            f"(known: {', '.join(known)}) nor an existing file"
        ) from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"the list of classes {given!r} cannot be read ({error}); give a UTF-8 text file") from None


def _parse(line: str, where: str) -> tuple[str, int | None, str]:
    """Name, number of images and title in one line."""
    name, count, title = [*(part.strip() for part in line.split("\t", 2)), "", ""][:3]
    if not name:
        raise DataError(f"{where} starts with a tab; write the name of a class before the tab")
    if count and not (count.isdecimal() and int(count)):
        raise DataError(f"{where} has {count!r} after the tab; write the number of images of {name!r}, or nothing")
    return name, int(count) if count else None, title
