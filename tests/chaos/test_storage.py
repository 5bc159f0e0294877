"""Faults of the store during a run: it throttles, says nothing, or finds the token expired."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.loading import load_config
from pipeline.errors import RunFailed
from pipeline.runs.export import export
from pipeline.runs.train import train
from pipeline.storage import join
from pipeline.tuning.search import search
from pipeline.tuning.space import load_space
from tests.helpers.images import encoded
from tests.helpers.runs import options, outcome, settings, start_command
from tests.helpers.s3 import BUCKET, Fault, S3Server, expire, for_seconds, ray_with_s3, silent_for, throttle

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("without_artifacts")]


@pytest.fixture(scope="module", autouse=True)
def store() -> Iterator[S3Server]:
    with ray_with_s3() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture
def run(folder: Path, store: S3Server) -> Any:
    """Runs in the bucket; the fault comes once a run has saved two checkpoints."""

    def start(name: str, fault: Fault | None = None) -> dict[str, Any]:
        places = [f"storage={store.uri('/runs')}", f"data.path={store.uri('/digits')}"]
        config = load_config("digits", settings(folder, f"name={name}", *places, "tracking.enabled=false"))

        def fail_when_saved() -> None:
            while not ended.is_set():
                saved = {key.split("/")[2] for key in store.objects(f"runs/{name}/checkpoint_")}
                if len(saved) >= 2:
                    store.fault = fault
                    return
                time.sleep(0.1)

        ended = threading.Event()
        if fault is not None:
            threading.Thread(target=fail_when_saved).start()
        try:
            return train(config)
        finally:
            ended.set()
            store.fault = None

    return start


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("throttled", for_seconds(8, throttle)),
        ("silent", silent_for(20, for_seconds(5, throttle))),
        ("renewed", for_seconds(3, expire)),
    ],
)
def test_a_store_that_comes_back_changes_nothing(run: Any, name: str, fault: Fault) -> None:
    assert outcome(run(name, fault)["folder"]) == outcome(run("sound")["folder"])


def test_a_token_that_expires_is_one_line_and_the_same_command_continues(run: Any) -> None:
    with pytest.raises(RunFailed, match="the credentials have expired: renew them") as failed:
        run("expired", expire)
    assert len(str(failed.value).splitlines()) == 1
    assert outcome(run("expired")["folder"]) == outcome(run("sound")["folder"])


SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(0.01, 0.1)}
"""


def test_a_search_with_its_cache_and_the_use_of_its_best_run_are_in_the_bucket(folder: Path, store: S3Server) -> None:
    """The URI has a query. The search embeds the images first."""
    others = {key for key in store.objects() if not key.startswith("digits/")}  # runs of the tests before
    (folder / "space.py").write_text(SPACE)
    places = [f"storage={store.uri('/searches')}", f"data.path={store.uri('/digits')}"]
    frozen = ["model.encoder=python:tests.helpers.backbones:with_input", "model.freeze=true", "views.cached=2"]
    open_sizes = ["views.size=null", "data.image_size=null", "resources.workers=1", "resources.cpus_per_worker=0.5"]
    frozen.append(f"tracking.uri=sqlite:///{folder}/mlflow.db")
    config = load_config("digits", settings(folder, "name=search", *places, *frozen, *open_sizes))
    space = load_space(str(folder / "space.py"))
    summary = search(config, space, label="digits", trials=2, scheduler="none", concurrent=2)
    assert [row["status"] for row in summary["trials"]] == ["finished", "finished"]
    run = join(store.uri("/searches"), "search", "trials", summary["best"]["trial"])
    exported = export(run, "safetensors", store.uri("/exported"))
    keys = store.objects() - others
    assert {key.partition("/")[0] for key in keys} == {"digits", "searches", "exported"}
    assert {key.split("/")[1] for key in keys if key.startswith("searches/")} >= {"search", "features"}
    assert {join(store.uri(), key) for key in keys} >= set(exported.values())
    of_best = {key.rpartition("/")[2] for key in keys if f"/trials/{summary['best']['trial']}/" in key}
    assert of_best >= {"atlas.html", "assignments.parquet"}


def test_source_shards_runs_and_assignments_may_lie_in_the_root_of_a_bucket(tmp_path: Path, store: S3Server) -> None:
    """As commands, which stream: Ray's own lines stay off the terminal, and nothing is written beside the bucket."""
    store.empty()
    client, log = store.client(), tmp_path / "log"
    for number in range(200):
        client.put_object(Bucket=BUCKET, Key=f"photos/{number % 2}/{number}.png", Body=encoded(number))
    places = [f"data.source=imagefolder:{store.uri('/photos')}", f"data.path={store.uri('/shards')}"]
    small = ["optim.batch_size=32", "method.bank_size=64", "method.num_clusters=2", "data.mode=streaming"]
    more = [f"storage={store.uri('/')}", "name=rooted", "tracking.enabled=false"]
    train = ["train", "--preset", "digits", *options(settings(tmp_path, *places, *small, *more))]
    client.create_bucket(Bucket="assigned")  # assignments want an empty folder
    assign = ["assign", store.uri("/rooted"), store.uri("/shards"), store.uri().replace(BUCKET, "assigned")]
    for command in (train, assign):
        assert start_command(command, log).wait(300) == 0, log.read_text()
    assert {"rooted/summary.json", "shards/manifest.json"} <= store.objects()
    assert "summary.json" in {item["Key"] for item in client.list_objects_v2(Bucket="assigned")["Contents"]}
    assert not [line for line in log.read_text().splitlines() if "raylet" in line or "Traceback" in line]
    assert not Path("s3:").exists()
