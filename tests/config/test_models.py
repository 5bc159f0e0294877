"""Configurations: layers, messages for whatever is wrong with one, and which settings make it another run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.identity import circumstances, environment_settings, fingerprint, result_settings, run_name
from pipeline.config.loading import (
    get_setting,
    load_config,
    parse_config,
    parse_saved,
    preset_names,
    set_setting,
    settings_table,
    with_settings,
)
from pipeline.config.models import CIRCUMSTANCE, Circumstance, EStepConfig, RunConfig
from pipeline.config.removed import REMOVED, STILL_NAMED
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


# Texts that YAML would read as a number, a time, a date, a truth value, a list, a mapping, a comment or nothing.
TEXTS = ["007", "1_0", "2024-05-01", "on", "no", "1e3", "0x1F", "Null", "NaN", "true", "2024"]
PATHS = [
    *TEXTS,
    "12:30",
    "~",
    "[final]/x",
    "{a: b}",
    "a: b",
    "x #1",
    "&x",
    "*x",
    "!x",
    "%41",
    "?x",
    "- x",
    "a=b",
    "'",
    " x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_names_are_what_was_typed(tmp_path: Path, text: str) -> None:
    assert load_config("digits", [f"name={text}"]).name == text
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: {text}\ndata: {{path: x}}\n")
    assert load_config(file).name == text


@pytest.mark.parametrize("text", PATHS)
@pytest.mark.parametrize("key", ["data.path", "data.source", "storage", "tracking.uri", "tracking.experiment"])
def test_texts_are_what_was_typed(key: str, text: str) -> None:
    assert get_setting(load_config("digits", [f"{key}={text}"]).model_dump(), key) == text


def test_null_and_nothing_are_no_text() -> None:
    for typed in ("null", ""):
        assert load_config("digits", [f"data.source={typed}"]).data.source is None
        with pytest.raises(ConfigError, match=r"storage: .*got None"):
            load_config("digits", [f"storage={typed}"])


def test_quotes_that_the_shell_left_are_taken_off() -> None:
    assert load_config("digits", ["name='007'", 'storage="a b"']).storage == "a b"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-3", 0.001),
        ("optim.epochs=0100", 100),
        ("model.small_stem=off", False),
        ("resources.gpus=true", True),
        ("resources.gpus=auto", "auto"),
        ("views.crop_scale=[.5, 1]", (0.5, 1.0)),
        ("method.num_clusters=null", None),
    ],
)
def test_other_settings_decide_what_their_text_means(override: str, value: object) -> None:
    found = get_setting(load_config("digits", [override]).model_dump(), override.partition("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["Größe", "数字", "x", "_1", "a.b-c", "ü" * 100, "हिन्दी"])
def test_names_of_every_alphabet(name: str) -> None:
    assert load_config("digits", [f"name={name}"]).name == name


def test_a_name_is_one_however_its_letters_were_made() -> None:
    assert load_config("digits", ["name=Gro\u0308ße"]).name == "Größe"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 201, "has 201 bytes"),
        ("ü" * 101, "has 202 bytes"),
        ("x" * 300, "has 300 bytes"),
        ("a/b", "'/' cannot be part of a name"),
        ("a b", "' ' cannot be part of a name"),
        ("a\n", r"'\n' cannot be part of a name"),
        ("..", "begins with"),
        ("-x", "begins with"),
        ("12:30", "':' cannot be part of a name"),
    ],
)
def test_names_that_are_no_folder(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", [f"name={name}"])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400  # a long value is not repeated whole


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_seeds_that_every_library_takes(seed: int) -> None:
    assert load_config("digits", [f"seed={seed}"]).seed == seed
    np.random.RandomState(seed)
    torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(10**40), "1.5", "x"])
def test_other_seeds_are_refused(seed: str) -> None:
    with pytest.raises(ConfigError, match=r"seed: .*of every random choice"):
        load_config("digits", [f"seed={seed}"])


def test_dotted_keys_reach_into_sections_and_lists() -> None:
    values = {"views": {"crop_scale": [0.1, 1.0]}, "seed": 0}
    set_setting(values, "views.crop_scale.0", 0.3)
    set_setting(values, "optim.lr", 0.2)
    assert values == {"views": {"crop_scale": [0.3, 1.0]}, "seed": 0, "optim": {"lr": 0.2}}
    assert get_setting(values, "views.crop_scale.1") == 1.0


@pytest.mark.parametrize("key", ["views.crop_scale.2", "views.crop_scale.x", "seed.x", "none", "views.none"])
def test_dotted_keys_that_lead_nowhere_are_named(key: str) -> None:
    values = {"views": {"crop_scale": [0.1, 1.0]}, "seed": 0}
    with pytest.raises(ConfigError, match=re.escape(key)):
        get_setting(values, key)


@pytest.mark.parametrize("key", ["views.crop_scale.2", "views.crop_scale.x", "seed.x"])
def test_values_are_not_put_where_none_belong(key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        set_setting({"views": {"crop_scale": [0.1, 1.0]}, "seed": 0}, key, 1)


def test_settings_put_into_a_configuration_are_validated() -> None:
    base = load_config("digits")
    changed = with_settings(base, {"views.crop_scale.0": 0.3, "optim.lr": 1}, origin="trial 3")
    assert (changed.views.crop_scale, changed.optim.lr) == ((0.3, 1.0), 1.0)
    assert base.views.crop_scale == (0.35, 1.0)
    with pytest.raises(ConfigError, match=r"'trial 3' cannot be used:\n  optim\.lr"):
        with_settings(base, {"optim.lr": -1}, origin="trial 3")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optm.lr=1"], ["optm", "did you mean 'optim'?"]),
        (["optim.learning_rate=1"], ["optim.learning_rate: unknown key", "known: epochs"]),
        (["optim.leerning=1", "optim.lrr=1"], ["optim.leerning", "optim.lrr", "did you mean 'lr'?"]),
        (["method.num_cluster=3"], ["method.num_cluster", "did you mean 'num_clusters'?"]),
        (["optim.lr=fast"], ["optim.lr", "'fast'", "number", "at a batch of 256"]),
        (["optim.lr=-1"], ["optim.lr", "greater than 0", "-1"]),
        (["optim.lr=inf"], ["optim.lr", "finite", "inf"]),
        (["optim.epochs=2.5"], ["optim.epochs", "2.5", "integer"]),
        (["optim.warmup_epochs=9", "optim.epochs=3"], ["warmup_epochs is 9", "epochs (3)", "lower warmup_epochs"]),
        (["views.jitter=1.5"], ["views.jitter", "1.5", "less than or equal to 1"]),
        (["views.crop_scale=[0.5]"], ["views.crop_scale", "required"]),
        (["views.crop_scale=[1, 0.5]"], ["crop_scale is [1.0, 0.5]", "low <= high"]),
        (["data.mode=ram"], ["data.mode", "'ram'", "'resident'"]),
        (["resources.gpus=maybe"], ["resources.gpus", "'maybe'", "'auto'"]),
        (["checkpoint.keep=1"], ["checkpoint.keep", "2 or more"]),
        (["name=a/b"], ["name", "'a/b'", "use letters"]),
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


def test_all_faults_are_reported_at_once_and_each_once() -> None:
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
        ("- a\n- b\n", r"\['a', 'b'\].*not a mapping; write sections"),
        ("", "None.*not a mapping"),
        ("optim: [1", r"not YAML.*correct it"),
        ("optim: {lr: 1}\n", r"data: a value is required; give one with --set data\.path="),
        ("1: 2\ndata: {path: x}\n", "1: unknown key"),
        ("data: {path: x, path: y}\n", "'path' is given twice"),
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
    "data.features": "elsewhere/features",
    "data.mode": "streaming",
    "data.resident_limit_gb": "0.1",
    "estep.batch_size": "7",
    "checkpoint.every_epochs": "3",
    "resources.workers": "5",
    "tracking.uri": "sqlite:///x.db",
}


@pytest.mark.parametrize(("key", "value"), ANOTHER.items())
def test_circumstances_do_not_make_another_run(key: str, value: str) -> None:
    assert key in circumstances()
    assert fingerprint(load_config("digits", [f"{key}={value}"])) == fingerprint(load_config("digits"))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optim.batch_size=64",
        "optim.epochs=81",
        "optim.precision=bfloat16",
        "data.image_size=8",
        "data.shuffle_window=100",
        "data.path=data/other",
        "views.hue=0.2",
        "model.feature_size=64",
        "method.num_clusters=9",
        "estep.restarts=3",
    ],
)
def test_what_decides_the_result_makes_another_run(override: str) -> None:
    assert fingerprint(load_config("digits", [override])) != fingerprint(load_config("digits"))


def test_a_setting_that_came_later_renames_no_run() -> None:
    """`digits-9687ae1c` is the run of the preset in the first release's documents."""
    assert fingerprint(load_config("digits")) == "9687ae1c"
    assert fingerprint(load_config("digits", ["optim.balance=0.5"])) != "9687ae1c"


