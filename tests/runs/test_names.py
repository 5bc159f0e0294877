"""Names of clusters: given one by one or by a file, kept with the run, refused where they cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runs.names import read_names, set_names
from pipeline.storage import Folder


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "clusters.json").write_text(json.dumps({"sizes": [3, 4, 5]}))
    return str(tmp_path / "run")


def test_names_are_added_changed_and_taken_away(run: str, tmp_path: Path) -> None:
    assert set_names(run, ["2=truck", "0= sports car "]) == {0: "sports car", 2: "truck"}
    (tmp_path / "more.yaml").write_text("1: Lkw, größer\n2: null\n")
    assert set_names(run, [str(tmp_path / "more.yaml"), "0=truck"]) == {0: "truck", 1: "Lkw, größer"}
    assert read_names(Folder(run)) == {0: "truck", 1: "Lkw, größer"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("3=truck", r"cluster 3 does not exist; run has the clusters 0 to 2"),
        ("car=truck", r"'car=truck' names no cluster; give its number"),
        ("absent.yaml", r"absent\.yaml cannot be read"),
        ("list.yaml", r"list\.yaml holds \['truck'\]; write lines such as `3: truck`"),
        ("words.yaml", r"words\.yaml names 'two', which is no number of a cluster"),
        ("broken.yaml", r"broken\.yaml is not YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_kept(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- truck")
    Path("words.yaml").write_text("two: truck")
    Path("broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=message):
        set_names(run, ["1=ship", argument])
    assert read_names(Folder(run)) == {}


def test_a_run_that_is_not_finished_has_no_clusters_to_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no finished run; give the folder that has the clusters\.json of one"):
        set_names(str(tmp_path), ["0=ship"])
