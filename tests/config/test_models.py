"""Configurations: layers, messages for whatever is wrong with one, and which settings make it another run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config.identity import CIRCUMSTANCES, fingerprint, result_settings
from pipeline.config.loading import load_config, parse_config, preset_names, settings_table
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError


def test_layers_win_in_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {path: shards}\noptim: {lr: 0.2, batch_size: 64}\n")
    config = load_config(
        file, ["optim.lr=0.3", "optim.lr=0.4", "views.crop_scale=[0.5, 1]", "method.num_clusters=null"]
    )
    assert (config.optim.lr, config.optim.batch_size, config.optim.momentum) == (0.4, 64, 0.9)
    assert config.views.crop_scale == (0.5, 1.0)
    assert config.method.num_clusters is None


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_numbers_may_be_names() -> None:
    assert load_config("digits", ["name=2024"]).name == "2024"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optm.lr=1"], ["optm", "did you mean 'optim'?"]),
        (["optim.learning_rate=1"], ["optim.learning_rate: unknown key", "known: epochs"]),
        (["optim.leerning=1", "optim.lrr=1"], ["optim.leerning", "optim.lrr", "did you mean 'lr'?"]),
        (["method.num_cluster=3"], ["method.num_cluster", "did you mean 'num_clusters'?"]),
        (["optim.lr=fast"], ["optim.lr", "'fast'", "number", "at a batch of 256"]),
        (["optim.lr=-1"], ["optim.lr", "greater than 0", "-1"]),
        (["optim.lr=.inf"], ["optim.lr", "finite", "inf"]),
        (["optim.epochs=2.5"], ["optim.epochs", "2.5", "integer"]),
        (["optim.warmup_epochs=9", "optim.epochs=3"], ["warmup_epochs is 9", "epochs (3)", "lower warmup_epochs"]),
        (["views.jitter=1.5"], ["views.jitter", "1.5", "less than or equal to 1"]),
        (["views.crop_scale=[0.5]"], ["views.crop_scale", "required"]),
        (["views.crop_scale=[1, 0.5]"], ["crop_scale is [1.0, 0.5]", "low <= high"]),
        (["data.mode=ram"], ["data.mode", "'ram'", "'resident'"]),
        (["resources.gpus=maybe"], ["resources.gpus", "'maybe'", "'auto'"]),
        (["checkpoint.keep=1"], ["checkpoint.keep", "2 or more"]),
        (["name=a/b"], ["name", "'a/b'", "pattern"]),
        (["optim=3"], ["optim", "section", "3", "--set optim.KEY="]),
        (["optim.lr"], ["'optim.lr'", "section.key=value"]),
        (["=3"], ["'=3'", "section.key=value"]),
        (["optim..lr=3"], ["'optim..lr=3'", "section.key=value"]),
        (["seed=1", "seed.x=3"], ["'seed.x=3'", "'seed' is a value"]),
        (["optim.lr=[1"], ["'optim.lr=[1'", "not a YAML value", "quotes"]),
    ],
)
def test_bad_overrides_are_named_with_the_remedy(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", overrides)
    for text in said:
        assert text in str(caught.value)


def test_all_faults_are_told_at_once_and_each_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", ["optim.lr=-1", "seed=-1", "views.hue=2", "resources.gpus=maybe"])
    faults = str(caught.value).splitlines()[1:]
    assert [fault.split(":")[0].strip() for fault in faults] == ["seed", "views.hue", "optim.lr", "resources.gpus"]


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'digit'; did you mean 'digits'\? \(known: .*\).*\.yaml"):
        load_config("digit")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", r"\['a', 'b'\].*no mapping; write sections"),
        ("", "None.*no mapping"),
        ("optim: [1", r"not YAML.*correct it"),
        ("optim: {lr: 1}\n", r"data: a value is needed; give one with --set data\.path="),
        ("1: 2\ndata: {path: x}\n", "Keys should be strings"),
        ("data:\n", r"data: is a section, not a value \(got None\)"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.compile(said, re.DOTALL)) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration file '.*absent\.yaml'; give the path"):
        load_config(tmp_path / "absent.yaml")


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("digits").seed = 3  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert [key for key, field in settings_table().items() if not field.description] == []


ANOTHER = {
    "name": "x",
    "storage": "elsewhere",
    "data.path": "moved/digits",
    "data.source": "null",
    "data.mode": "streaming",
    "data.resident_limit_gb": "0.1",
    "data.shuffle_buffer": "10",
    "data.prefetch_batches": "4",
    "estep.batch_size": "7",
    "checkpoint.every_epochs": "3",
    "resources.workers": "5",
    "tracking.uri": "sqlite:///x.db",
}


@pytest.mark.parametrize(("key", "value"), ANOTHER.items())
def test_circumstances_do_not_make_another_run(key: str, value: str) -> None:
    assert key.startswith(CIRCUMSTANCES)
    assert fingerprint(load_config("digits", [f"{key}={value}"])) == fingerprint(load_config("digits"))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optim.batch_size=64",
        "optim.epochs=81",
        "optim.precision=bfloat16",
        "data.image_size=8",
        "data.path=data/other",
        "views.hue=0.2",
        "model.feature_size=64",
        "method.num_clusters=9",
        "estep.restarts=3",
    ],
)
def test_what_decides_the_result_makes_another_run(override: str) -> None:
    assert fingerprint(load_config("digits", [override])) != fingerprint(load_config("digits"))


def test_result_settings_leave_out_circumstances_only() -> None:
    config = parse_config({"data": {"path": "x"}}, "test")
    missing = set(settings_table()) - set(result_settings(config))
    assert all(key.startswith(CIRCUMSTANCES) for key in missing)
    assert result_settings(config)["optim.lr"] == 0.05
    assert all(any(key.startswith(prefix) for key in missing) for prefix in CIRCUMSTANCES)  # none is misspelt


def test_workers_are_a_number_or_a_range() -> None:
    assert load_config("digits", ["resources.workers=3"]).resources.worker_range.max == 3
    ranged = load_config("digits", ["resources.workers={min: 2, max: 8}"]).resources.worker_range
    assert (ranged.min, ranged.max) == (2, 8)
    dotted = load_config("digits", ["resources.workers.min=1", "resources.workers.max=2"]).resources.worker_range
    assert (dotted.min, dotted.max) == (1, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0", "greater than or equal to 1"),
        ("{min: 3, max: 2}", "min is 3, more than max"),
        ("{min: 1, mx: 2}", "resources.workers: "),
        ("many", "processes that train together"),
    ],
)
def test_workers_that_are_neither_are_refused(value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", [f"resources.workers={value}"])
    assert said in str(caught.value)
