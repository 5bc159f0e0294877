"""What came of the trials: a row each, and which was best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.experiment import Trial

from pipeline.tuning.logbook import Entry, failure_reason
from pipeline.tuning.schedule import START_FROM
from pipeline.tuning.space import Point, Space
from pipeline.tuning.trial import point_of, run_name

EQUAL = 0.05  # of the first objective's spread: trials that differ less in it are told apart by the others
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes
    ----------
    reason : str
        Why it did not come to its end.
    settings : dict
        What Tune gave it: its point, and the checkpoint that it took over where it did.
    pages : list of dict
        Epoch, objectives and scores, as they came.
    """

    number: int
    trial: str
    status: Status
    reason: str
    settings: dict[str, Any]
    pages: list[dict[str, float]]

    @property
    def point(self) -> Point:
        """The values that the search chose."""
        return point_of(self.settings)

    @property
    def run(self) -> str:
        """Name of its newest run, a folder beside those of other trials."""
        return run_name(self.trial, self.settings)

    @property
    def epochs(self) -> int:
        """How far it came."""
        return int(self.pages[-1]["epoch"]) if self.pages else 0

    @property
    def last(self) -> dict[str, float]:
        """Figures of its last epoch."""
        return {key: value for key, value in self.pages[-1].items() if key != "epoch"} if self.pages else {}

    def summary(self) -> dict[str, Any]:
        """As it stands in the table of the search."""
        return {
            "number": self.number,
            "trial": self.trial,
            "status": self.status,
            "reason": self.reason,
            "epochs": self.epochs,
            **self.last,
            "point": self.point,
            "took_over": self.settings.get(START_FROM),
        }


def rows(trials: Sequence[Trial], entries: dict[str, Entry], epochs: int) -> list[Row]:
    """All trials, by number."""
    found = []
    for trial in trials:
        entry = entries[trial.trial_id]
        last = int(entry.pages[-1]["epoch"]) if entry.pages else 0
        status, reason = outcome(trial, last, epochs)
        found.append(Row(entry.number, trial.trial_id, status, reason, trial.config, entry.pages))
    return sorted(found, key=lambda row: row.number)


def outcome(trial: Trial, last: int, epochs: int) -> tuple[Status, str]:
    """How a trial ended, and why."""
    if trial.status == Trial.ERROR:
        return "failed", failure_reason(trial)
    return ("finished", "") if last >= epochs else ("stopped", f"behind others after epoch {last}")


def oriented_values(row: Row, space: Space) -> tuple[float, ...]:
    """Its last values of the objectives, higher is better."""
    return tuple(row.last[metric] if mode == "max" else -row.last[metric] for metric, mode in space.objectives)


def pareto_front(found: Sequence[Row], space: Space) -> list[Row]:
    """Trials that no other one beats in all objectives at once; the best one, where there is one objective."""
    values = {row.number: oriented_values(row, space) for row in found}

    def beaten(row: Row) -> bool:
        mine = values[row.number]
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in values.values())

    return [row for row in found if not beaten(row)]


def best(found: Sequence[Row], space: Space) -> Row | None:
    """The best of the finished trials, or of the stopped ones where none came to its end; None when all failed.

    Stopped trials are left out, because a figure of their few epochs is not to be compared. With several objectives the
    best is on the pareto_front: among those that are about equal in the first, the best by the next ones.
    """
    ended = [row for row in found if row.status == "finished"] or [
        row for row in found if row.status == "stopped" and row.pages
    ]
    if not ended:
        return None
    values = {row.number: oriented_values(row, space) for row in ended}
    top, bottom = max(value[0] for value in values.values()), min(value[0] for value in values.values())
    equal = EQUAL * (top - bottom) if len(space.objectives) > 1 else 0.0
    near = [row for row in pareto_front(ended, space) if values[row.number][0] >= top - equal]
    return max(near, key=lambda row: values[row.number][1:] + values[row.number][:1])
