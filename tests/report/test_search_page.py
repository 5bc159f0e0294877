"""The page of a search, from made-up results."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from pipeline.report.search_page import ShownSearch, ShownTrial, make_study, search_page, short_names

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "optim.lr": FloatDistribution(0.01, 1, log=True),
    "method.reset_every": CategoricalDistribution([None, 30]),
}
ONE, TWO = [("label_free", "max")], [("loss", "min"), ("images_per_second", "max")]


def trial(number: int, status: str = "finished", epochs: int = 4, **metrics: float) -> ShownTrial:
    point = {"optim.lr": 0.02 * number, "method.reset_every": None if number % 2 else 30}
    history = [{"epoch": float(epoch), **metrics} for epoch in range(1, epochs + 1)]
    return ShownTrial(number, status, "for a reason" if status != "finished" else "", point, history)


def shown(objectives: list[tuple[str, str]], *trials: ShownTrial, **more: Any) -> ShownSearch:
    values = {"title": "a <search>", "introduction": ["It went well."], "best": None} | more
    return ShownSearch(
        objectives=objectives,
        distributions=DISTRIBUTIONS,
        ranges={"optim.lr": "0.01 to 1, log", "method.reset_every": "one of [null, 30]"},
        trials=trials,
        **values,
    )


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one objective", "two"])
def test_the_study_has_every_trial(objectives: list[tuple[str, str]]) -> None:
    metrics = {"label_free": 0.5, "loss": 1.0, "images_per_second": 10.0}
    trials = [trial(1, **metrics), trial(2, "stopped", 2, **metrics), trial(3, "failed", 0)]
    study = make_study(shown(objectives, *trials))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert study.trials[0].params == {"lr": 0.02, "reset_every": None}
    if objectives is ONE:
        assert study.trials[1].intermediate_values == {1: 0.5, 2: 0.5}


def test_settings_lose_their_section_where_no_other_has_the_name() -> None:
    assert short_names(
        ["method.group_weight", "optim.batch_size", "estep.batch_size", "views.crop_scale.0", "seed"]
    ) == {
        "method.group_weight": "group_weight",
        "optim.batch_size": "optim.batch_size",
        "estep.batch_size": "estep.batch_size",
        "views.crop_scale.0": "crop_scale.0",
        "seed": "seed",
    }


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one objective", "two"])
def test_the_page_needs_nothing_beside_it(objectives: list[tuple[str, str]]) -> None:
    trials = [trial(n, label_free=n / 10, loss=1 / n, images_per_second=float(n), acc=0.5) for n in range(1, 7)]
    trials += [trial(7, "stopped", 2, label_free=0.1, loss=3.0, images_per_second=1.0), trial(8, "failed", 0)]
    text = search_page(shown(objectives, *trials, best=6))
    assert "a &lt;search&gt;" in text
    pictures = 4 if objectives is ONE else 3
    assert len(re.findall(r'src="data:image/png;base64,[\w+/=]{2000,}"', text)) == pictures
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count('<tr class="finished">') == 5
    assert text.count('<tr class="best">') == 1
    assert "for a reason" in text
    assert "0.01 to 1, log" in text
    assert "could not draw" not in text


def test_settings_come_before_metrics_in_the_table_of_trials() -> None:
    text = search_page(shown(TWO, trial(1, acc=0.625, images_per_second=10.0, loss=0.5), trial(2, "failed", 0)))
    header, *lines = re.findall(r"<tr.*?</tr>", text[text.index(">Trials<") : text.index(">Search space<")])
    assert re.findall(r"<th>(.*?)</th>", header) == [
        *("trial", "status", "epochs"),
        *("optim.lr", "method.reset_every"),
        *("loss", "images_per_second", "acc"),  # the objectives first
        "reason",
    ]
    assert [re.findall(r"<td>(.*?)</td>", line) for line in lines] == [
        ["1", "finished", "4", "0.02", "", "0.5", "10", "0.625", ""],
        ["2", "failed", "0", "0.04", "30", "", "", "", "for a reason"],
    ]


def test_the_page_fits_a_phone_and_a_dark_screen() -> None:
    text = search_page(shown(ONE, trial(1, label_free=0.5)))
    assert '<meta name="viewport" content="width=device-width">' in text
    assert "color-scheme: light dark" in text
    assert "tr.best { background: light-dark(" in text


def test_a_choice_of_lists_is_drawn() -> None:
    scales = {"views.crop_scale": CategoricalDistribution([[0.08, 1.0], [0.2, 1.0]])}
    trials = [
        ShownTrial(n, "finished", "", {"views.crop_scale": [0.2 if n % 2 else 0.08, 1.0]}, [{"epoch": 1, "loss": n}])
        for n in range(6)
    ]
    text = search_page(ShownSearch("lists", [], [("loss", "min")], scales, {"views.crop_scale": "two"}, trials, 0))
    assert "could not draw" not in text
    assert text.count('src="data:image/png') == 4


def test_a_page_survives_what_optuna_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = ShownTrial(
        1, "finished", "", {"optim.lr": 7.0, "method.reset_every": 30}, [{"epoch": 1, "label_free": 1}]
    )
    text = search_page(shown(ONE, outside))
    assert "Optuna could not read the trials: " in text
    assert '<tr class="finished">' in text

    def fail(study: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("pipeline.report.search_page.plots.plot_optimization_history", fail)
    assert "Optuna could not draw it: &#x27;odd&#x27;" in search_page(shown(ONE, trial(1, label_free=0.5)))


def test_a_page_of_too_few_trials_says_so() -> None:
    text = search_page(shown(ONE, trial(1, label_free=0.5)))
    assert "This plot needs 2 finished trials; there are 1 so far." in text
    assert "This plot needs 4 finished trials; there are 1 so far." in text
    assert search_page(shown(ONE, trial(1, "failed", 0))).count("This plot needs") == 3


def test_a_page_is_drawn_without_ray() -> None:
    script = "import sys; sys.modules['ray'] = None; import pipeline.report.search_page, pipeline.report.figures"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
