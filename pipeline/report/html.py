"""The HTML that pages share: each page is one file, with its style and its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
color: light-dark(#222, #e8e8e8); background: light-dark(#fff, #16171b) }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 10px; text-align: left; border-bottom: 1px
solid light-dark(#ddd, #444); white-space: nowrap } div.wide { overflow-x: auto } img { max-width: 100%; margin: 1em 0 }
.empty { color: light-dark(#666, #aaa) }
"""


def html_page(title: str, body: Iterable[str], style: str = "") -> str:
    """A complete page.

    Parameters
    ----------
    title : str
        Plain text, shown as the heading too.
    body : iterable of str
        Pieces of HTML, in order.
    style : str
        CSS of this page, beside `STYLE`.
    """
    screen = '<meta name="viewport" content="width=device-width">'
    head = f'<meta charset="utf-8">{screen}<title>{escape(title)}</title><style>{STYLE}{style}</style>'
    content = "\n".join([heading(title, level=1), *body])
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{content}\n</body></html>\n"


def heading(text: str, level: int = 2) -> str:
    """A heading of plain text."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, css_class: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(css_class)}>{escape(text)}</p>"


def table(header: Sequence[Any], rows: Iterable[tuple[Sequence[Any], str]]) -> str:
    """A table that scrolls sideways when it is wide.

    Parameters
    ----------
    header : sequence
        Titles of the columns; no header when empty.
    rows : iterable of (cells, CSS class)
        None is an empty cell, and floats have four digits.
    """
    lines = [_row("th", header)] if header else []
    lines += [_row("td", cells, css_class) for cells, css_class in rows]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def image(png: bytes, alt: str) -> str:
    """A picture inside the page; `alt` is what it shows, in words."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def figure_png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    return file.getvalue()


def _row(tag: str, cells: Sequence[Any], css_class: str = "") -> str:
    return f"<tr{_class(css_class)}>" + "".join(f"<{tag}>{escape(_text(cell))}</{tag}>" for cell in cells) + "</tr>"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _class(name: str) -> str:
    return f' class="{escape(name)}"' if name else ""
