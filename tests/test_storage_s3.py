"""Storage in S3, by URIs as users of other stores write them, and on the bad days of a store."""

from __future__ import annotations

import itertools
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import OutOfDiskError

from pipeline import cli
from pipeline.data.ingest import ingest
from pipeline.data.read import read_rows
from pipeline.data.shards import read_manifest, validate_shards
from pipeline.data.sources import open_source
from pipeline.errors import ConfigError, DataError, RunFailed
from pipeline.lease import LEASE, hold
from pipeline.storage import Folder, check_readable, check_writable, filesystem, storage_fault
from tests.helpers.s3 import BUCKET, KEYS, S3Server, expire, for_seconds, silent_for, throttle
from tests.helpers.sources import noisy_jpeg, write_parquet, write_tar


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    running.empty()  # moto's servers of one process share their buckets
    yield running
    running.fault = None
    running.empty()


@pytest.mark.parametrize("path", ["", "/", "/runs", "/runs/", "/my%20runs", "/a/b/c"])
def test_a_uri_with_options_is_a_folder_like_any_other(server: S3Server, path: str) -> None:
    run = Folder(server.uri(path)).subfolder("mine").make()
    run.write("x.json", {"a": 1})
    run.subfolder("more").make().update("y.json", b=2)
    inner = path.strip("/").replace("%20", " ")
    below = f"{inner}/mine" if inner else "mine"
    assert {key for key in server.objects() if not key.endswith("/")} == {f"{below}/x.json", f"{below}/more/y.json"}
    assert run.names() == ["more", "x.json"]
    again = Folder(run.path)
    assert again.read("x.json") == {"a": 1}
    assert (again.name, again.root, again.parent_root) == ("mine", f"{BUCKET}/{below}", f"{BUCKET}/{inner}".rstrip("/"))


def test_the_server_may_come_from_the_environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.set_environment(monkeypatch)
    Folder(f"s3://{BUCKET}/here").make().write("x.json", {})
    assert "here/x.json" in server.objects()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    Folder(server.uri("/there")).make().write("x.json", {})  # the URI's own wins
    assert "there/x.json" in server.objects()


def test_a_filesystem_travels_with_its_patience_and_without_keys(server: S3Server) -> None:
    files, root = filesystem(server.uri("/x"))
    sent = pickle.dumps(files)
    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    received = pickle.loads(sent)
    received.create_dir(root)
    server.fault = for_seconds(2, throttle)
    assert received.get_file_info(root).is_file is False


def test_one_command_at_a_time_works_in_a_bucket(server: S3Server) -> None:
    run = Folder(server.uri("/run")).make()
    with hold(run), pytest.raises(ConfigError, match="another command is working in"), hold(run):
        pytest.fail("held twice")
    assert run.read(LEASE) is None


@pytest.mark.parametrize("path", ["", "/", "/new/runs/"])
def test_a_place_is_written_and_read_before_it_is_needed(server: S3Server, path: str) -> None:
    check_writable(server.uri(path))
    assert not [key for key in server.objects() if "probe" in key]


def test_a_place_that_cannot_be_used_is_named_at_once(server: S3Server) -> None:
    nobody = "s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(ConfigError, match=r"storage='s3://bucket/x\?.*cannot be written.*endpoint_override or AWS_"):
        check_writable(nobody)
    with pytest.raises(ConfigError, match=r"data\.path='s3://bucket/x\?.*cannot be read.*endpoint_override or AWS_"):
        check_readable(nobody, "data.path")
    with pytest.raises(
        ConfigError, match=r"storage='s3://nothing/x\?.*not found.*set storage to a writable folder or URI"
    ):
        check_writable(server.uri("/x").replace(BUCKET, "nothing"))
    server.fault = expire
    with pytest.raises(ConfigError, match="the credentials have expired: renew them"):
        check_writable(server.uri("/x"))


