"""The check of an ingest against a list of classes: does each class have the images that it should have?"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from pipeline.data.class_lists import ClassList

SHOWN = 10  # classes named in a message of several lines
NAMED = 3  # classes named in a message of one line
ALL = "all classes together"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Difference(_Record):
    """A class with an unexpected number of images; `expected` is None if the list gives none and no image was found."""

    name: str
    found: int
    expected: int | None

    def __str__(self) -> str:
        expected = "at least 1" if self.expected is None else f"{self.expected:,}"
        return f"{self.name}: {self.found:,} images, {expected} expected"


class CountCheck(_Record):
    """What a list of classes expects of an ingest, and what the ingest holds."""

    list_name: str
    classes: int
    counted: int
    """Classes whose number of images the list gives."""
    images: int
    expected: int | None
    """Images of all classes together; None where the list does not count them all."""
    differences: list[Difference]

    def __str__(self) -> str:
        if self.differences:
            return "\n".join([self._headline, *(f"  {line}" for line in self._lines(SHOWN))])
        size = f"{self.images:,} images in {self.classes:,} classes"
        if self.counted == self.classes:
            return f"{size}, as in {self.list_name}"
        return f"{size}; {self.list_name} gives the number of images for {self.counted:,} of them, and all agree"

    @property
    def warning(self) -> str:
        """The differences in one line; empty where there are none."""
        return "; ".join([self._headline, *self._lines(NAMED)]) if self.differences else ""

    @property
    def _headline(self) -> str:
        wanted = "" if self.expected is None else f", {self.expected:,} expected"
        return f"class counts differ from {self.list_name}: {self.images:,} images{wanted}"

    def _lines(self, shown: int) -> list[str]:
        lines = [str(difference) for difference in self.differences[:shown]]
        more = len(self.differences) - shown
        return [*lines, f"and {more:,} more classes, which the manifest lists"] if more > 0 else lines


def check_counts(classes: ClassList, found: Mapping[str, int] | None, images: int) -> CountCheck:
    """Compare the images of each class in an ingested data set with the list's numbers.

    Parameters
    ----------
    found : mapping, optional
        Images of each class by its name; None, for an ingest of an earlier version, compares all classes together.
    images : int
        In all classes together.
    """
    numbers = [number for number in classes.images.values() if number is not None]
    expected = sum(numbers) if len(numbers) == len(classes.images) else None
    if found is None:
        pairs = [(ALL, images, expected)]
    else:
        pairs = [(name, found.get(name, 0), number) for name, number in classes.images.items()]
    return CountCheck(
        list_name=classes.name,
        classes=len(classes.images),
        counted=len(numbers),
        images=images,
        expected=expected,
        differences=[Difference(name=n, found=f, expected=e) for n, f, e in pairs if _differs(f, e)],
    )


def _differs(found: int, expected: int | None) -> bool:
    return found == 0 if expected is None else found != expected
