"""The whole pipeline on millions of small images on one machine: its time, its memory by kind of process, its resumes.

    python -m benchmarks.millions --images 1000000
    python -m benchmarks.millions --images 1000000 3000000 10000000      # with bytes per image

Each step is a command as a user would give it: images are made, ingested, trained on in streaming mode for one epoch
with an E-step before and after it, and assigned. Training is killed with signal 9 `--kills` times (in the epoch, in
the E-step, at the end), assigning once, and each time the same command continues. Peak memory is sampled every second.

FOLDER/measurements.json has the measurements; the same command continues with the first missing step. Exit status 1
when a resume repeated more than an interval between two checkpoints, or an image is not there exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.dataset as pads

from benchmarks.measure import conclude
from benchmarks.millions_tables import memory_table, time_table
from benchmarks.processes import Command, Lines, Peak, Peaks
from benchmarks.small_encoder import LEDGER, steps_made
from pipeline.data.shards import read_manifest
from pipeline.inference.assign import REPORTS
from pipeline.inference.image_parts import shard_parts

ROOT = Path(__file__).parent.parent
CONFIG, BATCH = ROOT / "benchmarks" / "millions.yaml", 4096
CHECKPOINTS = 20  # in the epoch
LEAST_INTERVAL = 10  # steps, which take longer than a checkpoint does to arrive in storage
ROWS_PER_SHARD = 50_000
AFTERWARDS = 2.0  # seconds from the start of an E-step or of the ending to the kill in it
BEGUN = r"epoch +0/1  |resumed after epoch 0, "  # the line that the steps begin with
TRAINED = r"epoch +1/1  |resumed after epoch 1, "  # the line that the ending begins with
INTERRUPTED, KILLED = "interrupted", "killed"  # how a command ended
EPOCH, E_STEP, END = "in the epoch", "in the E-step", "at the end"  # where it was killed
DIGPRO = [sys.executable, "-m", "pipeline.cli"]
ENVIRONMENT = {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}  # a cluster of its own; the encoder can be imported

Entry = dict[str, Any]
"""What was measured of a step, as JSON has it."""


@dataclass(frozen=True)
class Scale:
    """A number of images, and how they go through the pipeline."""

    root: Path
    images: int
    size: int = 8
    clusters: int = 1000
    kills: int = 3

    @property
    def folder(self) -> Path:
        """Folder of all files for this number of images."""
        return self.root / str(self.images)

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.folder / "runs" / "millions"

    @property
    def steps(self) -> int:
        """Of the epoch."""
        return self.images // BATCH

    @property
    def interval(self) -> int:
        """Steps between two checkpoints."""
        return max(LEAST_INTERVAL, self.steps // CHECKPOINTS)

    def settings(self) -> list[str]:
        """Arguments of `digpro train`."""
        values = {
            "name": "millions",
            "storage": self.run.parent,
            "data.path": self.folder / "shards",
            "data.image_size": self.size,
            "views.size": self.size,
            "method.num_clusters": self.clusters,
            "checkpoint.every_steps": self.interval,
        }
        return [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]


class KillPoint(NamedTuple):
    """Where training is killed: at a step of the epoch, or some seconds after it."""

    where: str
    step: int


class Records:
    """What was measured, in a JSON file: after an interruption the same arguments continue.

    Raises
    ------
    SystemExit
        When the file was made with other arguments.
    """

    def __init__(self, file: Path, arguments: dict[str, Any]) -> None:
        self.file = file
        self.values: dict[str, Any] = {"arguments": arguments, "sizes": {}}
        if file.exists():
            self.values = json.loads(file.read_text())
        if (before := self.values["arguments"]) != arguments:
            raise SystemExit(f"{file} was measured with {before}, and now with {arguments}; give another --folder")

    def entry(self, images: int, step: str) -> Entry:
        """The entry of a step with this number of images."""
        entry: Entry = self.values["sizes"].setdefault(str(images), {}).setdefault(step, {"commands": [], "memory": {}})
        return entry

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = self.file.with_suffix(".tmp")
        partial_file.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(partial_file, self.file)


Step = Callable[[Scale, Entry, Callable[[], None]], None]


def measure(scale: Scale, records: Records, steps: Mapping[str, Step]) -> None:
    """Carry out the steps that are not done yet; each is recorded as soon as it is."""
    for name, step in steps.items():
        entry = records.entry(scale.images, name)
        if not entry.get("done"):
            print(f"{scale.images:,} images: {name}", flush=True)
            step(scale, entry, records.save)
            entry["seconds"] = sum(command["seconds"] for command in entry["commands"])
            entry["done"] = True
            records.save()


def generate(scale: Scale, entry: Entry, save: Callable[[], None]) -> None:
    """Make the images."""
    made = [str(scale.folder / "source"), "--images", str(scale.images), "--size", str(scale.size)]
    carry_out(scale, entry, save, [sys.executable, "-m", "benchmarks.many_images", *made])


def ingest(scale: Scale, entry: Entry, save: Callable[[], None]) -> None:
    """Turn them into shards."""
    places = [f"parquet:{scale.folder / 'source'}", str(scale.folder / "shards")]
    carry_out(scale, entry, save, [*DIGPRO, "ingest", *places, "--rows-per-shard", str(ROWS_PER_SHARD)])


def train(scale: Scale, entry: Entry, save: Callable[[], None]) -> None:
    """Train, killed and continued at each of the kill points."""
    points, ended = kill_points(scale.kills, scale.steps, scale.interval), False
    while not ended:
        number = len(entry["commands"]) + 1
        ledger = scale.folder / "steps" / f"{number:02d}"
        ledger.mkdir(parents=True, exist_ok=True)
        killed = kills(entry)
        watch = TrainingWatch(scale, ledger, points[killed] if killed < len(points) else None)
        ended = carry_out(
            scale,
            entry,
            save,
            [*DIGPRO, "train", "--preset", str(CONFIG), *scale.settings()],
            environment={LEDGER: str(ledger)},
            phase=training_phase,
            doomed=watch.doomed,
            note=watch.note,
        )
    entry |= training_facts(scale, entry["commands"])


def assign(scale: Scale, entry: Entry, save: Callable[[], None]) -> None:
    """Assign all images by the trained model, killed once half of their parts are there."""
    out, shards = scale.folder / "assigned", str(scale.folder / "shards")
    half, ended = len(shard_parts(shards, read_manifest(shards)).parts) / 2, False
    while not ended:
        killed, before = kills(entry) > 0, parts_done(out)
        ended = carry_out(
            scale,
            entry,
            save,
            [*DIGPRO, "assign", str(scale.run), shards, str(out)],
            doomed=lambda lines, killed=killed: not killed and len(parts_done(out)) >= half,
        )
    parts = parts_done(out)
    entry["parts"] = {"all": len(parts), "kept": sum(parts[name] == time for name, time in before.items())}
    entry["each_once"] = is_each_once(out / "assignments.parquet", scale.images)


def carry_out(
    scale: Scale,
    entry: Entry,
    save: Callable[[], None],
    arguments: list[str],
    *,
    environment: Mapping[str, str] | None = None,
    note: Callable[[Command], dict[str, Any]] = lambda command: {},
    **options: Any,
) -> bool:
    """Run a command, and record it with its memory and the result of `note`; returns whether it ended by itself.

    `options` are those of `Command.run`. An interrupted command is recorded too.

    Raises
    ------
    SystemExit
        When the command fails; the same call of the benchmark begins with it.
    """
    peaks: Peaks = {
        phase: {kind: Peak(**peak) for kind, peak in kinds.items()} for phase, kinds in entry["memory"].items()
    }
    log, ended = scale.folder / "log", INTERRUPTED
    command = Command(arguments, log, {**ENVIRONMENT, **(environment or {})}, peaks)
    try:
        command.run(**options)
        ended = KILLED if command.status is None else "by itself"
    finally:
        entry["commands"].append({"ended": ended, "seconds": command.seconds, **note(command)})
        entry["memory"] = {
            phase: {kind: asdict(peak) for kind, peak in kinds.items()} for phase, kinds in peaks.items()
        }
        save()
    if command.status:
        raise SystemExit(f"a command ended with status {command.status} ({' '.join(arguments)}); see {log}")
    return command.status == 0


def kills(entry: Entry) -> int:
    """How often a step has been killed until now."""
    return sum(command["ended"] == KILLED for command in entry["commands"])


def kill_points(kills: int, steps: int, interval: int) -> list[KillPoint]:
    """Where training is killed, in order: in the epoch, the second last time in the E-step, and last at the end.

    A single kill is in the epoch; two are in the epoch and in the E-step. Kills in the epoch are half-way between two
    checkpoints.
    """
    last = [KillPoint(E_STEP, steps), KillPoint(END, steps)][: max(kills - 1, 0)]
    inside = kills - len(last)
    at = [steps * (n + 1) // (inside + 1) // interval * interval + interval // 2 for n in range(inside)]
    return [*(KillPoint(EPOCH, step) for step in at), *last]


class TrainingWatch:
    """Watches a training run from outside: its steps by their ledger, its resume by what it prints."""

    def __init__(self, scale: Scale, ledger: Path, point: KillPoint | None) -> None:
        self.scale, self.ledger, self.point = scale, ledger, point
        self.arrived: float | None = None
        """When the kill point was reached."""

    def doomed(self, lines: Lines) -> bool:
        """Whether to kill the run now."""
        if self.point is None or not self._is_there(self.point, lines):
            return False
        self.arrived = self.arrived or time.monotonic()
        return self.point.where == EPOCH or time.monotonic() - self.arrived >= AFTERWARDS

    def _is_there(self, point: KillPoint, lines: Lines) -> bool:
        if point.where == END:
            return has_ended(self.scale.run)
        return (resumed_at(lines, self.scale.steps) or 0) + steps_made(self.ledger) >= point.step

    def note(self, command: Command) -> dict[str, Any]:
        """What to record of a command: the step it began with, None if it did not get that far, and its steps."""
        made, start = steps_made(self.ledger), resumed_at(command.lines, self.scale.steps)
        where = self.point.where if self.point and command.status is None else None
        return {
            "from_step": 0 if made and start is None else start,
            "made": made,
            "steps_seconds": seconds_since(BEGUN, command) if where == EPOCH else None,
            "ending_seconds": seconds_since(TRAINED, command),
            "where": where,
        }


def seconds_since(line: str, command: Command) -> float | None:
    """Time from the last line that matches to the end of a command; None if none does."""
    found = [seconds for seconds, text in command.lines if re.match(line, text)]
    return command.seconds - found[-1] if found else None


def resumed_at(lines: Lines, steps: int) -> int | None:
    """The step at which the run was resumed, according to its lines; None if they do not say."""
    found = [re.match(r"resumed after epoch (\d+), step (\d+)", line) for _, line in lines]
    return next((int(match[1]) * steps + int(match[2]) for match in found if match), None)


def has_ended(run: Path) -> bool:
    """Whether the checkpoint of the end of the epoch is there; the ending begins with it."""
    for about in run.glob("checkpoint_*/about.json"):
        with contextlib.suppress(OSError, ValueError):  # being written
            if json.loads(about.read_text())["epoch"] == 1:
                return True
    return False


def training_phase(lines: Lines) -> str:
    """ "training", or "ending" from when the epoch and its E-step are done."""
    return "ending" if any(re.match(TRAINED, line) for _, line in lines) else "training"


def training_facts(scale: Scale, commands: list[dict[str, Any]]) -> Entry:
    """Times and scores from the run's summary, and the ledger of steps of all commands."""
    summary = json.loads((scale.run / "summary.json").read_text())
    last, total = summary["last_epoch"], summary["seconds"]
    inside = [(BATCH * c["made"], c["steps_seconds"]) for c in commands if c["steps_seconds"]]  # killed in the epoch
    return {
        "phases": {
            "E-step at the start": total["estep"] - last["seconds_estep"],
            "E-step at the end": last["seconds_estep"],
            "ending": commands[-1]["ending_seconds"],
        },
        "images_per_second": sum(made for made, _ in inside) / sum(seconds for _, seconds in inside)
        if inside
        else None,
        "scores": summary["scores"],
        "last_epoch": last,
        "ledger": step_ledger(commands, scale.steps, scale.interval),
        "each_once": is_each_once(summary["outputs"]["assignments"], scale.images),
    }


