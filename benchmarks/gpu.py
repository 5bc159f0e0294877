"""One command for when there is a GPU: correctness, speed and memory of each part, and a training run.

    python -m benchmarks.gpu --minutes 10 --images UCMerced_LandUse/Images    # call it again to go on
    python -m benchmarks.gpu --tiny                                           # a rehearsal on a CPU

Needs only torch and torchvision. Every result is written to `--out` at once, so a call can end at any time: the next
one skips finished measurements and repeats failed ones. The remaining time goes to training on `--images` at the
reference's settings; the checkpoint lies beside the results. Exit status 1 when the golden vectors differ.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_speeds import TINY, Measurement, Result, Sizes, measurements
from benchmarks.gpu_training import read_images, train
from benchmarks.loop import Recipe
from benchmarks.measure import hardware

COLUMNS = ("measurement", "speed", "spread", "ms", "TFLOP/s", "of peak", "GiB", "more")
TRAINING_SECONDS = 30  # less is not worth reading the images


class Session:
    """The results so far, on disk after every change.

    ValueError when the file holds results of another machine or other sizes: a table covers only one machine.
    """

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self.path = path
        self.values: dict[str, Any] = {**about, "results": {}}
        if path.is_file():
            self.values = json.loads(path.read_text())
            if others := {key: self.values.get(key) for key in about if self.values.get(key) != about[key]}:
                raise ValueError(f"{path} holds results of {others}, this is {about}; give another --out")

    @property
    def results(self) -> dict[str, Result]:
        """By the names of the measurements."""
        return dict(self.values["results"])

    def record(self, name: str, result: Result) -> None:
        """Add a result; a call that ends in the middle leaves the file as it was."""
        self.values["results"][name] = result
        self.values["hardware"] = hardware()
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.values, indent=1) + "\n")
        partial.replace(self.path)

    def is_missing(self, name: str) -> bool:
        """Whether a measurement has not been made, or failed."""
        return "error" in self.results.get(name, {"error": "not yet"})


def measure_all(session: Session, todo: list[Measurement], deadline: float, device: torch.device, sizes: Sizes) -> None:
    """Make the missing measurements while there is time; one that fails does not stop the others."""
    for name, seconds, measure in todo:
        if not session.is_missing(name):
            continue
        if time.monotonic() + seconds > deadline:
            print(f"{name}: not begun, {deadline - time.monotonic():.0f} s are left; call again")
            continue
        start = time.monotonic()
        try:
            result = measure(device, sizes)
        except Exception as error:  # out of memory above all
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        session.record(name, result | {"took_seconds": time.monotonic() - start})
        print(" | ".join(row(name, result)), flush=True)
        release_memory()


def release_memory() -> None:
    """Free the memory that a measurement leaves in use, including compiled code."""
    if "torch._dynamo" in sys.modules:  # importing it takes longer than a measurement
        torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def train_on(folder: Path, session: Session, deadline: float, device: torch.device, recipe: Recipe) -> None:
    """Use the rest of the time for a training."""
    if deadline - time.monotonic() < TRAINING_SECONDS:
        print("training: not begun; call again")
        return
    images, classes = read_images(folder)
    recipe = replace(recipe, clusters=int(classes.max()) + 1)
    history = train(images, classes, recipe, session.path.with_suffix(".pt"), deadline, device)
    seconds = [epoch["seconds"] for epoch in history]
    session.record(
        "training",
        {"count": len(images), "unit": "images/s", "seconds": seconds, "epochs": recipe.epochs, "history": history},
    )


def row(name: str, result: Result) -> tuple[str, ...]:
    """The cells of one result; empty where it has nothing to say."""
    if "error" in result:
        return (name, *[""] * (len(COLUMNS) - 2), result["error"].splitlines()[0][:80])
    cells = dict.fromkeys(COLUMNS, "") | {"measurement": name, "more": remark(result)}
    if "seconds" in result:
        median = statistics.median(result["seconds"])
        cells |= {"speed": f"{result['count'] / median:,.0f} {result['unit']}", "ms": f"{1000 * median:,.1f}"}
        cells["spread"] = f"{(max(result['seconds']) - min(result['seconds'])) / median:.0%}"
    if "tflops" in result:
        cells["TFLOP/s"] = f"{result['tflops']:.1f}"
    if result.get("share_of_peak"):
        cells["of peak"] = f"{result['share_of_peak']:.0%}"
    if result.get("peak_gib"):
        cells["GiB"] = f"{result['peak_gib']:.1f}"
    return tuple(cells.values())


def remark(result: Result) -> str:
    """Details that only one kind of measurement has."""
    if "errors" in result:
        errors = ", ".join(f"{name.removeprefix('torch.')} {error:.0e}" for name, error in result["errors"].items())
        return f"{'PASS' if result['passed'] else 'FAIL'}: relative errors {errors}"
    if "history" in result:
        return f"epoch {len(result['history'])} of {result['epochs']}, NMI {result['history'][-1]['nmi']:.3f}"
    if "ours_over_reference" in result:
        return f"ours is {result['ours_over_reference']:.1f} times as fast"
    if "encode_seconds" in result:
        return f"features {result['encode_seconds']:.2f} s, k-means {result['kmeans_seconds']:.2f} s"
    if "iterations" in result:
        return f"K={result['clusters']}, {result['restarts']} starts, {result['iterations']} iterations"
    return ""


def table(session: Session) -> str:
    """All results as Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(name, result) for name, result in session.results.items())]
    return "\n".join([session.values.get("hardware", ""), "", *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def main() -> int:
    """Measure, train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of this call")
    parser.add_argument("--images", type=Path, help="UC-Merced as a folder with a sub-folder for each class")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results; the table goes to the same .md")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    device, sizes = torch.device("cuda" if torch.cuda.is_available() else "cpu"), TINY if args.tiny else Sizes()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU"
    try:
        session = Session(
            args.out, {"device": name, "torch": torch.__version__, "sizes": "tiny" if args.tiny else "full"}
        )
    except ValueError as error:
        raise SystemExit(str(error)) from error
    measure_all(session, measurements(sizes), deadline, device, sizes)
    if args.images is not None:
        train_on(args.images, session, deadline, device, sizes.training)
    args.out.with_suffix(".md").write_text(table(session))
    print(table(session))
    return 0 if session.results["golden vectors"].get("passed") else 1


if __name__ == "__main__":
    sys.exit(main())
