"""What C and C++ libraries print stays off the screen, and nothing else does."""

from __future__ import annotations

import os

import pytest

from pipeline.data.quiet import cpp_log_lines_hidden

LINE = "[2026-11-25 04:51:26,818 E 18887 18887] core_worker.cc:2465: Actor with class name ..."


def test_lines_of_the_core_are_hidden_and_others_appear(capfd: pytest.CaptureFixture[str]) -> None:
    with cpp_log_lines_hidden():
        os.write(2, f"first\n{LINE}\nTraceback of ours\n".encode())
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "first\nTraceback of ours\nafter\n"


def _print_and_fail() -> None:
    with cpp_log_lines_hidden():
        os.write(2, b"before the error\n")
        raise KeyError


def test_an_error_inside_loses_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError):
        _print_and_fail()
    assert capfd.readouterr().err == "before the error\n"
