"""All speed claims of this repository, measured one after the other and written as docs/performance.md.

    python -m benchmarks.performance                   # or `make bench`: about an hour on two idle cores
    python -m benchmarks.performance workers kmeans    # these sections only
    python -m benchmarks.performance --draw            # the page again, from what was measured

Each section is one benchmark in a process of its own. What it measures lies in docs/performance/SECTION.json, the
source of the page. Exit status 1 when a claim does not hold or a benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engines import CLAIM, PRESET
from benchmarks.first_batch import CLAIM as FIRST_BATCH_CLAIM
from benchmarks.kmeans import INERTIA_SLACK
from benchmarks.measure import ratios
from benchmarks.pipeline import FED_CLAIM, STREAMING_CLAIM
from benchmarks.resume import CLAIM as RESUME_CLAIM
from benchmarks.resume import WINDOW
from pipeline.provenance import git_commit

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RESULTS = DOCS / "performance.md", DOCS / "performance"
HEAD = """# Speed

Written by `make bench` (`python -m benchmarks.performance`) from the files in `docs/performance/`. Every figure is a
ratio of two things in one run, which took turns unless a row says otherwise, so that a busy or slow machine shows in
neither; above 1 the first is faster. Rounds: the median, and the least and the most of them.
"""


class Row(NamedTuple):
    """A line of the page: what over what, the ratio of each round, and the claim about their median.

    `unequal` says why the claim does not count: the faster one did less.
    """

    what: str
    ratios: list[float]
    claim: float | None = None
    note: str = ""
    unequal: str = ""

    @property
    def holds(self) -> bool:
        """Whether there is no claim, or it holds."""
        return self.claim is None or (statistics.median(self.ratios) >= self.claim and not self.unequal)

    def __str__(self) -> str:
        spread = f"{statistics.median(self.ratios):.2f} | {min(self.ratios):.2f} to {max(self.ratios):.2f}"
        said = f"does not hold{self.unequal and ', '}{self.unequal}" if not self.holds else "holds"
        verdict = "" if self.claim is None else f">= {self.claim:g}: {said}"
        return f"| {self.what} | {spread} | {verdict} | {self.note} |"


class Section(NamedTuple):
    """A benchmark: its arguments, and how its results become rows."""

    title: str
    command: list[str]
    rows: Callable[[dict[str, Any]], Iterator[Row]]


def feed_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Fed by the pipeline over the bare step."""
    for mode in ("resident", "streaming"):
        each = found[mode]
        note = f"{each['bare']:,.0f} images/s bare"
        yield Row(f"{mode}: fed over bare step", ratios(each["seconds"], "fed", "bare"), FED_CLAIM, note)
    fed = {mode: found[mode]["seconds"]["fed"] for mode in ("streaming", "resident")}
    yield Row("streaming over resident, one after the other", ratios(fed, "streaming", "resident"), STREAMING_CLAIM)


def first_batch_rows(found: dict[str, Any]) -> Iterator[Row]:
    """How little of an epoch is spent in waiting for its first batch."""
    seconds = found["seconds"]
    rest = [1 - wait / epoch for wait, epoch in zip(seconds["first_batch"], seconds["epoch"], strict=True)]
    note = f"epochs of {statistics.median(seconds['epoch']):.1f} s, each after an E-step"
    yield Row("an epoch less the wait for its first batch, over the epoch", rest, 1 - FIRST_BATCH_CLAIM, note)


def resume_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The first batch late in an epoch over the first one."""
    steps = found["steps"]
    what = f"first batch at step {steps['late']} over that at step {steps['start']}"
    yield Row(what, ratios(found["seconds"], "late", "start"), round(1 / RESUME_CLAIM, 2))


def feed_alone_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The feed without steps over other ways to read the same images."""
    yield Row("feed over a plain loop of pyarrow", ratios(found["seconds"], "feed", "plain"), 0.85)
    yield Row("feed over torch's DataLoader", ratios(found["seconds"], "feed", "loader"), 1.0)


def workers_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Two workers, and one with two threads, over one with one."""
    yield Row("two workers over one", ratios(found["seconds"], "two", "one"), 1.5)
    yield Row("one worker with two threads over one", ratios(found["seconds"], "one with two threads", "one"))


def step_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The shipped step over the reference's, and precisions."""
    for precision in ("float32", "bfloat16"):
        of, over = f"fused_{precision}", f"separate_{precision}"
        yield Row(f"both views in a pass over one each, {precision}", ratios(found["seconds"], of, over))
    yield Row("bfloat16 over float32", ratios(found["seconds"], "fused_bfloat16", "fused_float32"))


def kmeans_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Both of our ways over other libraries'."""
    for case, each in found.items():
        if not case.startswith("K="):
            continue
        for of, over, claim in (("sampled", "faiss", 1.0), ("ours", "sklearn", 1.0), ("ours", "faiss", None)):
            mine, other = each["inertia"][of], each["inertia"][over]
            higher = f"inertia {mine / other - 1:.2%} higher" if mine > INERTIA_SLACK * other else ""
            note = f"inertia {mine:,.0f} against {other:,.0f}"
            yield Row(f"{case}: {of} over {over}", ratios(each["seconds"], of, over), claim, note, higher)


