"""The check of an ingest against a list of classes: does each class have the images that it should have?"""

from __future__ import annotations

from pydantic import BaseModel

from pipeline.data.class_lists import ClassList
from pipeline.data.shards import SUMMARY, Manifest

SHOWN = 10  # classes that a message names
ALL = "all classes together"


class Difference(BaseModel):
    """A class with another number of images than the list's; `expected` is None where it has none, and 0 were found."""

    name: str
    found: int
    expected: int | None

    def __str__(self) -> str:
        expected = "some" if self.expected is None else f"{self.expected:,}"
        return f"{self.name}: {self.found:,} images, {expected} expected"


class CountCheck(BaseModel):
    """What a list of classes expects of an ingest, and what the ingest holds."""

    list_name: str
    classes: int
    counted: int
    """Classes of which the list says how many images they have."""
    images: int
    expected: int | None
    """Images of all classes together; None where the list does not count them all."""
    differences: list[Difference]

    def __str__(self) -> str:
        if self.differences:
            wanted = "" if self.expected is None else f" of {self.expected:,}"
            return "\n".join([f"not as in {self.list_name}: {self.images:,} images{wanted}", *self._lines()])
        size = f"{self.images:,} images in {self.classes:,} classes"
        if self.counted == self.classes:
            return f"{size}, as in {self.list_name}"
        return f"{size}; {self.list_name} gives the numbers of {self.counted:,} of them, which agree"

    def _lines(self) -> list[str]:
        lines = [f"  {difference}" for difference in self.differences[:SHOWN]]
        more = len(self.differences) - SHOWN
        return [*lines, f"  and {more:,} more classes, which {SUMMARY} lists"] if more > 0 else lines


def check_counts(manifest: Manifest, classes: ClassList) -> CountCheck:
    """Compare the images of each class in an ingested data set with the list's numbers."""
    numbers = [number for number in classes.images.values() if number is not None]
    expected = sum(numbers) if len(numbers) == len(classes.images) else None
    return CountCheck(
        list_name=classes.name,
        classes=len(classes.images),
        counted=len(numbers),
        images=manifest.num_images,
        expected=expected,
        differences=_differences(manifest, classes, expected),
    )


def _differences(manifest: Manifest, classes: ClassList, expected: int | None) -> list[Difference]:
    found = manifest.images_of_classes
    if found is None:  # an ingest of an earlier version counted all classes together only
        pairs = [(ALL, manifest.num_images, expected)]
    else:
        pairs = [(name, found.get(name, 0), number) for name, number in classes.images.items()]
    return [
        Difference(name=name, found=images, expected=wanted)
        for name, images, wanted in pairs
        if (images == 0 if wanted is None else images != wanted)
    ]
