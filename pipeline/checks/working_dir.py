"""The working directory of a job: what travels with it, and whether that is too much."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.checks.finding import Finding
from pipeline.ray_private import walk_working_dir

EXCLUDES = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"]
LIMIT_MIB = 512  # Ray's own, on the zipped folder


def travelling_files(folder: str) -> dict[str, int]:
    """The files, with their bytes, that Ray will send: without our excludes and without what .gitignore lists."""
    root, found = Path(folder).resolve(), dict[str, int]()

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(root))] = path.stat().st_size

    walk_working_dir(root, EXCLUDES, note, logging.getLogger(__name__))
    return found


def working_dir_finding(folder: str, files: dict[str, int]) -> Finding:
    """Whether the working directory is small enough to be sent; the remedy names its largest files."""
    total = sum(files.values()) / 2**20
    found = f"{folder!r} has {total:,.1f} MiB to send with a job"
    if total <= LIMIT_MIB:
        return Finding("working directory", found)
    largest = sorted(files, key=lambda name: files[name], reverse=True)[:3]
    named = ", ".join(f"{name} ({files[name] / 2**20:,.0f} MiB)" for name in largest)
    return Finding(
        "working directory",
        f"{found}, and Ray sends {LIMIT_MIB} MiB at most",
        f"its largest files are {named}: move them to another folder, or list them in .gitignore or .rayignore",
    )
