"""Names of clusters: given one by one or by a file, kept with the run, refused where they cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runs.names import read_names, set_names
from pipeline.storage import Folder
from tests.helpers.command_line import refused


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
        ("3=truck", r"cluster 3 does not exist; run has clusters 0 to 2"),
        ("car=truck", r"'car=truck' does not start with the number of a cluster; write it as in"),
        ("absent.yaml", r"absent\.yaml cannot be read"),
        ("list.yaml", r"list\.yaml holds a list in line 1; write lines such as `3: truck`"),
        ("words.yaml", r"words\.yaml, line 1: 'two' is not the number of a cluster"),
        ("broken.yaml", r"broken\.yaml is not YAML \(line 1: "),
        ("empty.yaml", r"empty\.yaml holds nothing; write lines"),
        ("1=two\nlines", r"the name 'two\\nlines' has line breaks"),
        ("1=truck", r"cluster 1 is named twice, 'ship' and 'truck'; name it once"),
        ("runs/lr=0.1/absent", r"runs/lr=0\.1/absent cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_is_kept(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- truck")
    Path("words.yaml").write_text("two: truck")
    Path("broken.yaml").write_text("a: [")
    Path("empty.yaml").write_text("# nothing yet")
    with pytest.raises(ConfigError, match=message):
        set_names(run, ["1=ship", argument])
    assert read_names(Folder(run)) == {}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *[(text, text) for text in ("no", "off", "yes", "false", "0", "007", "1_0", "12:30", "1e3", ".5", "0x10")],
        *[(text, text) for text in ("2024-05-01", "Null", "C#", "=", "-1", "a:b", "größer", "a  b")],
        *[('"null"', "null"), ("'~'", "~"), ('"no"', "no"), ("!!str no", "no"), (">-\n  a\n  b", "a b")],
        *[(text, None) for text in ("", "~", "null", '""', "  # a comment")],
    ],
)
def test_a_name_in_a_file_is_the_text_that_stands_there(run: str, tmp_path: Path, written: str, name: str) -> None:
    (tmp_path / "names.yaml").write_text(f"0: {written}\n1: x\n")
    set_names(run, ["0=before"])
    expected = {0: name, 1: "x"} if name is not None else {1: "x"}
    assert set_names(run, [str(tmp_path / "names.yaml")]) == expected
    assert read_names(Folder(run)) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0: a\n1: [b, c]", r"line 2: a list is not a name"),
        ("0: a\n1: {b: c}", r"line 2: a mapping is not a name"),
        ("0: a\n1: !wow", r"line 2: '!wow' is not a name; write a text, in quotes"),
        ("0: a\n1: !!int 7", r"line 2: 'tag:yaml.org,2002:int 7' is not a name"),
        ("0: a\n1: |\n  b\n  c", r"line 2: the name 'b\\nc' has line breaks"),
        ("0: a\n1: b\n0: c", r"line 3: cluster 0 is named a second time"),
        ("0: a\n00: c", r"line 2: cluster 0 is named a second time"),
        ("0: a\nyes: b", r"line 2: 'yes' is not the number of a cluster"),
        *[
            (f"0: a\n{key}: b", "line 2: .* is not the number of a cluster")
            for key in ("1.0", "-1", "0x1", "1_0", "[1]")
        ],
        ("0: a\n<<: {1: b}", r"line 2: '<<' is not the number"),
        ("0: a\n1: *b", r"not YAML \(line 2: found undefined alias"),
        ("0: a\n---\n1: b", r"not YAML \(line 2: but found another document"),
        ("0:a\n1:b", r"holds '0:a 1:b' in line 1"),
    ],
)
def test_what_is_not_a_name_is_refused_with_its_line(run: str, tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "names.yaml").write_text(lines)
    with pytest.raises(ConfigError, match=message):
        set_names(run, [str(tmp_path / "names.yaml")])
    assert read_names(Folder(run)) == {}


def test_what_is_merged_and_what_is_taken_away_is_said(run: str) -> None:
    lines = list[str]()
    set_names(run, ["0=truck", "1=2"])
    set_names(run, ["1=", "2=truck"], lines.append)
    assert lines == [
        "   0  truck",
        "   2  truck",
        "   1  is no longer named 2",
        "clusters 0, 2 are named truck and count as one",
    ]


def test_a_path_may_hold_an_equals_sign(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("lr=0.1/merge.yaml", "k=7.yaml", "7=best.yaml"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("1: ship")
        assert set_names(run, ["1=", "2=a=b"]) == {2: "a=b"}
        assert set_names(run, [path]) == {1: "ship", 2: "a=b"}


def test_a_run_that_is_not_finished_has_no_clusters_to_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no finished run; give the folder of one, with its clusters\.json"):
        set_names(str(tmp_path), ["0=ship"])


def test_the_command_takes_files_and_pairs_and_says_what_changed(digpro, run: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("1: ship\n2: ship\n")
    lines = ["   0  truck", "   1  ship", "   2  ship", "clusters 1, 2 are named ship and count as one"]
    assert digpro("label", run, tmp_path / "names.yaml", "0=truck") == (0, "\n".join(lines) + "\n", "")
    assert read_names(Folder(run)) == {0: "truck", 1: "ship", 2: "ship"}
    assert digpro("label", run, "2=") == (0, "   0  truck\n   1  ship\n   2  is no longer named ship\n", "")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["3=truck"], "error: cluster 3 does not exist; run has clusters 0 to 2"),
        (["car=truck"], "error: 'car=truck' does not start with the number of a cluster; write it as in 3=truck"),
        (["absent.yaml"], "give CLUSTER=NAME, or a YAML file of such lines"),
        (["words.yaml"], "words.yaml, line 2: 'two' is not the number of a cluster; write lines such as `3: truck`"),
        (["0=ship", "0=truck"], "error: cluster 0 is named twice, 'ship' and 'truck'; name it once"),
        ([], "Usage: digpro label"),
    ],
)
def test_names_that_the_command_cannot_use_are_refused(
    digpro, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.yaml").write_text("0: ship\ntwo: truck")
    refused(digpro("label", run, *names), said)
    refused(digpro("label", tmp_path, "0=ship"), f"error: {tmp_path} holds no finished run; give the folder of one")
    assert read_names(Folder(run)) == {}
