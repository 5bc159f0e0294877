"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `remedy` is empty when it is as it should be."""

    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        """As one line of an error message."""
        return f"{self.what}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")
