"""From the spool to the server, each point once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.tracking.spool import Point, Spool
from pipeline.tracking.store import RunRef, attach, client_for

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH_METRICS = 1000  # MLflow's limit


class Sender:
    """Moves a spool's content to the server. Raises what the server raises, and can be called again."""

    def __init__(self, ref: RunRef, spool: Spool, *, reopen: bool) -> None:
        self.ref = ref
        self._spool, self._reopen = spool, reopen
        self._connection: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._steps: dict[str, set[int]] = {}

    def send(self) -> None:
        """Deliver points, then files, then the status, connecting first if necessary."""
        try:
            client = self._connection = self._connection or self._connect()
            self._send_points(client)
            for path, folder in self._spool.files():
                client.log_artifact(self.ref.run_id, str(path), folder or None)
                path.unlink()
            if self._spool.status:
                client.set_terminated(self.ref.run_id, *self._spool.status)
                self._spool.status = None
                self._spool.save()
        except Exception:
            self._connection = None  # a lost reply leaves it open what arrived: ask again before the next try
            raise

    def _connect(self) -> MlflowClient:
        client = client_for(self.ref.uri)
        run = attach(client, self.ref, reopen=self._reopen)
        self.ref = replace(self.ref, run_id=run.info.run_id)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._steps = {}
        return client

    def _send_points(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        waiting = list(self._spool.points.values())
        try:
            for start in range(0, len(waiting), BATCH_METRICS):
                batch = waiting[start : start + BATCH_METRICS]
                fresh = [point for point in batch if not self._has_arrived(client, point)]
                if fresh:
                    client.log_batch(self.ref.run_id, [Metric(p.key, p.value, p.timestamp, p.step) for p in fresh])
                for point in batch:
                    self._confirm(point)
        finally:
            if waiting:
                self._spool.save()

    def _has_arrived(self, client: MlflowClient, point: Point) -> bool:
        last = self._last_step.get(point.key)
        if last is None or point.step > last:
            return False
        if point.key not in self._steps:
            history = client.get_metric_history(self.ref.run_id, point.key)
            self._steps[point.key] = {metric.step for metric in history}
        return point.step in self._steps[point.key]

    def _confirm(self, point: Point) -> None:
        del self._spool.points[point.key, point.step]
        self._last_step[point.key] = max(point.step, self._last_step.get(point.key, point.step))
        if point.key in self._steps:
            self._steps[point.key].add(point.step)
