"""The tally of an ingest: everything that was seen became an image, was quarantined, or was left out by a rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from pipeline.data.pixel_options import PixelOptions
from pipeline.data.shards import LeftOut, Quarantined, Tally
from pipeline.data.sources import Row, Seen, Source, SourcePart
from pipeline.data.tasks import run_each

MODULUS = 2**256


class PartTally(BaseModel):
    """What one part yielded besides its rows, and the sum of its rows' digests.

    The sum depends neither on the order of the rows nor on how they were cut into parts.
    """

    seen: int = 0
    quarantined: list[Quarantined] = []
    left_out: list[LeftOut] = []
    content: int = 0


def tallied_rows(part: SourcePart, tally: PartTally) -> Iterator[Row]:
    """The rows of a part; everything else that it yields goes into `tally`."""
    total = tally.content
    for entry in part():
        if isinstance(entry, Row):
            total += _row_digest(entry)
            yield entry
        elif isinstance(entry, Seen):
            tally.seen += entry.number
        elif isinstance(entry, Quarantined):
            tally.quarantined.append(entry)
        else:
            tally.left_out.append(entry)
    tally.content = total % MODULUS


def _row_digest(row: Row) -> int:
    state = hashlib.sha256(f"{len(row.path)} {row.path} {row.label} ".encode("utf-8", "backslashreplace"))
    state.update(row.data)
    return int.from_bytes(state.digest(), "big")


def content_digest(source: Source, pixels: PixelOptions, tallies: Iterable[PartTally]) -> str:
    """The digest of a source's content, from the tallies of all its parts, and of how its pixels are read."""
    total = sum(tally.content for tally in tallies) % MODULUS
    identity = [source.kind, source.class_names, total, pixels.requested.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def read_content_digest(source: Source, pixels: PixelOptions) -> str:
    """The digest of a source's content, which is read but not decoded."""
    return content_digest(source, pixels, run_each(_tally_part, ((part,) for part in source.parts)))


def _tally_part(part: SourcePart) -> PartTally:
    tally = PartTally()
    for _ in tallied_rows(part, tally):
        pass
    return tally


def collect_entries(source: Source, tallies: Sequence[PartTally]) -> tuple[list[Quarantined], list[LeftOut]]:
    """All that was quarantined and left out while listing and while reading, each sorted by path."""
    quarantined = [*source.quarantined, *(entry for tally in tallies for entry in tally.quarantined)]
    left_out = [*source.left_out, *(entry for tally in tallies for entry in tally.left_out)]
    return sorted(quarantined, key=lambda entry: entry.path), sorted(left_out, key=lambda entry: entry.path)


def add_up(
    source: Source, tallies: Sequence[PartTally], images: int, quarantined: list[Quarantined], left_out: list[LeftOut]
) -> Tally:
    """Count what was seen and what became of it: `images`, and the entries that :func:`collect_entries` returns.

    Raises
    ------
    RuntimeError
        When the numbers do not add up, which is a bug in this program.
    """
    total = Tally(
        unit=source.unit,
        seen=source.seen + sum(tally.seen for tally in tallies),
        images=images,
        quarantined=sum(entry.rows for entry in quarantined),
        left_out=sum(entry.files for entry in left_out),
        damaged=sum(entry.rows == 0 for entry in quarantined),
    )
    if total.seen != total.images + total.quarantined + total.left_out:
        raise RuntimeError(f"the counts of {source.name!r} do not add up: {total}; please report this as a bug")
    return total
