"""The command line as a user meets it: help, bad input, exit statuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipeline import cli
from pipeline.config.loading import load_config, preset_names
from pipeline.config.models import RunConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, DecodeError, RunFailed
from pipeline.storage import Folder
from pipeline.tracking import open_run, spool_path
from pipeline.tracking.spool import MetricPoint, Spool
from tests.helpers.command_line import refused
from tests.helpers.images import encoded, put
from tests.helpers.manifests import manifest

COMMANDS = (
    "ingest embed train tune assign evaluate export label report sort compare combine "
    "sweep-k deliver doctor submit stop presets"
)


@pytest.mark.parametrize("command", ["", *COMMANDS.split()])
def test_help_is_there(digpro, command: str) -> None:
    status, out, _ = digpro(*command.split(), "--help")
    assert status == 0
    assert "Usage: digpro" in out
    assert "..." not in out.partition("Commands:")[2]  # no description is cut short


def test_help_needs_nothing_heavy() -> None:
    script = "import sys; import pipeline.cli; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "train", "--preset", "digit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refused((done.returncode, done.stdout, done.stderr), "error: unknown preset 'digit'; did you mean 'digits'?")


@pytest.mark.parametrize(
    ("options", "encoder", "weights", "views"),
    [
        ([], "python:pipeline.backbones.efficientnet_lite:efficientnet_lite0", None, 4),
        (["--encoder", "timm:resnet18"], "timm:resnet18", "default", 4),
        (
            ["--encoder", "torchvision:resnet18", "--weights", "/w.pth", "--views", "2"],
            "torchvision:resnet18",
            "/w.pth",
            2,
        ),
        (["--encoder", "python:mine:network"], "python:mine:network", None, 4),
    ],
)
def test_embed_takes_the_backbone_from_its_options(
    digpro, monkeypatch: pytest.MonkeyPatch, options: list[str], encoder: str, weights: str | None, views: int
) -> None:
    asked: list[RunConfig] = []

    def fail(config: RunConfig, echo: object) -> None:
        asked.append(config)
        raise ConfigError("no further")

    monkeypatch.setattr("pipeline.runs.embed.make_cache", fail)
    refused(digpro("embed", "data/mine", "features", *options), "no further")
    (config,) = asked
    assert (config.data.path, config.data.features) == ("data/mine", "features")
    assert (config.model.encoder, config.model.weights, config.views.cached) == (encoder, weights, views)


def test_sweep_k_of_shards_needs_a_place_for_its_results(digpro, tmp_path: Path) -> None:
    refused(digpro("sweep-k", tmp_path), "is not the folder of a run; for shards, give --out")


def test_sweep_k_says_when_a_run_left_no_features(digpro, tmp_path: Path) -> None:
    identity = {"config": load_config("digits").model_dump(), "manifest": manifest().model_dump()}
    (tmp_path / "run.json").write_text(json.dumps(identity))
    refused(digpro("sweep-k", tmp_path), "holds no features of its images", "run its `digpro train` again")


def test_embed_says_that_images_must_be_ingested(digpro, tmp_path: Path) -> None:
    put(tmp_path / "photos" / "a.png", encoded())
    result = digpro("embed", tmp_path / "photos", tmp_path / "features")
    refused(result, "images must be ingested before they are used", "digpro ingest")


def test_presets_are_listed_and_shown_whole(digpro) -> None:
    assert digpro("presets")[1].split() == preset_names()
    shown = yaml.safe_load(digpro("presets", "digits")[1])
    assert RunConfig.model_validate(shown) == load_config("digits")


def test_the_version_names_what_it_runs_on(digpro) -> None:
    status, out, _ = digpro("--version")
    assert status == 0
    pattern = r"digpro \d+\.\d+\S* \(Python 3\.\d+\.\d+, torch \d+\.\d+\S*, ray \d+\.\d+\.\d+\)\n"
    assert re.fullmatch(pattern, out)


ODD = "/data/[final]/[/red]/:smile:/" + "long " * 60 + "x"


def test_lines_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    cli.echo(ODD)
    cli.echo(ODD, error=True)
    assert tuple(capsys.readouterr()) == (f"{ODD}\n", f"{ODD}\n")


def test_paths_on_the_screen_are_the_paths(digpro, tmp_path: Path) -> None:
    file = tmp_path / "[final]" / "[bold]x[/bold].yaml"
    refused(digpro("train", "-p", file), str(file))
    refused(digpro("evaluate", tmp_path / "[final]" / ":warning:"), str(tmp_path / "[final]" / ":warning:"))
    (tmp_path / "[data]").mkdir()
    manifest(500).write(str(tmp_path / "[data]"))
    used = tmp_path / "runs" / "mine"
    used.mkdir(parents=True)
    summary = {"scores": {}, "outputs": {"clusters": f"{tmp_path}/[data]/clusters.png"}}
    (used / "summary.json").write_text(json.dumps(summary))
    out = digpro(*train_on(tmp_path / "[data]", "name=mine"))[1]
    assert f"{tmp_path}/[data]/clusters.png" in out


def test_bytes_that_are_no_text_are_escaped() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "evaluate", b"/none/\xff[a]"]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 2
    assert b"/none/\\udcff[a]" in done.stderr


def test_errors_end_with_their_own_status(digpro, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [(ConfigError, 2), (DataError, 2), (RunFailed, 1), (CheckpointError, 1), (DecodeError, 1)]
    for kind, status in kinds:

        def fail(*_: object, kind: type[Exception] = kind) -> None:
            raise kind("it is [this]; do that")

        monkeypatch.setattr(cli, "load_config", fail)
        assert digpro("presets", "digits") == (status, "", "error: it is [this]; do that\n")


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_signals_end_a_command_with_one_line(
    digpro, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int, name: str
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(cli, "load_config", lambda *_: signal.raise_signal(number))
    said = f"interrupted by {name}; run the same command again to continue\n"
    assert digpro("presets", "digits") == (status, "", said)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--sett", "x=1"], ["ingest", "digits"], ["train", "extra"]])
def test_wrong_usage(digpro, arguments: list[str]) -> None:
    refused(digpro(*arguments), "Usage: digpro")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optim.lrr=1"], ["optim.lrr: unknown key", "did you mean 'lr'?"]),
        (["optim.lr=-1"], ["optim.lr", "greater than 0", "-1"]),
        (["optim.lr"], ["section.key=value"]),
    ],
)
def test_bad_settings(digpro, settings: list[str], said: list[str]) -> None:
    refused(digpro("train", *(f"--set={setting}" for setting in settings)), "error: ", *said)


def test_bad_files(digpro, tmp_path: Path) -> None:
    refused(digpro("train", "-p", tmp_path / "none.yaml"), "error: there is no configuration file", "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    refused(digpro("train", "-p", tmp_path / "list.yaml"), "list.yaml", "not a mapping")


def test_storage_below_a_file(digpro, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(digpro("train", "--set", f"storage={tmp_path / 'file' / 'runs'}"), "file/runs", "cannot be written")


def train_on(data: Path, *settings: str) -> list[object]:
    """Arguments of a training on a data folder, with runs beside it."""
    places = [f"data.path={data}", "data.source=null", f"storage={data.parent / 'runs'}"]
    return ["train", *(f"--set={setting}" for setting in (*places, *settings))]


def test_data_without_manifest(digpro, tmp_path: Path) -> None:
    refused(digpro(*train_on(tmp_path / "none")), "holds no manifest.json", "digpro ingest SOURCE")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method.num_clusters=5000", "num_clusters=5000 exceeds the 500 images"),
        ("optim.batch_size=600", "batch_size=600 exceeds the 500 images"),
        ("method.num_clusters=null", "set method.num_clusters"),
    ],
)
def test_settings_that_do_not_fit_the_data(digpro, tmp_path: Path, setting: str, said: str) -> None:
    (tmp_path / "data").mkdir()
    manifest(500, classes=0).write(str(tmp_path / "data"))
    refused(digpro(*train_on(tmp_path / "data", setting)), said)


def test_a_name_in_use(digpro, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    manifest(500).write(str(tmp_path / "data"))
    used = tmp_path / "runs" / "mine"
    used.mkdir(parents=True)
    before = load_config("digits", ["name=mine", f"data.path={tmp_path / 'data'}", "data.source=null"])
    identity = {"config": before.model_dump(mode="json"), "manifest": manifest(500).model_dump(mode="json")}
    (used / "run.json").write_text(json.dumps(identity))
    said = "run 'mine'", "seed was 0, is 1", "Give another name"
    refused(digpro(*train_on(tmp_path / "data", "name=mine", "seed=1")), *said)


def test_a_finished_run_shows_its_result_again(digpro, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    manifest(500).write(str(tmp_path / "data"))
    used = tmp_path / "runs" / "mine"
    used.mkdir(parents=True)
    summary = {"scores": {"acc": 0.5}, "outputs": {"clusters": "clusters.png"}}
    (used / "summary.json").write_text(json.dumps(summary))
    status, out, _ = digpro(*train_on(tmp_path / "data", "name=mine"))
    assert status == 0
    for text in ("mine is already finished", "--set name=", "ACC 0.5000", "clusters.png"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "tune_spaces/digpr"], ["there is no search space", "did you mean 'tune_spaces/digpro.py'?"]),
        (["--space", "tune_spaces/digpro", "--scheduler", "ash"], ["unknown scheduler 'ash'", "asha, none"]),
        (["--space", "tune_spaces/digpro", "--set", "optim.lrr=1"], ["optim.lrr: unknown key"]),
        (["--space", "tune_spaces/digpro"], ["method.num_clusters"]),
    ],
)
def test_searches_that_cannot_be_made(digpro, tmp_path: Path, arguments: list[str], said: list[str]) -> None:
    (tmp_path / "data").mkdir()
    manifest(500, classes=0).write(str(tmp_path / "data"))
    places = [f"data.path={tmp_path / 'data'}", "data.source=null", f"storage={tmp_path / 'runs'}"]
    settings = [f"--set={setting}" for setting in (*places, "method.num_clusters=null")]
    refused(digpro("tune", *arguments, *settings), "error: ", *said)


@pytest.mark.parametrize("epochs", [6, 20])
def test_a_setting_that_the_space_replaces_is_named_with_its_file(digpro, tmp_path: Path, epochs: int) -> None:
    (tmp_path / "data").mkdir()
    manifest(500).write(str(tmp_path / "data"))
    space = tmp_path / "short.py"
    space.write_text(
        "from ray import tune\nSPACE = {'optim.lr': tune.loguniform(0.01, 1)}\nSETTINGS = {'optim.epochs': 20}\n"
    )
    finished = tmp_path / "runs" / "mine"
    finished.mkdir(parents=True)
    best = {"number": 0, "point": {"optim.lr": 0.1}}
    (finished / "summary.json").write_text(json.dumps({"best": best, "trials": [{}], "scores": {}, "outputs": {}}))
    places = [f"data.path={tmp_path / 'data'}", "data.source=null", f"storage={tmp_path / 'runs'}", "name=mine"]
    settings = [f"--set={setting}" for setting in (*places, "optim.warmup_epochs=2", f"optim.epochs={epochs}")]
    status, out, _ = digpro("tune", "--space", space, *settings)
    assert status == 0
    said = f"trials use optim.epochs=20 instead of 6, because SETTINGS in {space} has it; to use 6, change it there\n"
    assert out.startswith(said) == (epochs == 6)
    assert ("trials use" in out) == (epochs == 6)
    assert "best of 1 trials: trial 0  optim.lr=0.1\n" in out


def test_a_search_without_a_space_is_wrong_usage(digpro) -> None:
    refused(digpro("tune", "--preset", "digits"), "Usage: digpro tune", "--space")


def test_evaluate_on_no_run(digpro, tmp_path: Path) -> None:
    refused(digpro("evaluate", tmp_path / "absent"), "absent holds no run", "summary.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [["ingest"], ["assign", "run"], ["submit", "ingest"]])
def test_a_pattern_that_the_shell_has_expanded(digpro, line: list[str]) -> None:
    refused(digpro(*line, "a.jpg", "b.jpg", "c.jpg", "out"), 'quote the pattern, as in "photos/*.jpg"', "'out'")


def test_ingest_of_no_source(digpro, tmp_path: Path) -> None:
    refused(digpro("ingest", "imagefoldr:x", tmp_path / "out"), "'imagefoldr:x'", "imagefolder")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """An image folder of three classes with two images each."""
    for i, name in enumerate(("cat", "dog", "emu") * 2):
        put(tmp_path / "animals" / name / f"{i}.png", encoded(i))
    return tmp_path / "animals"


def test_ingest_of_listed_classes_says_whether_the_numbers_agree(digpro, animals: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("cat\t2\ndog\t2\n")
    command = ["ingest", f"imagefolder:{animals}", tmp_path / "out", "--classes", tmp_path / "mine.txt"]
    status, out, err = digpro(*command)
    assert (status, err) == (0, "")
    assert "= 4 images + 0 quarantined + 1 left out by rule\n" in out
    assert f"classes:     4 images in 2 classes, as in {tmp_path}/mine.txt\n" in out
    (tmp_path / "mine.txt").write_text("cat\t2\ndog\t3\n")
    status, out, err = digpro(*command)  # the ingest is finished, and nothing is read again
    assert status == 0
    assert (
        err
        == f"warning: class counts differ from {tmp_path}/mine.txt: 4 images, 5 expected\n  dog: 2 images, 3 expected\n"
    )
    assert f"summary:     {tmp_path}/out/summary.json" in out


def test_ingest_of_classes_that_are_not_there(digpro, animals: Path, tmp_path: Path) -> None:
    def ingest(classes: object) -> tuple[int, str, str]:
        return digpro("ingest", f"imagefolder:{animals}", tmp_path / "out", "--classes", classes)

    refused(ingest("imagenet-1"), "'imagenet-1' is neither a list of classes", "did you mean 'imagenet-10'?")
    refused(ingest("imagenet-10"), "no images of 'n02056570'", "and 5 more", "it has 'cat', 'dog', 'emu'")
    assert not (tmp_path / "out").exists()


def test_records_that_waited_are_delivered(digpro, tmp_path: Path) -> None:
    """They were spooled while MLflow was unreachable, and the run has ended since."""
    run = Folder(f"{tmp_path}/runs/mine").make()
    config = load_config("digits", [f"storage={tmp_path}/runs", "name=mine"])
    ref = open_run(config, run)
    Spool(spool_path(run)).add([MetricPoint("acc", 1, 0.5, 1000)])
    status, out, _ = digpro("deliver", run.path)
    assert (status, out) == (0, f"1 records sent to sqlite:///{tmp_path}/runs/mlflow.db, 0 still waiting\n")
    assert MlflowClient(ref.uri).get_run(ref.run_id).data.metrics == {"acc": 0.5}
    assert digpro("deliver", run.path)[1].startswith("0 records sent")
    refused(digpro("deliver", tmp_path), "give the folder of a training run")
