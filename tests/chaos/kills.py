"""A series of random kills: after each one, the same command must end with the same losses and labels.

    python -m tests.chaos.kills --count 20 --table docs/reliability.md

A run is killed with signal 9 at a random moment between the start of its workers and its end: one worker, the driver,
or the whole machine (the driver and every process of its Ray cluster at once). Then the same command is repeated until
it succeeds. The table is written between the markers of the file. Exit status 1 when a result differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.measure import hardware
from tests.helpers.runs import TWO_WORKERS, end, family, outcome, settings, start, train_workers

VICTIMS = ("worker", "driver", "machine")
TIMEOUT = 300  # seconds
BEGIN, END = "<!-- kills -->", "<!-- /kills -->"


def main() -> int:
    """Run the kills, print their table, and write it to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="file with the markers for the table")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        expected, seconds = run_uninterrupted(Path(folder))
        rows = []
        for number in range(1, arguments.count + 1):
            rows.append(kill_and_finish(Path(folder), number, draw, seconds, expected))
            print(rows[-1], flush=True)
    equal = sum(row.endswith("yes |") for row in rows)
    text = format_table(rows, equal)
    print(text)
    if arguments.table:
        write_between_markers(arguments.table, text)
    return 0 if equal == arguments.count else 1


def run_uninterrupted(folder: Path) -> tuple[tuple[list[dict[str, float]], list[int]], float]:
    """The outcome of an uninterrupted run, and the seconds from the start of its workers to its end."""
    process = start(settings(folder, TWO_WORKERS, "name=uninterrupted"), folder / "uninterrupted.log")
    wait_for_workers(process)
    begin = time.monotonic()
    if process.wait(TIMEOUT) != 0:
        raise SystemExit(f"the uninterrupted run failed:\n{(folder / 'whole.log').read_text()}")
    return outcome(folder / "runs" / "uninterrupted"), time.monotonic() - begin


def kill_and_finish(folder: Path, number: int, draw: random.Random, seconds: float, expected: object) -> str:
    """Kill one run and finish it; returns a row of the table. A run that ended before the kill is repeated."""
    name, begin, moment = f"kill{number}", time.monotonic(), draw.uniform(0, seconds)
    log = folder / f"{name}.log"
    process = start(settings(folder, TWO_WORKERS, f"name={name}"), log)
    wait_for_workers(process)
    time.sleep(moment)
    if process.poll() is not None:
        shutil.rmtree(folder / "runs" / name)
        return kill_and_finish(folder, number, draw, moment, expected)
    epoch = last_epoch(log)
    hit = kill(process, draw.choice(VICTIMS))
    commands = 1
    while process.wait(TIMEOUT) != 0 and commands < 4:
        process = start(settings(folder, TWO_WORKERS, f"name={name}"), log)
        commands += 1
    equal = (folder / "runs" / name / "summary.json").exists() and outcome(folder / "runs" / name) == expected
    row = (
        number,
        hit,
        f"{moment:.1f} s",
        epoch,
        commands,
        f"{time.monotonic() - begin:.0f} s",
        "yes" if equal else "NO",
    )
    return f"| {' | '.join(map(str, row))} |"


def wait_for_workers(process: subprocess.Popen[bytes]) -> None:
    """Wait until the workers of the run exist."""
    deadline = time.monotonic() + TIMEOUT
    while not train_workers(family(process.pid)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("no worker was started; see the log of the run")
        time.sleep(0.1)


def last_epoch(log: Path) -> str:
    """The last progress that the driver reported."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("epoch")]
    return lines[-1].split("  ")[0] if lines else "before the first"


def kill(process: subprocess.Popen[bytes], victim: str) -> str:
    """Send signal 9 to the victim and return what was killed; the processes of a machine are killed together."""
    cluster = family(process.pid)
    workers = train_workers(cluster)
    if victim == "worker" and workers:
        random.choice(workers).kill()
        return "worker"
    process.kill()
    process.wait(TIMEOUT)
    if victim != "machine":
        psutil.wait_procs(train_workers(cluster), timeout=60)  # they end after their driver has ended
    end(cluster)  # processes that Ray leaves for some minutes after a driver is killed
    return victim if victim != "worker" else "driver (no worker was left)"


def format_table(rows: list[str], equal: int) -> str:
    """A summary line, and the rows below their headers."""
    header = ["| # | killed | after | last seen at | commands | seconds in all | same result |", "|" + "---|" * 7]
    return "\n".join(
        [f"{equal} of {len(rows)} kills ended with the same losses and labels, on {hardware()}.", "", *header, *rows]
    )


def write_between_markers(file: Path, text: str) -> None:
    """Replace the text between the markers of a file."""
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
