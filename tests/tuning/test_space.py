"""Search spaces: the ones that come with the project, and the messages about those that cannot be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from ray import tune

from pipeline.config.loading import load_config, preset_names, with_settings
from pipeline.errors import ConfigError
from pipeline.tuning.space import (
    Space,
    check_points,
    contains,
    describe_domain,
    first_points,
    format_point,
    load_space,
)
from tests.helpers.manifests import manifest

SPACES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.py"))
START = "from ray import tune\n"


def space_file(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(START + text)
    return str(path)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", preset_names())
def test_every_point_of_our_spaces_can_be_run_with_every_preset(path: Path, preset: str) -> None:
    space = load_space(str(path))
    base = with_settings(load_config(preset), space.settings, "test")
    check_points(base, space, manifest(images=1797, classes=10))
    assert len(first_points(base, space)) >= 1


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_our_spaces_start_from_the_papers_values_and_give_their_reasons(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert any("paper's" in line for line in lines[: lines.index("FIRST = [")][-3:])
    before = {lines[i - 1].strip()[:1] for i, line in enumerate(lines) if ": tune." in line}
    assert before <= {"#", '"'}  # a comment, or the line above, whose comment holds for both
    assert f"tune --space tune_spaces/{path.name}" in path.read_text()


def test_the_ending_may_be_left_out() -> None:
    assert load_space(str(SPACES[0].with_suffix(""))).name == SPACES[0].stem


def test_what_is_not_given_is_label_free_and_empty(tmp_path: Path) -> None:
    space = load_space(space_file(tmp_path, "SPACE = {'optim.lr': tune.loguniform(0.01, 1)}"))
    assert (space.name, space.objectives, space.first, space.settings) == ("mine", [("label_free", "max")], [], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = {'optim.lrr': tune.uniform(0, 1)}", "optim.lrr: unknown setting; did you mean 'optim.lr'?"),
        ("SPACE = {'lr': tune.uniform(0, 1)}", "lr: unknown setting"),
        ("SPACE = {'optim.lr.0': tune.uniform(0, 1)}", "optim.lr.0: unknown setting"),
        ("SPACE = {'views.crop_scale.2': tune.uniform(0, 1)}", "views.crop_scale.2: unknown setting"),
        ("SPACE = {'optim.lr': 0.1}", "optim.lr: 0.1 is not a domain to search; give tune.uniform"),
        ("SPACE = {'optim.lr': tune.randn(0, 1)}", "optim.lr: "),
        ("SPACE = {'storage': tune.choice(['a'])}", "storage: must be the same for all trials; give it with --set"),
        ("SPACE = {'optim.epochs': tune.randint(1, 5)}", "optim.epochs: must be the same for all trials"),
        ("SPACE = {}", "SPACE: give settings with their domains"),
        ("SPACES = {}", "SPACES: unknown name; did you mean 'SPACE'?"),
        ("SPACE = ['optim.lr']", "SPACE: is ['optim.lr'], but must be a dict"),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nFIRST = [{}]", "FIRST, point 1: it must have the keys of SPACE"),
        (
            "SPACE = {'optim.lr': tune.uniform(0.1, 1)}\nFIRST = [{'optim.lr': 0.5}, {'optim.lr': 2}]",
            "FIRST, point 2: optim.lr=2 is outside 0.1 to 1",
        ),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nOBJECTIVES = [('acc', 'most')]", "OBJECTIVES: give pairs"),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nOBJECTIVES = ['acc']", "OBJECTIVES: give pairs"),
        (
            "SPACE = {'optim.lr': tune.uniform(0, 1)}\nSETTINGS = {'optim.lr': 1}",
            "optim.lr: is in SPACE and in SETTINGS",
        ),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nSETTINGS = {'optim.epoch': 1}", "did you mean 'optim.epochs'?"),
        ("SPACE = {1: tune.uniform(0, 1)}", "1: unknown setting"),
        ("SPACE = {('optim', 'lr'): tune.uniform(0, 1)}", "('optim', 'lr'): unknown setting"),
        ("SPACE = {'optim.lr': tune.uniform(1, 0.1)}", "optim.lr: the range 1 to 0.1 is empty"),
        ("SPACE = {'optim.lr': tune.choice([])}", "optim.lr: the choice is empty"),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nOBJECTIVES = [(1, 'max')]", "OBJECTIVES: give pairs"),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nOBJECTIVES = [('acc', 'max')] * 2", "has a metric twice"),
        (
            "SPACE = {'optim.lr': tune.uniform(0, 1)}\nFIRST = [{1: 2}]",
            "FIRST, point 1: it must have the keys of SPACE",
        ),
        ("SPACE = {'optim.lr': tune.uniform(0, 1)}\nFIRST = [0.1]", "FIRST, point 1: 0.1 is not a mapping"),
        ("SPACE = {'optim.lr': tune.choice([{1}])}", "optim.lr: {1} is a set; give numbers, texts, None, or lists"),
        (
            "SPACE = {'seed': tune.randint(0, 9)}\nSETTINGS = {'optim.lr': 1j}",
            "optim.lr: 1j is a complex; give numbers",
        ),
        ("\nSPACE = tuna.uniform(0, 1)", "cannot be loaded at line 3: NameError: name 'tuna' is not defined"),
        ("SPACE = {", "cannot be loaded: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_space_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(space_file(tmp_path, text))
    assert message in str(caught.value)
    assert "mine.py" in str(caught.value)


def test_values_of_numpy_and_tuples_become_plain(tmp_path: Path) -> None:
    """What a search leaves is JSON and YAML, and its trials have run by then."""
    space = load_space(
        space_file(
            tmp_path,
            "import numpy as np\n"
            "SPACE = {'optim.lr': tune.choice(np.array([0.1, 0.2])),"
            " 'views.crop_scale': tune.choice([(0.2, 1), (0.5, 1)]), 'seed': tune.randint(np.int64(0), np.int64(3))}\n"
            "FIRST = [{'optim.lr': np.float64(0.1), 'views.crop_scale': (np.float32(0.5), 1), 'seed': np.int64(2)}]\n"
            "SETTINGS = {'optim.batch_size': np.int64(64), 'views.blur_sigma': np.array([0.5, 1])}\n"
            "OBJECTIVES = (('acc', np.str_('max')),)\n",
        )
    )
    assert space.values("optim.lr") == [0.1, 0.2]
    assert {type(value) for value in space.values("optim.lr")} == {float}
    plain = {
        "first": [{"optim.lr": 0.1, "views.crop_scale": [0.5, 1], "seed": 2}],
        "settings": {"optim.batch_size": 64, "views.blur_sigma": [0.5, 1.0]},
        "objectives": [["acc", "max"]],
    }
    assert space.as_dict() == plain | {"space": space.ranges()}
    assert yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(space.as_dict())))) == space.as_dict()
    base = load_config("digits", ["views.crop_scale=[0.5, 1]", "seed=1"])
    assert first_points(base, space)[0] == {"optim.lr": 0.1, "views.crop_scale": [0.5, 1.0], "seed": 1}


def test_a_space_may_import_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "values_of_mine.py").write_text("RATES = (0.1, 0.2)")
    before = list(sys.path)
    file = space_file(tmp_path, "from values_of_mine import RATES as _R\nSPACE = {'optim.lr': tune.choice(_R)}")
    assert load_space(file).values("optim.lr") == [0.1, 0.2]
    assert sys.path == before


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)optim\.lrr: unknown.*seeed: unknown"):
        load_space(space_file(tmp_path, "SPACE = {'optim.lrr': tune.uniform(0, 1), 'seeed': tune.randint(0, 9)}"))


def test_a_file_that_is_not_there_names_its_nearest_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"there is no search space .*digpr\.py'; did you mean .*digpro\.py'"):
        load_space(str(SPACES[0].with_name("digpr")))


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"optim.lr": tune.uniform(-1, 1)}, r"optim\.lr: Input should be greater than 0"),
        ({"optim.warmup_epochs": tune.randint(0, 200)}, r"warmup_epochs is \d+, more than epochs \(80\)"),
        ({"optim.batch_size": tune.choice([64, 4096])}, r"batch_size=4096 exceeds the 1797 images"),
    ],
)
def test_a_space_with_points_that_cannot_be_run_is_refused(domains: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)space 'mine' holds .*which cannot be run: .*{message}"):
        check_points(load_config("digits"), Space("mine", domains), manifest(images=1797))


def test_a_point_is_one_line() -> None:
    assert format_point({"optim.lr": 0.123456, "method.num_groups": None}) == "optim.lr=0.1235  method.num_groups=None"


def test_the_configurations_own_values_come_first_where_the_space_holds_them() -> None:
    base, paper = load_config("digits"), {"optim.lr": 0.05}
    wide = Space("wide", {"optim.lr": tune.loguniform(0.01, 1)}, [paper])
    assert first_points(base, wide) == [{"optim.lr": 0.1}, paper]
    assert first_points(base, Space("narrow", {"optim.lr": tune.loguniform(0.01, 0.06)}, [paper])) == [paper]
    assert first_points(load_config("cifar10"), wide) == [paper]  # the same point once


@pytest.mark.parametrize(
    ("domain", "words", "member", "stranger"),
    [
        (tune.loguniform(0.01, 1), "0.01 to 1, log", 1.0, 1.1),
        (tune.quniform(0, 1, 0.25), "0 to 1, in steps of 0.25", 0.5, None),
        (tune.randint(1, 5), "1 to 4", 4, 5),
        (tune.qrandint(4, 12, 4), "4 to 12, in steps of 4", 12, 4.5),
        (tune.choice([None, 3]), "one of [null, 3]", None, 4),
    ],
)
def test_domains_are_described_and_know_their_members(
    domain: object, words: str, member: object, stranger: object
) -> None:
    assert describe_domain(domain) == words
    assert contains(domain, member)
    assert not contains(domain, stranger)
