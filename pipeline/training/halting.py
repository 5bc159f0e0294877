"""Reports what is wrong with a run and, depending on the alarm's level, ends this attempt (`rollback.py`)."""

from __future__ import annotations

import torch

from pipeline.alarms import RULES, Alarm, all_alarms, judge, new_alarms, skipped_steps
from pipeline.collectives import from_rank_zero, rank
from pipeline.errors import Diverged
from pipeline.training.health import non_finite
from pipeline.training.rollback import HALTING, Halt, read_rollbacks
from pipeline.training.run import Run


def raise_alarms(run: Run) -> None:
    """Report what is wrong with the epoch, once while it lasts, and halt if the alarm's level says so."""
    history, facts = run.state.history, run.job.alarm_facts
    found = judge(history, facts)
    if new := new_alarms(history, facts):
        report_alarms(run, [f"warning: after epoch {alarm.epoch} {alarm.text}" for alarm in new])
    levels = run.job.config.alarms.levels
    if set(HALTING) & set(levels.values()):
        halting = sorted((a for a in found if levels[a.kind] in HALTING), key=lambda a: HALTING.index(levels[a.kind]))
        if agreed := agree_on_alarm(run, halting[0] if halting else None):
            raise halt(run, agreed)


def check_run_finite(run: Run) -> None:
    """Halt, or raise Diverged, before non-finite values reach a checkpoint; on all workers alike.

    Skipped steps have damaged nothing: unless the alarm's level halts the run, it continues.
    """
    state, level = run.state, run.job.config.alarms.not_finite
    where = f"in epoch {state.epochs_done + 1}, at or before step {state.step}"
    damaged = non_finite(state.loss_sums, [*state.model.parameters(), *state.model.buffers()], where)
    reason = damaged or skipped_steps(int(state.skipped))
    if reason and level in HALTING:
        raise halt(run, Alarm(state.epochs_done + 1, "not_finite", reason))
    if damaged:
        raise Diverged(damaged)


def agree_on_alarm(run: Run, alarm: Alarm | None) -> Alarm | None:
    """Rank 0's alarm on every worker: only rank 0 has the scores that are judged. Each worker keeps its own text."""
    kinds = ["", *RULES]
    number = torch.tensor(kinds.index(alarm.kind if alarm else ""), device=run.state.skipped.device)
    kind = kinds[int(from_rank_zero(number))]
    return Alarm(run.state.epochs_done, kind, alarm.text if alarm else "") if kind else None


def halt(run: Run, alarm: Alarm) -> Halt:
    """Report the halt in a line, and return the exception to raise."""
    level = run.job.config.alarms.levels[alarm.kind]
    report_alarms(run, [f"alarms.{alarm.kind}={level} halts the run at epoch {alarm.epoch}: {alarm.text}"], alarm.kind)
    return Halt(level, alarm)


def report_alarms(run: Run, lines: list[str], *kinds: str) -> None:
    """Show lines, and tag MLflow's run with all kinds of alarm so far, including those that rolled it back."""
    if rank() == 0:
        before = [rollback["kind"] for rollback in read_rollbacks(run.job.folder)]
        found = [alarm.kind for alarm in all_alarms(run.state.history, run.job.alarm_facts)]
        run.reporter.alarms(lines, dict.fromkeys([*before, *found, *kinds]))
