"""Write the table of all settings into configuration.md, from the models: `python docs/settings.py`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic.fields import FieldInfo

from pipeline.config.identity import circumstances
from pipeline.config.loading import settings_table

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- settings: written by docs/settings.py -->\n", "<!-- end of settings -->\n"


def default(field: FieldInfo) -> str:
    """The default as an override would give it."""
    if field.is_required():
        return "required"
    value = field.default
    text = (
        value
        if isinstance(value, str)
        else json.dumps([round(v, 4) for v in value] if isinstance(value, tuple) else value)
    )
    return f"`{text}`"


def table() -> str:
    """A row for each setting: key, default, whether it decides the result, meaning."""
    rows = ["| setting | default | same run | meaning |", "|---|---|---|---|"]
    for key, field in settings_table().items():
        free = "yes" if key in circumstances() else ""
        rows.append(f"| `{key}` | {default(field)} | {free} | {(field.description or '').replace('|', '/')} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """configuration.md with the table of now."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