def test_what_an_earlier_version_saved_can_be_read() -> None:
    values = load_config("digits").model_dump(mode="json")
    values["data"] |= {"shuffle_buffer": 8192, "prefetch_batches": 1}
    values["estep"] |= {"warm_start": False}
    assert parse_saved(values, "run.json") == load_config("digits")
    with pytest.raises(ConfigError, match=r"data\.shuffle_buffer: is no longer a setting.*leave it out"):
        parse_config(values, "mine.yaml")


def test_what_is_removed_is_no_setting() -> None:
    assert not REMOVED.keys() & settings_table().keys()
    assert STILL_NAMED.keys() <= REMOVED.keys()


# Before the marks at the fields, these beginnings of keys decided; existing runs keep their names.
PREFIXES = (
    *("name", "storage", "data.path", "data.source", "data.features", "data.mode", "data.resident_limit_gb"),
    *(
        "estep.batch_size",
        "estep.probe",
        *("monitor.", "alarms.", "profile.steps", "estep.warmup_every", "data.classes"),  # these came later
        "checkpoint.",
        "resources.",
        "tracking.",
    ),
)
PLACES = (
    "name",
    "storage",
    *(f"data.{key}" for key in ("path", "source", "classes", "features")),
    *("checkpoint.", "resources.", "tracking."),
)


