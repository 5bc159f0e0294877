"""What the driver knows about the trials: what it prints and remembers while they run, and which was best."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import cloudpickle
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from pipeline.errors import first_line
from pipeline.progress import Echo
from pipeline.report.search_page import ShownTrial
from pipeline.tuning.space import SCORES, SearchPoint, Space, format_point

LINE_SECONDS = 5.0  # a line this often for each trial is enough for a person
EQUAL = 0.05  # of the first objective's spread: trials that differ by less are ranked by the other objectives
TrialStatus = Literal["finished", "stopped", "failed"]
History = list[dict[str, float]]  # of each reported epoch: its number, the objectives and the scores


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search that has ended.

    Attributes
    ----------
    number : int
        From 0, in the order in which Tune made the trials, as in Optuna's pictures.
    trial : str
        Tune's id.
    reason : str
        Why it did not finish.
    point : dict
        The values that the search chose.
    history : list of dict
        Epoch, objectives and scores of each reported epoch.
    ended : float or None
        When it reported last, in seconds since 1970; None when it never did.
    """

    number: int
    trial: str
    status: TrialStatus
    reason: str
    point: SearchPoint
    history: History
    ended: float | None = None

    @property
    def epochs(self) -> int:
        """The last epoch that it reported, 0 without any."""
        return self.shown().epochs

    @property
    def last(self) -> dict[str, float]:
        """Objectives and scores of its last epoch."""
        return self.shown().last

    def shown(self) -> ShownTrial:
        """As the page of the search shows it."""
        return ShownTrial(self.number, self.status, self.reason, self.point, self.history)

    def as_dict(self) -> dict[str, Any]:
        """As the summary of the search has it."""
        return {
            "number": self.number,
            "trial": self.trial,
            "status": self.status,
            "reason": self.reason,
            "epochs": self.epochs,
            **self.last,
            "point": self.point,
        }