@pytest.mark.parametrize("fault", [for_seconds(4, throttle), silent_for(4), silent_for(3.5, for_seconds(2, throttle))])
def test_a_store_that_comes_back_is_waited_for(server: S3Server, fault: object) -> None:
    folder = Folder(server.uri("/wait")).make()
    folder.write("x.json", {"a": 1})
    server.fault = fault  # type: ignore[assignment]
    assert folder.read("x.json") == {"a": 1}
    folder.write("y.json", {"b": 2})
    assert folder.read("y.json") == {"b": 2}


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (throttle, r".*HTTP status 503.*; S3 failed at every attempt .*same command again, which continues"),
        (expire, r".*HTTP status 400.*; the credentials have expired: .*same command again, which continues"),
    ],
)
def test_one_that_does_not_is_one_line(
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: object,
    line: str,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("sys.argv", ["digpro", "report", server.uri("/runs/mine")])
    server.fault = fault  # type: ignore[assignment]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"error: {line}", said), said


def test_other_errors_are_not_the_store_s(tmp_path: Path) -> None:
    assert storage_fault(FileNotFoundError(2, "No such file")) is None
    assert storage_fault(OSError("Path does not exist 'bucket/x'. Detail: AWS Error NO_SUCH_KEY")) is None
    assert storage_fault(OSError(28, "No space left on device")) == (
        "[Errno 28] No space left on device; free some space or raise the quota, then run the same command again, "
        "which continues"
    )
    torch_says = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert "free some space" in (storage_fault(torch_says) or "")


def test_ray_without_room_for_objects_is_one_line() -> None:
    fault = storage_fault(OutOfDiskError("raised by a reader"))
    assert fault is not None
    assert fault.startswith("Ray's object store is full, and so is the disk")
    assert "--object-store-memory" in fault
    assert "raise the quota" in (storage_fault(OSError(122, "Disk quota exceeded")) or "")


def upload_source(server: S3Server, kind: str, folder: Path) -> str:
    """Six images in one form in the bucket."""
    images = [noisy_jpeg(number) for number in range(6)]
    if kind == "imagefolder":
        contents = {f"{number}.jpg": image for number, image in enumerate(images)}
    elif kind == "webdataset":
        write_tar(folder / "x.tar", {f"{number}.jpg": image for number, image in enumerate(images)})
        contents = {"x.tar": (folder / "x.tar").read_bytes()}
    else:
        write_parquet(folder / "x.parquet", images)
        contents = {"x.parquet": (folder / "x.parquet").read_bytes()}
    for name, content in contents.items():
        server.client().put_object(Bucket=BUCKET, Key=f"photos/{name}", Body=content)
    return f"{kind}:{server.uri('/photos')}"


@pytest.mark.parametrize(("kind", "before"), [("imagefolder", 5), ("webdataset", 1), ("parquet", 3)])
def test_images_are_not_lost_to_a_store_that_fails(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, before: int
) -> None:
    """A fault in mid-ingest ends it; the same command continues, and nothing is in quarantine."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    source, reads = upload_source(server, kind, tmp_path), itertools.count()

    def expire_in_the_middle(method: str, path: str) -> tuple[str, str, str] | None:
        return expire(method, path) if "/photos/" in path and next(reads) >= before else None

    server.fault = expire_in_the_middle
    with pytest.raises(RunFailed, match="the credentials have expired: renew them"):
        ingest(source, str(tmp_path / "out"))
    server.fault = None
    manifest = ingest(source, str(tmp_path / "out"))
    assert (manifest.num_images, manifest.quarantined_count) == (6, 0)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("photos/[0-3].jpg", 4), ("*/*.jpg", 6), ("photos/5.jpg", 1), ("list.txt", 2), ("photos/%3F.jpg", 6)],
)
def test_images_of_a_bucket_are_chosen_by_name(server: S3Server, chosen: str, expected: int) -> None:
    """The `?` of a URI begins its options; that of a pattern is written %3F."""
    upload_source(server, "imagefolder", Path())
    server.client().put_object(Bucket=BUCKET, Key="list.txt", Body=b"photos/1.jpg\nphotos/2.jpg\n")
    assert open_source(server.uri(f"/{chosen}"), 10).seen == expected


def test_shards_in_a_bucket_are_written_and_read(server: S3Server) -> None:
    place = server.uri("/digits/")
    source, images = upload_source(server, "imagefolder", Path()), server.uri("/shards/")
    manifest = ingest(source, images)
    assert validate_shards(images).num_images == manifest.num_images == 6
    assert read_rows(images, manifest, 2, 5).column("index").to_pylist() == [2, 3, 4]
    assert {key.split("/")[0] for key in server.objects()} == {"photos", "shards"}
    with pytest.raises(DataError, match=re.escape(f"fill it with `digpro ingest SOURCE '{place}'`")):
        read_manifest(place)
