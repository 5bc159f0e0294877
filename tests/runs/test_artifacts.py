"""What a finished run leaves beside its pictures: the profile, with the ledger of its epochs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from pipeline.runs.artifacts import keep_profile
from pipeline.storage import Folder


def test_the_profile_gets_a_ledger_and_goes_to_mlflow(tmp_path: Path) -> None:
    profile, local = Folder(str(tmp_path / "run/profile")).make(), tmp_path / "local"
    profile.write_bytes("trace-0.json.gz", b"trace")
    local.mkdir()
    sent: dict[str, bytes] = {}
    writer = SimpleNamespace(artifact=lambda path, folder: sent.update({f"{folder}/{path.name}": path.read_bytes()}))
    keep_profile(profile, [{"epoch": 1.0, "seconds_step": 2.0, "loss": 3.0}], local, writer)
    assert sent.keys() == {"profile/trace-0.json.gz", "profile/ledger.json"}
    assert sent["profile/trace-0.json.gz"] == b"trace"
    assert json.loads(sent["profile/ledger.json"]) == {"epochs": [{"epoch": 1.0, "seconds_step": 2.0}]}
