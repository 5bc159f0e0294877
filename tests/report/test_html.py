"""The HTML that pages share."""

from __future__ import annotations

import base64

import matplotlib.pyplot as plt

from pipeline.report.html import figure_png, html_page, image, paragraph, table

PNG = b"\x89PNG"


def test_text_is_never_read_as_markup() -> None:
    page = html_page("<1>", [paragraph("<2>", "<3"), table(["<4>"], [(["<5>"], '"<6>')]), image(PNG, '"<7>')])
    assert not [n for n in range(1, 8) if f"<{n}" in page]
    assert page.count("&lt;") == 8  # the title is there twice
    assert page.count("&quot;") == 2


def test_cells_are_short_and_missing_values_empty() -> None:
    assert "<td></td><td>0.1235</td><td>7</td>" in table([], [([None, 0.123456, 7], "")])


def test_a_table_has_a_header_where_it_is_given_one() -> None:
    assert "<th>" not in table([], [(["a"], "")])
    assert "<th>name</th>" in table(["name"], [(["a"], "")])


def test_pictures_are_inside_the_page() -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    png = figure_png(figure)
    plt.close(figure)
    assert png.startswith(PNG)
    assert base64.b64encode(png).decode() in image(png, "a line")


def test_pages_fit_a_phone_and_a_dark_screen() -> None:
    page = html_page("title", [])
    assert '<meta name="viewport" content="width=device-width">' in page
    assert "color-scheme: light dark" in page
