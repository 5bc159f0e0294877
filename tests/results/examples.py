"""Made-up rows, runs and records."""

from __future__ import annotations

from typing import Any

from benchmarks.results.definitions import DataSet, Definitions, Published, Row
from benchmarks.results.floors import Floor
from benchmarks.results.records import Call, Record, SeedResult, seed_result

CALL = Call(date="2026-11-25", seconds=200.0, commit="0123456789abcdef", hardware="a processor, 2 cores")
FLOOR = Floor(
    what="k-means on 16 x 16 pixels", runs=10, scores={"nmi": (0.7, 0.01), "acc": (0.75, 0.02), "ari": (0.6, 0.0)}
)


def definitions() -> Definitions:
    """Two rows on digits, the second a difference from the first."""
    published = Published(what="others", acc=0.5, source="a paper")
    return Definitions(
        data_sets={
            "digits": DataSet(title="digits, 10 classes", published=[published], pictures={"curves.png": ["ours"]})
        },
        rows={
            "ours": Row(data="digits", preset="digits", about="the preset", settings={"optim.epochs": 4}),
            "theirs": Row(data="digits", preset="digits", like="ours", difference="groups are raw"),
        },
    )


def history(*accs: float) -> list[dict[str, float]]:
    """Metrics of epochs 0, 1 and so on, with these ACC."""
    initial = {"epoch": 0, "nmi": accs[0], "acc": accs[0], "ari": accs[0], "seconds_epoch": 1.0}
    trained = [
        {
            "epoch": n,
            "nmi": acc,
            "acc": acc,
            "ari": acc,
            "loss": 1.0,
            "seconds_epoch": 40.0,
            "images_per_second": 100.0 * n,
        }
        for n, acc in enumerate(accs[1:], 1)
    ]
    return [initial, *trained]


def result(*accs: float, status: str = "finished", reason: str = "", planned: int = 4) -> SeedResult:
    """The result of a run with these ACC after epochs 0, 1 and so on."""
    return seed_result(history(*accs), planned, status, reason, [CALL])


def record(row: str, *seeds: SeedResult, **more: Any) -> Record:
    """A record of seeds 0, 1 and so on."""
    command = f"python -m benchmarks.reproduce {row} --seeds {len(seeds)}"
    values = {"row": row, "command": command, "settings": {"optim.epochs": 4}, "floor": FLOOR} | more
    return Record(**values, seeds=dict(enumerate(seeds)))
