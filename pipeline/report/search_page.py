"""The page of a search: its table and Optuna's plots, in one file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
import optuna
import optuna.visualization.matplotlib as plots
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from pipeline.report.html import figure_png, heading, html_page, image, paragraph, table

STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
LEGEND = 12  # entries; the colours of more trials could not be told apart
STYLE = "tr.best { background: light-dark(#e8f4e8, #1f3a26) } tr.failed, tr.stopped { color: light-dark(#666, #aaa) }\n"


@dataclass(frozen=True)
class ShownTrial:
    """One trial, as plain values.

    Attributes
    ----------
    status : "finished", "stopped" or "failed"
    reason : str
        Why it did not finish.
    point : dict
        Dotted key of a setting -> value.
    history : sequence of dict
        Metrics of each reported epoch, with `epoch` among them; empty for a trial that reported none.
    """

    number: int
    status: str
    reason: str
    point: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]

    @property
    def epochs(self) -> int:
        """The last epoch that it reported, 0 without any."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def last(self) -> dict[str, float]:
        """Metrics of its last epoch."""
        return {key: value for key, value in self.history[-1].items() if key != "epoch"} if self.history else {}


@dataclass(frozen=True)
class ShownSearch:
    """A search, as plain values.

    Attributes
    ----------
    introduction : sequence of str
        The first paragraphs.
    objectives : sequence of (metric, "max" or "min")
    distributions : dict
        Dotted key of a setting -> the distribution that it was searched in.
    ranges : dict
        Dotted key of a setting -> the same in words.
    trials : sequence of ShownTrial
        By number.
    best : int or None
        Number of the best trial.
    """

    title: str
    introduction: Sequence[str]
    objectives: Sequence[tuple[str, str]]
    distributions: Mapping[str, BaseDistribution]
    ranges: Mapping[str, str]
    trials: Sequence[ShownTrial]
    best: int | None


@dataclass(frozen=True)
class Plot:
    """One of Optuna's plots; `finished` is the number of finished trials that it needs to be meaningful."""

    title: str
    meaning: str
    draw: Callable[[optuna.Study], Any]
    finished: int


def search_page(search: ShownSearch) -> str:
    """The page as HTML."""
    body = [
        *(paragraph(text) for text in search.introduction),
        *_plots(search),
        heading("Trials"),
        _trials_table(search),
        heading("Search space"),
        table([], [(item, "") for item in search.ranges.items()]),
    ]
    return html_page(search.title, body, STYLE)


def _plots(search: ShownSearch) -> list[str]:
    """Optuna's plots, or a line with the reason if it rejects the trials: the search still gets its page."""
    try:
        study = make_study(search)
    except Exception as error:
        return [paragraph(f"Optuna could not read the trials: {error}", "empty")]
    width = max(10.0, 1.4 * (1 + len(search.ranges)))
    return [_plot_section(plot, study, width) for plot in plots_for(len(search.objectives))]


def make_study(search: ShownSearch) -> optuna.Study:
    """The search as a study of Optuna: finished trials are complete, stopped ones pruned."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    study = optuna.create_study(
        directions=["maximize" if mode == "max" else "minimize" for _, mode in search.objectives]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        study.set_metric_names([metric for metric, _ in search.objectives])
    for trial in search.trials:
        study.add_trial(_frozen_trial(trial, search))
    return study


def _frozen_trial(trial: ShownTrial, search: ShownSearch) -> FrozenTrial:
    short, metrics = short_names(list(search.distributions)), [metric for metric, _ in search.objectives]
    single, finished = len(metrics) == 1, trial.status == "finished"
    return optuna.trial.create_trial(
        state=STATES[trial.status],
        params={short[key]: _drawable(value) for key, value in trial.point.items()},
        distributions={short[key]: _of_drawable(distribution) for key, distribution in search.distributions.items()},
        values=[trial.last[metric] for metric in metrics] if finished else None,
        intermediate_values={int(m["epoch"]): m[metrics[0]] for m in trial.history} if single else None,
    )


def _drawable(value: Any) -> Any:
    """A list as text: Optuna's plots use values as keys, and a list cannot be one."""
    return str(value) if isinstance(value, list) else value


def _of_drawable(distribution: BaseDistribution) -> BaseDistribution:
    """The distribution of drawable values."""
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalDistribution([_drawable(choice) for choice in distribution.choices])
    return distribution


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Settings without their section, where that is unambiguous: Optuna cuts names off after 20 letters."""
    last = {key: key.partition(".")[2] or key for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def plots_for(objectives: int) -> list[Plot]:
    """The plots that suit a search with one objective, or with several."""
    settings = [
        Plot(
            "Parallel coordinates",
            "One line per finished trial, through the values of its settings; the colour is its objective.",
            plots.plot_parallel_coordinate,
            2,
        ),
        Plot(
            "Importance of the settings",
            "How strongly a setting affects whether a trial is among the best (PED-ANOVA). With few trials this is "
            "noise.",
            plots.plot_param_importances,
            4,
        ),
    ]
    if objectives > 1:
        meaning = "Each point is a finished trial. No trial beats a trial of the front in every objective."
        return [Plot("Pareto front", meaning, plots.plot_pareto_front, 2), *settings]
    history = "Finished trials in the order they started; the line is the best so far."
    curves = "The objective of each trial by epoch, including trials that were stopped early."
    return [
        Plot("Objective over time", history, plots.plot_optimization_history, 1),
        Plot("Curves", curves, plots.plot_intermediate_values, 0),
        *settings,
    ]


def _plot_section(plot: Plot, study: optuna.Study, width: float) -> str:
    """A plot under its title; where there is too little to draw, a line that says so."""
    head = f"{heading(plot.title)}\n{paragraph(plot.meaning)}\n"
    finished = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))
    if finished < plot.finished:
        return head + paragraph(
            f"This plot needs {plot.finished} finished trials; there are {finished} so far.", "empty"
        )
    try:
        return head + image(_draw(plot, study, width), plot.title)
    except Exception as error:  # for example a setting that had one value only; the result is worth more than a plot
        return head + paragraph(f"Optuna could not draw it: {error}", "empty")


def _draw(plot: Plot, study: optuna.Study, width: float) -> bytes:
    with warnings.catch_warnings(), plt.style.context("default"):
        warnings.simplefilter("ignore")  # Optuna calls its matplotlib plots experimental
        axes = np.ravel(plot.draw(study))[0]
        if (legend := axes.get_legend()) and len(legend.get_texts()) > LEGEND:
            legend.remove()
        figure = axes.figure
        figure.set_size_inches(width, width / 2.4)
        png = figure_png(figure)
        plt.close(figure)
    return png


def _trials_table(search: ShownSearch) -> str:
    metrics = list(dict.fromkeys([*dict(search.objectives), *(key for trial in search.trials for key in trial.last)]))
    header = ["trial", "status", "epochs", *search.ranges, *metrics, "reason"]
    return table(header, [(_cells(trial, metrics, search), _css_class(trial, search)) for trial in search.trials])


def _cells(trial: ShownTrial, metrics: Sequence[str], search: ShownSearch) -> list[Any]:
    values = [trial.point.get(key) for key in search.ranges] + [trial.last.get(metric) for metric in metrics]
    return [trial.number, trial.status, trial.epochs, *values, trial.reason]


def _css_class(trial: ShownTrial, search: ShownSearch) -> str:
    return "best" if trial.number == search.best else trial.status
