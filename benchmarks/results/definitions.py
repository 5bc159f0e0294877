"""What the rows of docs/results.md are: rows.yaml, read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.results.floors import FLOORS
from pipeline.errors import ConfigError, did_you_mean

ROWS = Path(__file__).parent / "rows.yaml"
TAKEN_OVER = ("data", "preset", "floor")  # from the row named by `like`, as are its settings


class Entry(BaseModel):
    """Base of all that is read from a file: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(Entry):
    """What others reached on the same images."""

    what: str
    source: str
    nmi: float | None = None
    acc: float | None = None
    ari: float | None = None


class DataSet(Entry):
    """Images that rows share."""

    title: str
    published: list[Published] = Field([])
    pictures: dict[str, list[str]] = Field({}, description="file below docs/ -> rows whose curves it shows")


class Row(Entry):
    """One line of the table: what is trained, and what it is compared with."""

    data: str
    preset: str
    settings: dict[str, Any] = Field({})
    about: str = ""
    floor: str = "pixels"
    like: str | None = None
    difference: str = ""

    @model_validator(mode="after")
    def _is_described(self) -> Row:
        if bool(self.about) == bool(self.difference):
            raise ValueError("give either about or difference")
        if self.difference and self.like is None:
            raise ValueError("a difference needs the row that it differs from; give like")
        if self.floor not in FLOORS:
            raise ValueError(f"floor is {self.floor!r}; known: {', '.join(FLOORS)}")
        return self

    @property
    def description(self) -> str:
        """What the row is, as a clause."""
        return self.about or f"`{self.like}`, but {self.difference}"

    @property
    def overrides(self) -> list[str]:
        """The settings as `--set` takes them."""
        return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in self.settings.items()]


class Definitions(Entry):
    """All rows and their data sets, by name."""

    data_sets: dict[str, DataSet]
    rows: dict[str, Row]

    @model_validator(mode="after")
    def _names_are_known(self) -> Definitions:
        for name, row in self.rows.items():
            if row.data not in self.data_sets:
                raise ValueError(f"rows.{name}.data is {row.data!r}{_known(row.data, self.data_sets)}")
        for name, images in self.data_sets.items():
            for shown in [row for rows in images.pictures.values() for row in rows if row not in self.rows]:
                raise ValueError(f"data_sets.{name}.pictures shows {shown!r}{_known(shown, self.rows)}")
        return self

    def row(self, name: str) -> Row:
        """The row of a name; ConfigError names the nearest one where there is none."""
        if name not in self.rows:
            raise ConfigError(f"there is no row {name!r}{_known(name, self.rows)}")
        return self.rows[name]

    def with_bases(self, names: list[str]) -> list[str]:
        """The names, each difference preceded by the row that it is compared with."""
        pairs = [(row.like, name) if (row := self.row(name)).difference else (name,) for name in names]
        return list(dict.fromkeys(name for pair in pairs for name in pair if name))


def load_definitions(path: Path = ROWS) -> Definitions:
    """All rows, each with what it takes over from the row it is like; ConfigError names file, key and value."""
    try:
        values = yaml.safe_load(path.read_text())
        rows = values["rows"]
        return Definitions.model_validate(values | {"rows": {name: _complete(name, rows) for name in rows}})
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError("\n".join([f"{path} cannot be used; correct it:", *faults])) from None


def _complete(name: str, rows: dict[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row's plain values, over those of the row that it is like."""
    row = dict(rows[name])
    if (other := row.get("like")) is None:
        return row
    if other not in rows or other in (*below, name):
        raise ConfigError(f"rows.{name}.like is {other!r}{_known(other, [key for key in rows if key != name])}")
    base = _complete(other, rows, (*below, name))
    settings = base.get("settings", {}) | row.get("settings", {})
    return {key: base[key] for key in TAKEN_OVER if key in base} | row | {"settings": settings}


def _known(word: str, names: Any) -> str:
    return f"{did_you_mean(word, names)} (known: {', '.join(names)})"
