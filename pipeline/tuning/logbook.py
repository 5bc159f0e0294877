"""What a search says of itself while it runs, and remembers of its trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipeline.tuning.schedule import START_FROM
from pipeline.tuning.space import SCORES, Point, Space

LINE_SECONDS = 5.0  # a line this often for each trial is enough for a person


@dataclass
class Entry:
    """What the driver has heard of one trial: its number, from 0 as in Optuna's pictures, and figures of its epochs."""

    number: int
    pages: list[dict[str, float]] = field(default_factory=list)


class Logbook(Callback):
    """Called by Ray Tune in the driver's process.

    Its state is saved with Tune's own, and with it the rungs of ASHA, which Tune would forget: a search that was killed
    compares with all that came before.
    """

    def __init__(
        self, space: Space, epochs: int, trials: int, scheduler: TrialScheduler, say: Callable[[str], None]
    ) -> None:
        self.space, self.epochs, self.trials, self.scheduler, self.say = space, epochs, trials, scheduler, say
        self.entries: dict[str, Entry] = {}
        self.ended: set[str] = set()
        self.last_line: dict[str, float] = {}

    def get_state(self) -> dict[str, Any]:
        """What is saved."""
        rungs = vars(self.scheduler) if isinstance(self.scheduler, ASHAScheduler) else {}
        return {"entries": self.entries, "ended": self.ended, "rungs": rungs}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what was saved."""
        self.entries, self.ended = state["entries"], state["ended"]
        vars(self.scheduler).update(state["rungs"])

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Number the trials as Tune makes them: which of them starts first is chance."""
        for trial in trials:
            self.entries.setdefault(trial.trial_id, Entry(len(self.entries)))

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial's actor is there; also after a takeover and when a killed search goes on."""
        self.on_step_begin(iteration, trials)  # one that was made in this very step
        entry = self.entries[trial.trial_id]
        verb = "goes on" if entry.pages else "is tried again" if trial.run_metadata.num_failures else "starts"
        if source := trial.config.get(START_FROM):
            owner = self.entries.get(source.rpartition("/")[0].rpartition("/")[2].partition("-")[0])
            verb = f"goes on from trial {owner.number if owner else '?'}"
        self.say(f"trial {entry.number} {verb}: {format_point(trial.config)}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial has ended an epoch."""
        entry = self.entries[trial.trial_id]
        entry.pages.append({key: result[key] for key in self.figures() if key in result})
        waited = time.monotonic() - self.last_line.get(trial.trial_id, 0.0)
        if waited >= LINE_SECONDS and result["epoch"] < self.epochs:
            self.last_line[trial.trial_id] = time.monotonic()
            self.say(f"trial {entry.number}  {self.page_line(entry.pages[-1])}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has ended, or a scheduler has stopped it."""
        entry = self.entries[trial.trial_id]
        done = bool(entry.pages) and entry.pages[-1]["epoch"] >= self.epochs
        said = self.page_line(entry.pages[-1]) if entry.pages else "before its first report"
        self._end(trial, f"trial {entry.number} {'finished' if done else 'stopped early'}  {said}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has failed for good."""
        self.on_step_begin(iteration, trials)
        number = self.entries[trial.trial_id].number
        self._end(trial, f"trial {number} failed: {failure_reason(trial)}")

    def figures(self) -> list[str]:
        """Names of what is remembered of a page."""
        return list(dict.fromkeys(["epoch", *dict(self.space.objectives), "label_free", *SCORES]))

    def page_line(self, page: dict[str, float]) -> str:
        """A page in one line, for example `epoch 12/80  label_free 0.412  acc 0.861`."""
        figures = "  ".join(f"{key} {value:.3f}" for key, value in page.items() if key != "epoch")
        return f"epoch {int(page['epoch'])}/{self.epochs}  {figures}"

    def _end(self, trial: Trial, said: str) -> None:
        self.ended.add(trial.trial_id)
        self.say(f"{said}  ({len(self.ended)} of {self.trials} trials done)")


def format_point(point: Point) -> str:
    """A point in one line."""
    values = {key: value for key, value in point.items() if key != START_FROM}
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def failure_reason(trial: Trial) -> str:
    """A failed trial's own words, without Ray's layers and tracebacks around them."""
    error = trial.get_pickled_error() or trial.get_error()
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
