"""The working directory of a job: what travels with it, and whether that is too much or too little."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.checks.finding import Finding
from pipeline.ray_private import largest_upload, walk_working_dir

EXCLUDES = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"]
OURS = ("pipeline", "jobs")  # folders without which a job would run other code, or none
SUFFIXES = (".py", ".yaml", ".txt", ".js", ".css", ".html")  # of the files in them that are ours
ENTRY_BYTES = 76  # of a file in a zip archive, beside its content and twice its name


def travelling_files(folder: str) -> dict[str, int]:
    """The files that Ray will send, with their bytes: all but our excludes and what .gitignore lists.

    With RAY_RUNTIME_ENV_IGNORE_GITIGNORE=1 what .gitignore lists is sent too.
    """
    root, found = Path(folder).resolve(), dict[str, int]()

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(root))] = path.stat().st_size

    walk_working_dir(root, EXCLUDES, note, logging.getLogger(__name__))
    return found


def working_dir_finding(folder: str, files: dict[str, int]) -> Finding:
    """Whether the working directory has all that a job needs and is small enough to be sent."""
    what = "working directory"
    if left := left_files(folder, files):
        found = f"{left[0]!r}{f' and {len(left) - 1:,} other files' if left[1:] else ''} would not be sent with a job"
        remedy = f"a .gitignore or .rayignore in {folder!r} excludes them; anchor its patterns: /data/, not data/"
        return Finding(what, found, remedy)
    total, limit = sum(size + ENTRY_BYTES + 2 * len(name) for name, size in files.items()), largest_upload()
    found = f"{folder!r} has {total / 2**20:,.1f} MiB to send with a job"
    if total <= limit:
        return Finding(what, found)
    largest = sorted(files, key=lambda name: files[name], reverse=True)[:3]
    named = ", ".join(f"{name} ({files[name] / 2**20:,.0f} MiB)" for name in largest)
    return Finding(
        what,
        f"{found}, but a cluster accepts at most {limit >> 20} MiB",
        f"its largest files are {named}: move them to another folder, or list them in .gitignore or .rayignore",
    )


def left_files(folder: str, files: dict[str, int]) -> list[str]:
    """Files of our own code that would not be sent: the job would find those of another version, or none."""
    root = Path(folder)
    code = (path.relative_to(root) for ours in OURS for path in (root / ours).rglob("*") if path.suffix in SUFFIXES)
    return sorted(str(path) for path in code if str(path) not in files)
