"""What a row reached: a JSON file beside docs/results.md, with the curves of every seed.

A file is replaced seed by seed. It holds all that the page and the pictures are made from, so that they need no run.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from benchmarks.results.definitions import Entry
from benchmarks.results.floors import Floor
from pipeline.errors import ConfigError

SCORES = ("nmi", "acc", "ari")
CURVES = (*SCORES, "label_free", "loss")
DIGITS = 5  # of the numbers in curves: finer than any plot
Curves = dict[str, list[float | None]]


class Call(Entry):
    """One call of the training command."""

    date: str
    seconds: float
    commit: str | None
    hardware: str
    note: str = ""


class SeedResult(Entry):
    """One run: how far it came and what it scored there.

    `curves` holds "epoch" and the metrics of CURVES, all equally long; None where an epoch has no such metric.
    """

    status: Literal["finished", "stopped", "failed"]
    reason: str = ""
    epochs: int
    planned: int
    scores: dict[str, float] = Field({})
    images_per_second: float | None = None
    training_seconds: float = 0.0
    calls: list[Call] = Field([])
    curves: Curves = Field({})

    @property
    def seconds(self) -> float:
        """Wall time of all calls; of the epochs alone where a call was killed and left no trace."""
        return max(sum(call.seconds for call in self.calls), self.training_seconds)

    def score_at(self, epoch: int, name: str) -> float | None:
        """A score after an epoch; None where it was not taken."""
        by_epoch = dict(zip(self.curves.get("epoch", []), self.curves.get(name, []), strict=True))
        return by_epoch.get(epoch)


class Record(Entry):
    """All seeds of a row.

    `settings` are those that decide the result, without the seed; they still say what was measured if a preset changes.
    """

    row: str
    command: str
    settings: dict[str, Any]
    floor: Floor | None = None
    seeds: dict[int, SeedResult] = Field({})


class Spread(NamedTuple):
    """Mean and standard deviation of `size` values."""

    mean: float
    std: float
    size: int


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(statistics.mean(values), statistics.pstdev(values), len(values))


def furthest(record: Record) -> list[SeedResult]:
    """The seeds that the row's scores use: those that came furthest, so that a mean is over equally many epochs."""
    scored = [seed for seed in record.seeds.values() if seed.scores]
    return [seed for seed in scored if seed.epochs == max(other.epochs for other in scored)]


def seed_result(
    history: Sequence[Mapping[str, float]], planned: int, status: str, reason: str, calls: Iterable[Call]
) -> SeedResult:
    """The result of a run, from the metrics of its epochs; the first is the E-step before training."""
    trained = [metrics for metrics in history if metrics["epoch"] > 0]
    rates = [metrics["images_per_second"] for metrics in trained if "images_per_second" in metrics]
    scored = [metrics for metrics in history if "acc" in metrics]
    return SeedResult(
        status=status,
        reason=reason,
        epochs=int(history[-1]["epoch"]) if history else 0,
        planned=planned,
        scores={name: scored[-1][name] for name in SCORES} if scored else {},
        images_per_second=round(statistics.median(rates), 1) if rates else None,
        training_seconds=round(sum(metrics.get("seconds_epoch", 0.0) for metrics in trained), 1),
        calls=list(calls),
        curves=curves_of(history),
    )


def curves_of(history: Sequence[Mapping[str, float]]) -> Curves:
    """The metrics of CURVES that any epoch has, beside its number."""
    names = [name for name in CURVES if any(name in metrics for metrics in history)]
    columns = {
        name: [round(metrics[name], DIGITS) if name in metrics else None for metrics in history] for name in names
    }
    return {"epoch": [int(metrics["epoch"]) for metrics in history], **columns} if history else {}


def with_seed(
    before: Record | None, row: str, command: str, settings: Mapping[str, Any], seed: int, result: SeedResult
) -> Record:
    """The record with one seed put in; seeds measured with other settings are dropped, and so is their floor."""
    if before is None or changed_settings(before, settings):
        before = Record(row=row, command=command, settings=dict(settings))
    seeds = dict(sorted((before.seeds | {seed: result}).items()))
    return before.model_copy(update={"command": command, "settings": dict(settings), "seeds": seeds})


def changed_settings(record: Record, settings: Mapping[str, Any]) -> list[str]:
    """Keys of settings with other values than a record was made with; settings newer than the record do not count."""
    return [key for key, value in record.settings.items() if key in settings and settings[key] != value]


def record_path(folder: Path, row: str) -> Path:
    """Where the record of a row lies."""
    return folder / f"{row}.json"


def read_record(folder: Path, row: str) -> Record | None:
    """The record of a row, None where it was not measured; ConfigError names a file that cannot be read."""
    path = record_path(folder, row)
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_text())
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(map(str, reason["loc"])) or "its text"
        raise ConfigError(
            f"{path}: {where}: {reason['msg']}; restore the file, or delete it and measure again"
        ) from None


def write_record(folder: Path, record: Record) -> None:
    """Replace the record of a row; each list is one line, so that diffs are readable."""
    text = json.dumps(record.model_dump(mode="json"), indent=1)
    text = re.sub(
        r"\[\n[^\[\]{}]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text
    )
    folder.mkdir(parents=True, exist_ok=True)
    record_path(folder, record.row).write_text(text + "\n")
