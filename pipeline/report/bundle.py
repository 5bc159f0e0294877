"""Interactive pages: one HTML file with its data, scripts and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from pipeline.report.sprites import Pictures, Sheets, pack

PAGE_BYTES = 28_000_000  # of the whole file; pictures are compressed until it fits
STYLE = "atlas.css"
Array = np.ndarray[Any, Any]


def bundle(frame: str, scripts: Sequence[str], title: str, data: str, pictures: Pictures) -> str:
    """A page as HTML, smaller than `PAGE_BYTES`.

    Parameters
    ----------
    frame : str
        File of the page's HTML, in the folder `page`.
    scripts : sequence of str
        Files of its scripts there, in the order in which they run.
    title : str
        Plain text.
    data : str
        What `as_json` or `as_column` made, so that texts from outside are never markup.
    pictures : Pictures
        `paint` in ``pictures.js`` shows them by their number.
    """
    style, script = _asset(STYLE), "\n".join(_asset(name) for name in scripts)
    left = PAGE_BYTES - len(style) - len(script) - len(data.encode())
    sheets = pack(pictures.tiles, max(0, left) * 3 // 4)  # base64 takes four bytes for three
    shape = {
        "side": sheets.side,
        "columns": sheets.columns,
        "pictures": len(pictures),
        "aspects": as_column(pictures.aspects.astype(np.float32)),
    }
    values = {"title": escape(title), "style": style, "script": script, "data": data, "shape": json.dumps(shape)}
    return Template(_asset(frame)).substitute(values, sheets=_sheet_tags(sheets))


def as_json(values: Any) -> str:
    """JSON that is safe in a script element: it has no `<`."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def as_column(values: Array) -> str:
    """Numbers of any shape in the text of a page; `decodeBytes` in ``elements.js`` reads them."""
    return base64.b64encode(values.tobytes()).decode()


def _asset(name: str) -> str:
    return resources.files("pipeline.report").joinpath("page", name).read_text(encoding="utf-8")


def _sheet_tags(sheets: Sheets) -> str:
    """Each sheet in an element of its own, so that the browser reads it only when it is needed."""
    return "\n".join(
        f'<script type="text/plain" id="sheet-{number}">{base64.b64encode(file).decode()}</script>'
        for number, file in enumerate(sheets.files)
    )