def step_ledger(commands: list[dict[str, Any]], steps: int, interval: int) -> dict[str, Any]:
    """The steps that the commands of a run made in all, and those that each resume repeated.

    It holds if no resume repeats more than an interval between two checkpoints, and the last command reaches the end.
    """
    spans = [(c["from_step"], c["from_step"] + c["made"]) for c in commands if c["from_step"] is not None]
    repeated = [reached - start for (_, reached), (start, _) in pairwise(spans)]
    return {
        "steps": steps,
        "interval": interval,
        "made": sum(reached - start for start, reached in spans),
        "repeated": repeated,
        "holds": all(0 <= number <= interval for number in repeated) and spans[-1][1] == steps,
    }


def parts_done(out: Path) -> dict[str, float]:
    """The times at which parts were assigned, by the names of their reports."""
    return {report.name: report.stat().st_mtime for report in (out / REPORTS).glob("part-*.json")}


def is_each_once(assignments: str | Path, images: int) -> bool:
    """Whether the rows of Parquet files have each index from 0 to `images` - 1 exactly once."""
    found = np.zeros(images, dtype=np.uint8)
    for batch in pads.dataset(str(assignments), format="parquet").to_batches(columns=["index"]):
        index = batch.column("index").to_numpy()
        if index.min(initial=0) < 0 or index.max(initial=0) >= images:
            return False
        np.add.at(found, index, 1)
    return bool((found == 1).all())


