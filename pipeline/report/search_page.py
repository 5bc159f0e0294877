"""The page of a search: its table, and Optuna's pictures of it, in one file."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
import optuna
import optuna.visualization.matplotlib as pictures
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from pipeline.tuning.result import Row
from pipeline.tuning.space import Space, describe

STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
LEGEND = 12  # entries; more trials than these have colours that nobody could tell apart
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 10px; text-align: left; border-bottom: 1px
solid #ddd; white-space: nowrap } tr.best { background: #e8f4e8 } tr.failed, tr.stopped { color: #888 }
div { overflow-x: auto } img { max-width: 100%; margin: 1em 0 } .empty { color: #888 }
"""


def study_of(found: Sequence[Row], space: Space) -> optuna.Study:
    """The search as a study of Optuna's: finished trials are complete, stopped ones pruned."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(
        directions=["maximize" if mode == "max" else "minimize" for _, mode in space.objectives]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, says Optuna
        study.set_metric_names([metric for metric, _ in space.objectives])
    short = short_names(list(space.domains))
    domains = OptunaSearch.convert_search_space({short[key]: domain for key, domain in space.domains.items()})
    for row in found:
        complete, single = row.status == "finished", len(space.objectives) == 1
        trial = optuna.trial.create_trial(
            state=STATES[row.status],
            params={short[key]: value for key, value in row.point.items()},
            distributions=domains,
            values=[row.last[metric] for metric, _ in space.objectives] if complete else None,
            intermediate_values={int(p["epoch"]): p[space.objectives[0][0]] for p in row.pages} if single else None,
        )
        study.add_trial(trial)
    return study


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Settings without their section, where that is clear: Optuna cuts names off after 20 letters."""
    last = {key: key.partition(".")[2] or key for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


@dataclass(frozen=True)
class Picture:
    """One of Optuna's plots; `finished` is how many finished trials it takes to mean something."""

    title: str
    meaning: str
    draw: Callable[[optuna.Study], Any]
    finished: int


def gallery(space: Space) -> list[Picture]:
    """The pictures that suit a search with one objective, or with several."""
    parameters = [
        Picture(
            "Parallel coordinates",
            "A line for each finished trial, through its settings; the colour is its objective.",
            pictures.plot_parallel_coordinate,
            2,
        ),
        Picture(
            "Importance of the settings",
            "How much a setting decides whether a trial is among the best (PED-ANOVA). With few trials it is noise.",
            pictures.plot_param_importances,
            4,
        ),
    ]
    if len(space.objectives) > 1:
        meaning = "Each point is a finished trial; no trial beats one of the front in all objectives."
        return [Picture("The front", meaning, pictures.plot_pareto_front, 2), *parameters]
    history = "Finished trials in the order they started; the line is the best so far."
    curves = "All trials by epoch, those that were stopped early too."
    return [
        Picture("Objective over time", history, pictures.plot_optimization_history, 1),
        Picture("Curves", curves, pictures.plot_intermediate_values, 0),
        *parameters,
    ]


def page(title: str, lead: Sequence[str], found: Sequence[Row], chosen: Row | None, space: Space) -> str:
    """The page as HTML, with its pictures inside.

    Parameters
    ----------
    title : str
    lead : sequence of str
        What it begins with, a paragraph each.
    found : sequence of Row
    chosen : Row or None
        The best trial.
    """
    study, width = study_of(found, space), max(10.0, 1.4 * (1 + len(space.domains)))
    paragraphs = [f"<p>{escape(text)}</p>" for text in lead]
    drawn = [_section(picture, study, width) for picture in gallery(space)]
    body = [f"<h1>{escape(title)}</h1>", *paragraphs, *drawn, _trials(found, chosen, space), _ranges(space)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n" + "\n".join(body) + "\n</body></html>\n"


def _section(picture: Picture, study: optuna.Study, width: float) -> str:
    """A picture under its title; where there is too little to draw, a line that says so."""
    head = f"<h2>{escape(picture.title)}</h2>\n<p>{escape(picture.meaning)}</p>"
    finished = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    if finished < picture.finished:
        return f'{head}\n<p class="empty">It takes {picture.finished} finished trials; there are {finished}.</p>'
    try:
        drawn = _png(picture.draw, study, width)
    except (ValueError, RuntimeError) as error:  # for example a setting that had one value only
        return f'{head}\n<p class="empty">Optuna could not draw it: {escape(str(error))}</p>'
    return f'{head}\n<img alt="{escape(picture.title)}" src="data:image/png;base64,{drawn}">'


def _png(draw: Callable[[optuna.Study], Any], study: optuna.Study, width: float) -> str:
    with warnings.catch_warnings(), plt.style.context("default"):
        warnings.simplefilter("ignore")  # Optuna calls its matplotlib plots experimental
        axes = np.ravel(draw(study))[0]
        if (legend := axes.get_legend()) and len(legend.get_texts()) > LEGEND:
            legend.remove()
        figure = axes.figure
        figure.set_size_inches(width, width / 2.4)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def _trials(found: Sequence[Row], chosen: Row | None, space: Space) -> str:
    figures = list(dict.fromkeys([*dict(space.objectives), *(key for row in found for key in row.last)]))
    keys = list(space.domains)
    lines = [_line("th", ["trial", "status", "epochs", *figures, *keys, "reason"])]
    for row in found:
        values = [row.last.get(figure) for figure in figures] + [row.point.get(key) for key in keys]
        cells = [row.number, row.status, row.epochs, *values, row.reason]
        lines.append(_line("td", cells, "best" if row is chosen else row.status))
    return "<h2>Trials</h2>\n<div><table>\n" + "\n".join(lines) + "\n</table></div>"


def _ranges(space: Space) -> str:
    lines = [_line("td", [key, describe(domain)]) for key, domain in space.domains.items()]
    return "<h2>What was searched</h2>\n<div><table>\n" + "\n".join(lines) + "\n</table></div>"


def _line(tag: str, cells: Sequence[Any], kind: str = "") -> str:
    texts = ("" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f'<tr class="{kind}">' + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts) + "</tr>"
