"""The command line in this process: what a command prints, and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pipeline import cli

Result = tuple[int, str, str]
"""Exit status, stdout, stderr."""


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """A function that runs `digpro` with its arguments, without Ray."""
    for module in ("pipeline.cli", "pipeline.runs.train", "pipeline.runs.assign"):
        monkeypatch.setattr(f"{module}.connect", lambda: None)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["digpro", *map(str, arguments)])
        capsys.readouterr()  # drops what the test printed before
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), output.out, output.err

    return run


def refused(result: Result, *said: str) -> None:
    """The command ended with status 2 and a message that says all this, on stderr alone."""
    status, out, err = result
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    for text in said:
        assert text in err