def verdicts(sizes: Mapping[str, dict[str, Entry]]) -> Iterator[tuple[str, bool]]:
    """What has to hold, in words, and whether it does."""
    for images, steps in sizes.items():
        ledger, parts = steps["train"]["ledger"], steps["assign"]["parts"]
        again = ", ".join(map(str, ledger["repeated"])) or "none"
        yield (
            f"{int(images):,} images: {ledger['steps']} steps, of which resumes repeated {again}; "
            f"a checkpoint every {ledger['interval']}",
            ledger["holds"],
        )
        yield f"{int(images):,} images: training leaves each image once", steps["train"]["each_once"]
        kept = f"kept {parts['kept']} of {parts['all']} parts"
        yield (
            f"{int(images):,} images: assign leaves each image once; continued, it {kept}",
            steps["assign"]["each_once"],
        )


STEPS: dict[str, Step] = {"generate": generate, "ingest": ingest, "train": train, "assign": assign}


def main() -> int:
    """Measure each number of images, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000_000], help="numbers of images, one by one")
    parser.add_argument("--size", type=int, default=8, help="side of an image in pixels")
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=3, help="of training")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/millions"), help="of all files; 3 GB a 2 million images"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = {"size": args.size, "clusters": args.clusters, "kills": args.kills}
    records = Records(args.folder / "measurements.json", options)
    for images in args.images:
        measure(Scale(args.folder.absolute(), images, **options), records, STEPS)
    sizes = {str(images): records.values["sizes"][str(images)] for images in sorted(args.images)}
    found = list(verdicts(sizes))
    print(f"\n{time_table(sizes)}\n\n{memory_table(sizes)}\n")
    print("\n".join(f"{'PASS' if holds else 'FAIL'}  {text}" for text, holds in found))
    conclude(records.values, records.file)
    return 0 if all(holds for _, holds in found) else 1


if __name__ == "__main__":
    sys.exit(main())
