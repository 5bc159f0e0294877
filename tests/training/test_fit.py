"""Ray Train's failures: which are tried again, and how they are reported."""

from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError

from pipeline.training.fit import failure_reason, fit_through_starts, placement_attempts


class DyingStart:
    """A trainer, of which a worker dies while it is being started, so many times."""

    def __init__(self, deaths: int, cause: Exception) -> None:
        self.deaths, self.cause, self.fits = deaths, cause, 0

    def fit(self) -> str:
        self.fits += 1
        if self.fits <= self.deaths:
            raise ControllerError(self.cause)
        return "result"


def test_a_worker_that_dies_while_it_is_started_is_started_again() -> None:
    starts = DyingStart(2, RayActorError())
    assert fit_through_starts(starts, retries=2) == "result"
    assert starts.fits == 3


@pytest.mark.parametrize(("deaths", "cause"), [(3, RayActorError()), (1, ValueError("a fault of ours"))])
def test_starts_that_never_work_are_given_up(deaths: int, cause: Exception) -> None:
    with pytest.raises(ControllerError):
        fit_through_starts(DyingStart(deaths, cause), retries=2)


def test_the_first_workers_own_error_is_reported() -> None:
    error = WorkerGroupError("long tracebacks", {1: ValueError("bad value"), 0: KeyError("other")})
    assert failure_reason(error) == "in worker 1: ValueError: bad value"


def test_memory_that_ran_out_is_told_in_a_line_with_the_remedy() -> None:
    shortage = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 9)"
    cause = OutOfMemoryError(f"{shortage} was 22.60GB used / 23.54GB limit (0.96)\nObject store ...")
    line = "node 10.0.0.7 ran low on memory (22.60GB of 23.54GB in use)"
    assert failure_reason(WorkerGroupError("", {2: cause})).startswith(f"in worker 2: {line}")
    for error in (ControllerError(cause), cause):  # workers were ended together with who would have reported them
        assert failure_reason(error).startswith(line)
        assert "The same command resumes" in failure_reason(error)
        assert "data.mode=streaming" in failure_reason(error)
        assert len(failure_reason(error).splitlines()) == 1


def test_an_error_of_no_worker_is_reported_in_a_line() -> None:
    for error in (ValueError("bad\ntraceback"), ControllerError(ValueError("bad\ntraceback"))):
        assert failure_reason(error) == "ValueError: bad"


def test_the_wait_for_a_place_follows_rays_own_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement_attempts(10) == 10
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "45")
    assert placement_attempts(1) == 2