def epochs_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Whole epochs over those of others."""
    for name, each in found["ratios"].items():
        wall = each["wall"]
        what = "bfloat16 over float32, one thread" if name == "bfloat16" else f"ours over {name}, float32"
        claim = None if name == "bfloat16" else 1.5
        yield Row(what, [wall["least"], wall["median"], wall["most"]], claim)


def estep_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Epochs over their E-steps."""
    yield Row("the demo over its E-steps with scores", ratios(found["seconds"], "estep", "epoch"), 10)


def engines_rows(found: dict[str, Any]) -> Iterator[Row]:
    """onnxruntime over PyTorch, for each network."""
    for name, each in found.items():
        if name in ("hardware", "commit"):
            continue
        speed = each["images_per_second"]["onnxruntime"]
        claim = CLAIM if name == PRESET else None
        yield Row(
            f"{name}: onnxruntime over PyTorch",
            ratios(each["seconds"], "onnxruntime", "torch"),
            claim,
            f"{speed:,.0f} images/s",
        )
        if "bfloat16" in each["seconds"]:
            yield Row(
                f"{name}: onnxruntime over PyTorch in bfloat16", ratios(each["seconds"], "onnxruntime", "bfloat16")
            )


def first_minutes_rows(found: dict[str, Any]) -> Iterator[Row]:
    """The goal over the time from a clone to clusters."""
    parts = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in found["seconds"].items())
    what = f"the goal of {found['goal']:.0f} s over the time from a clone to printed clusters"
    yield Row(what, [found["goal"] / sum(found["seconds"].values())], 1, f"{parts}; {found['scores']}")


SECTIONS = {
    "first_minutes": Section("The first minutes: clone, `make demo`", ["first_minutes"], first_minutes_rows),
    "pipeline": Section("The feed: ResNet-18, two workers, batch 64, first windows read", ["pipeline"], feed_rows),
    "jpegs": Section(
        "The feed: ResNet-18 on JPEG images at 224 pixels, two workers, batch 64, first windows read",
        ["pipeline", "--jpeg", "224", "--images", "256"],
        feed_rows,
    ),
    "first_batch": Section(
        "The first batch of a streamed epoch: `tiny`, two workers", ["first_batch"], first_batch_rows
    ),
    "resume": Section(
        f"A stream that resumes late in an epoch, in windows of {WINDOW:,} images", ["resume"], resume_rows
    ),
    "feed": Section(
        "The feed alone: JPEG images at 224 pixels, two workers", ["feed", "--images", "12000"], feed_alone_rows
    ),
    "engines": Section("Frozen backbones at 224 pixels, one core", ["engines"], engines_rows),
    "workers": Section("Two workers: ResNet-18, batch 32", ["workers"], workers_rows),
    "step": Section(
        "The step: `tiny`, batch 128, one thread", ["step", "--encoder", "tiny", "--batch", "128"], step_rows
    ),
    "kmeans": Section("Spherical k-means: 60,000 rows of 256, one thread, CPU seconds", ["kmeans"], kmeans_rows),
    "estep": Section("The E-steps of the demo, two workers", ["estep"], estep_rows),
    "epochs": Section("Whole epochs of `tiny` on two cores", ["epochs", "--ray", "--images", "1024"], epochs_rows),
}


def measure(name: str) -> bool:
    """Run a section's benchmark; returns whether it wrote results. Its own exit status only repeats the claims."""
    RESULTS.mkdir(exist_ok=True)
    out = RESULTS / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{SECTIONS[name].command[0]}", *SECTIONS[name].command[1:]]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run([*command, "--out", str(out.relative_to(DOCS.parent))], check=False, cwd=DOCS.parent)
    if not out.is_file():
        return False
    out.write_text(json.dumps(json.loads(out.read_text()) | {"commit": git_commit()}, indent=1) + "\n")
    return True


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page, from the results of the sections that have any."""
    parts = [HEAD]
    for name, found in results.items():
        section = SECTIONS[name]
        parts.append(f"## {section.title}\n")
        parts.append("| | median | rounds | claim | |\n|---|---|---|---|---|")
        parts.extend(map(str, section.rows(found)))
        command = " ".join(["python -m", f"benchmarks.{section.command[0]}", *section.command[1:]])
        parts.append(f"\n`{command}`, commit {found['commit'][:8]}, {found['hardware']}.\n")
    return "\n".join(parts)


def main() -> int:
    """Measure, and draw the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"unknown sections: {', '.join(sorted(unknown))} (known: {', '.join(SECTIONS)})")
    measured = [] if args.draw else [measure(name) for name in args.sections or SECTIONS]
    files = {name: RESULTS / f"{name}.json" for name in SECTIONS}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    PAGE.write_text(page(results))
    hold = all(row.holds for name, found in results.items() for row in SECTIONS[name].rows(found))
    return 0 if hold and all(measured) else 1


if __name__ == "__main__":
    sys.exit(main())
