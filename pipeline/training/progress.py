"""What a run reports while it runs: metrics to MLflow, and progress lines to the driver's terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any

import ray

from pipeline.progress import Echo
from pipeline.tracking import RunWriter

POLL_SECONDS = 0.5
ALARMS = "alarms"  # MLflow's tag
LINE_SECONDS = 5.0  # a line this often is enough for a person


@ray.remote(num_cpus=0)
class Board:
    """Rank 0 leaves its news here and the driver fetches them; works on any cluster, without shared files."""

    def __init__(self) -> None:
        self.news: list[dict[str, Any]] = []
        self.checkpoint_wanted = False

    def post(self, item: dict[str, Any]) -> None:
        """Leave one item."""
        self.news.append(item)

    def take(self) -> list[dict[str, Any]]:
        """All items since the last call."""
        taken, self.news = self.news, []
        return taken

    def request_checkpoint(self) -> None:
        """Ask rank 0 for a checkpoint as soon as possible: the driver is about to shut down."""
        self.checkpoint_wanted = True

    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint has been requested; it stays True, because an answer can be lost on its way."""
        return self.checkpoint_wanted


class Reporter:
    """The worker's side: rank 0 has one that writes, the others a silent one."""

    def __init__(self, writer: RunWriter | None = None, board: Any = None) -> None:
        self.writer, self.board, self.stack = writer, board, ExitStack()
        self.request_known = False  # that the driver wants a last checkpoint

    def __enter__(self) -> Reporter:
        if self.writer is not None:
            self.stack.enter_context(self.writer)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.__exit__(kind, error, tb)

    def epoch(self, metrics: dict[str, float]) -> None:
        """Send an epoch's metrics out."""
        if self.writer is not None:
            self.writer.log(metrics, step=int(metrics["epoch"]))
        self._post({"metrics": dict(metrics)})

    def resumed(self, history: list[dict[str, float]], text: str) -> None:
        """Show a line at the driver; log past epochs again, in case MLflow misses some because a spool's node died."""
        if self.writer is not None:
            for metrics in history:
                self.writer.log(metrics, step=int(metrics["epoch"]))
        self.message(text)

    def alarms(self, lines: Iterable[str], kinds: Iterable[str]) -> None:
        """Show a line for each new alarm, and tag MLflow's run with the kinds that were raised so far."""
        for line in lines:
            self.message(line)
        if self.writer is not None:
            self.writer.tag(ALARMS, ", ".join(kinds))

    def take_request(self) -> bool:
        """Whether the driver asks for a checkpoint, True once; always False on workers without a board."""
        if self.board is None or self.request_known:
            return False
        with suppress(ray.exceptions.RayError):  # a busy board is asked again; if it is gone, the workers end too
            self.request_known = bool(ray.get(self.board.wants_checkpoint.remote(), timeout=5))
        return self.request_known

    def message(self, text: str) -> None:
        """Show a line at the driver's terminal."""
        self._post({"message": text})

    def _post(self, item: dict[str, Any]) -> None:
        if self.board is not None:
            self.board.post.remote(item)


class ProgressPrinter:
    """The driver's side: a thread that turns the board's news into lines, with throughput and the time left."""

    def __init__(self, board: Any, epochs: int, images_per_epoch: int, echo: Echo) -> None:
        self.board, self.epochs, self.images, self.echo = board, epochs, images_per_epoch, echo
        self.last_line, self.images_per_second = 0.0, 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProgressPrinter:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join(10)

    def _run(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            self._print_news()
        self._print_news()

    def _print_news(self) -> None:
        try:
            news = ray.get(self.board.take.remote(), timeout=5)
        except ray.exceptions.RayError:
            return  # the cluster is busy or going down: progress is not worth an error
        for item in news:
            if "message" in item:
                self.echo(item["message"])
            else:
                self._print_epoch(item["metrics"])

    def _print_epoch(self, metrics: dict[str, float]) -> None:
        epoch = int(metrics["epoch"])
        if rate := metrics.get("images_per_second"):  # the first entry holds the initial E-step only
            self.images_per_second = 0.8 * self.images_per_second + 0.2 * rate if self.images_per_second else rate
        if time.monotonic() - self.last_line < LINE_SECONDS and epoch < self.epochs:
            return
        self.last_line = time.monotonic()
        seconds = self.images / self.images_per_second if self.images_per_second else 0.0
        self.echo(progress_line(metrics, self.epochs, self.images_per_second, seconds))


def progress_line(metrics: dict[str, float], epochs: int, images_per_second: float, epoch_seconds: float) -> str:
    """One line of progress, for example `epoch  12/80  loss -1.623  acc 0.861  1,420 images/s  1:32 left`."""
    epoch = int(metrics["epoch"])
    parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}"]
    scores = ("acc", "nmi") if "acc" in metrics else ("label_free",)
    parts += [f"{name} {metrics[name]:.3f}" for name in ("loss", *scores, "label_churn") if name in metrics]
    if epoch:
        left = int((epochs - epoch) * epoch_seconds)
        parts += [f"{images_per_second:,.0f} images/s", f"{left // 60}:{left % 60:02d} left"]
    return "  ".join(parts)