def test_the_marks_say_what_the_prefixes_said() -> None:
    assert circumstances() == [key for key in settings_table() if key.startswith(PREFIXES)]
    assert environment_settings() == [key for key in settings_table() if key.startswith(PLACES)]


def test_a_new_setting_counts_until_it_is_marked() -> None:
    class Section(EStepConfig):
        probe_x: int = 0
        every_x: Circumstance[int] = 0

    fields = Section.model_fields
    assert CIRCUMSTANCE not in fields["probe_x"].metadata
    assert CIRCUMSTANCE in fields["every_x"].metadata


def test_result_settings_leave_out_circumstances_only() -> None:
    found = result_settings(parse_config({"data": {"path": "x"}}, "test"))
    assert set(settings_table()) - set(found) == set(circumstances())
    assert found["optim.lr"] == 0.05


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.encoder=resnet81"], r"model.encoder: unknown encoder .*timm:NAME.*did you mean 'resnet18'\?"),
        (["model.weights=default"], "model.encoder=tiny takes no weights; choose a library's encoder"),
        (["model.freeze=true"], "model.freeze=true would freeze the random weights of tiny; set model.weights"),
        (["views.neighbours=5"], "views.neighbours=5 needs the features of a frozen backbone"),
        (["estep.fit_views=true"], "estep.fit_views=true needs .*model.freeze=true, or estep.fit_views=false"),
        (["data.fit=bend"], "data.fit"),
        (["data.mean=[0.5, 0.5, 128]"], "data.mean"),
    ],
)
def test_settings_of_a_backbone_that_do_not_go_together_are_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits", overrides)


def test_a_setting_that_came_later_does_not_rename_the_runs_from_before() -> None:
    """It makes another run where it is not the default."""
    assert run_name(load_config("digits", ["optim.encoder_lr_factor=1"]), "digits") == "digits-9687ae1c"
    assert run_name(load_config("digits", ["optim.encoder_lr_factor=0.5"]), "digits") != "digits-9687ae1c"
    assert run_name(load_config("digits", ["optim.balance=0.5"]), "digits") != "digits-9687ae1c"


def test_runs_keep_their_names() -> None:
    assert run_name(load_config("digits"), "digits") == "digits-9687ae1c"
    assert run_name(load_config("digits", ["storage=x", "resources.workers=3"]), "digits") == "digits-9687ae1c"
    assert run_name(load_config("cifar10"), "cifar10") == "cifar10-268fec1c"
    assert run_name(load_config("digits", ["name=mine"]), "digits") == "mine"


@pytest.mark.parametrize(("label", "name"), [("my preset [2]", "my-preset--2-"), (".hidden", "hidden"), ("", "run")])
def test_a_label_becomes_a_folder_name(label: str, name: str) -> None:
    found = run_name(load_config("digits"), label)
    assert found == f"{name}-9687ae1c"
    assert load_config("digits", [f"name={found}"]).name == found


def test_a_long_label_is_cut() -> None:
    assert len(run_name(load_config("digits"), "ü" * 150).encode()) <= 200


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


@pytest.mark.parametrize("key", ["storage", "data.path", "data.features", "data.source", "model.weights"])
def test_a_uri_with_a_secret_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: a URI of s3:// holds a key or password") as raised:
        load_config("digits", [f"{key}=s3://KEY:SEC/RET@bucket/x"])
    assert "RET" not in str(raised.value).replace("AWS_SECRET_ACCESS_KEY", "")