class Trials(Callback):
    """All trials of a running search; Ray Tune calls it in the driver's process.

    Its state is saved with Tune's own. It includes the rungs of ASHA, which Tune would forget, so a resumed search
    compares with all earlier trials.

    Parameters
    ----------
    space : Space
    epochs : int
        Of a trial that finishes.
    count : int
        Trials in all.
    scheduler : TrialScheduler
    echo : callable
        Takes the lines of progress.

    Attributes
    ----------
    numbers : dict
        Tune's id of a trial -> its number.
    histories : dict
        Tune's id of a trial -> its history.
    """

    def __init__(self, space: Space, epochs: int, count: int, scheduler: TrialScheduler, echo: Echo) -> None:
        self.space, self.epochs, self.count, self.scheduler, self.echo = space, epochs, count, scheduler, echo
        self.numbers: dict[str, int] = {}
        self.histories: dict[str, History] = {}
        self.ended: set[str] = set()
        self.last_line: dict[str, float] = {}

    def get_state(self) -> dict[str, Any]:
        """What Tune saves."""
        rungs = save_scheduler(self.scheduler) if isinstance(self.scheduler, ASHAScheduler) else None
        return {"numbers": self.numbers, "histories": self.histories, "ended": self.ended, "rungs": rungs}

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what was saved."""
        self.numbers, self.histories, self.ended = state["numbers"], state["histories"], state["ended"]
        if state["rungs"] is not None:
            restore_scheduler(self.scheduler, state["rungs"])

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Number the trials as Tune makes them, because the order in which they start is random."""
        for trial in trials:
            self.numbers.setdefault(trial.trial_id, len(self.numbers))
            self.histories.setdefault(trial.trial_id, [])

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial's actor has started: the trial is new, failed before, or belongs to a resumed search."""
        self.on_step_begin(iteration, trials)  # one that was made in this very step
        verb = "resumes" if self.histories[trial.trial_id] else "starts again" if trial.num_failures else "starts"
        self.echo(f"trial {self.numbers[trial.trial_id]} {verb}: {format_point(trial.config)}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial has reported an epoch."""
        name = trial.trial_id
        kept = dict.fromkeys(["epoch", *self.space.metrics, "label_free", *SCORES])
        self.histories[name].append({key: result[key] for key in kept if key in result})
        waited = time.monotonic() - self.last_line.get(name, 0.0)
        if waited >= LINE_SECONDS and result["epoch"] < self.epochs:
            self.last_line[name] = time.monotonic()
            self.echo(f"trial {self.numbers[name]}  {self._progress(name)}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has finished, or a scheduler has stopped it."""
        finished = last_epoch(self.histories[trial.trial_id]) >= self.epochs
        self._end(trial, f"{'finished' if finished else 'stopped early'}  {self._progress(trial.trial_id)}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial has failed, and is not started again."""
        self.on_step_begin(iteration, trials)
        self._end(trial, f"failed: {trial_failure(trial)}")

    def rows(self, trials: Sequence[Trial]) -> list[TrialRow]:
        """A row for each of Tune's trials, by number."""
        return sorted((self._row(trial) for trial in trials), key=lambda row: row.number)

    def _row(self, trial: Trial) -> TrialRow:
        number, history = self.numbers[trial.trial_id], self.histories[trial.trial_id]
        status: TrialStatus = "finished" if last_epoch(history) >= self.epochs else "stopped"
        reason = "" if status == "finished" else f"behind other trials after epoch {last_epoch(history)}"
        if trial.status == Trial.ERROR:
            status, reason = "failed", trial_failure(trial)
        ended = (trial.last_result or {}).get("timestamp")
        return TrialRow(number, trial.trial_id, status, reason, trial.config, history, ended)

    def _progress(self, name: str) -> str:
        """The last epoch of a trial in one line, for example `epoch 12/80  label_free 0.412  acc 0.861`."""
        if not self.histories[name]:
            return "before its first report"
        metrics = self.histories[name][-1]
        values = "  ".join(f"{key} {value:.3f}" for key, value in metrics.items() if key != "epoch")
        return f"epoch {int(metrics['epoch'])}/{self.epochs}  {values}"

    def _end(self, trial: Trial, line: str) -> None:
        self.ended.add(trial.trial_id)
        done = f"({len(self.ended)} of {self.count} trials done)"
        self.echo(f"trial {self.numbers[trial.trial_id]} {line}  {done}")


def last_epoch(history: History) -> int:
    """The last epoch of a history, 0 for an empty one."""
    return int(history[-1]["epoch"]) if history else 0


def trial_failure(trial: Trial) -> str:
    """A failed trial's own reason, without the layers and tracebacks that Ray puts around it.

    Ray's own methods look in the storage, to which the error's file is copied some time after the failure.
    """
    file = Path(trial.pickled_error_file or "")
    error = cloudpickle.loads(file.read_bytes()) if file.is_file() else trial.get_pickled_error() or trial.get_error()
    return first_line(getattr(error, "cause", None) or error)


def save_scheduler(scheduler: TrialScheduler) -> bytes:
    """The state of a scheduler, which can only save itself to a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler")
        scheduler.save(str(file))
        return file.read_bytes()


def restore_scheduler(scheduler: TrialScheduler, state: bytes) -> None:
    """Put a saved state back."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler")
        file.write_bytes(state)
        scheduler.restore(str(file))


def oriented_values(row: TrialRow, space: Space) -> tuple[float, ...]:
    """A trial's last values of the objectives, signed so that higher is better."""
    return tuple(row.last[metric] if mode == "max" else -row.last[metric] for metric, mode in space.objectives)


def pareto_front(rows: Sequence[TrialRow], space: Space) -> list[TrialRow]:
    """Trials that no other one beats in all objectives at once; the best one, where there is one objective."""
    values = {row.number: oriented_values(row, space) for row in rows}

    def is_beaten(row: TrialRow) -> bool:
        mine = values[row.number]
        return any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in values.values())

    return [row for row in rows if not is_beaten(row)]


def best_trial(rows: Sequence[TrialRow], space: Space) -> TrialRow | None:
    """The best of the finished trials, or of the stopped ones where none finished; None when all failed.

    If any trial finished, stopped ones are left out: metrics after fewer epochs cannot be compared. With several
    objectives the best is on the Pareto front: of the trials about equal in the first objective, the best in the next.
    """
    candidates = [row for row in rows if row.status == "finished"] or [
        row for row in rows if row.status == "stopped" and row.history
    ]
    if not candidates:
        return None
    values = {row.number: oriented_values(row, space) for row in candidates}
    top, bottom = max(value[0] for value in values.values()), min(value[0] for value in values.values())
    equal = EQUAL * (top - bottom) if len(space.objectives) > 1 else 0.0
    near = [row for row in pareto_front(candidates, space) if values[row.number][0] >= top - equal]
    return max(near, key=lambda row: values[row.number][1:] + values[row.number][:1])
