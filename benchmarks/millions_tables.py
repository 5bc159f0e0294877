"""What `benchmarks.millions` has measured, as tables in Markdown: a column for each number of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.processes import STORE

Sizes = Mapping[str, Mapping[str, dict[str, Any]]]
"""By number of images, and by step: what was measured."""


def time_table(sizes: Sizes) -> str:
    """Seconds and images/s of each step, a column for each number of images."""
    rows: dict[str, list[str]] = {}
    for images, steps in sizes.items():
        for name, entry in steps.items():
            rate = f"{int(images) / entry['seconds']:,.0f} images/s"
            rows.setdefault(name, []).append(f"{entry['seconds']:,.0f} s, {rate}")
            for phase, seconds in entry.get("phases", {}).items():
                rows.setdefault(f"{name}: {phase}", []).append(f"{seconds:,.0f} s")
            if entry.get("images_per_second"):
                rows.setdefault(f"{name}: steps", []).append(f"{entry['images_per_second']:,.0f} images/s")
    return markdown(
        ["", *(f"{int(images):,} images" for images in sizes)], [[name, *row] for name, row in rows.items()]
    )


def memory_table(sizes: Sizes) -> str:
    """Peak MiB of the largest process of each kind, and the bytes that each further image adds."""
    peaks: dict[tuple[str, str], dict[int, int]] = {}
    for images, steps in sizes.items():
        for name, entry in steps.items():
            for phase, kinds in entry["memory"].items():
                for kind, peak in kinds.items():
                    size = peak["shared" if kind == STORE else "private"]
                    peaks.setdefault((phase or name, kind), {})[int(images)] = size
    header = ["step", "process", *(f"MiB, {int(images):,} images" for images in sizes), "bytes per image"]
    rows = [[*row, *(f"{mib(found.get(int(n)))}" for n in sizes), slope(found)] for row, found in peaks.items()]
    return markdown(header, rows)


def mib(size: int | None) -> str:
    """A size in MiB; nothing where there was no such process."""
    return "" if size is None else f"{size / 2**20:,.0f}"


def slope(sizes: Mapping[int, int]) -> str:
    """Bytes that each further image adds, between the fewest and the most; nothing for one number of images."""
    few, many = min(sizes), max(sizes)
    return f"{(sizes[many] - sizes[few]) / (many - few):,.1f}" if few < many else ""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
