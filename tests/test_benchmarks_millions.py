"""`benchmarks.millions` without Ray: its images, its steps and their resume, its kills, its tables."""

from __future__ import annotations

import io
import mmap
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import many_images
from benchmarks.many_images import GROUPS, NOISE, encode_pngs, group_images, write_images
from benchmarks.millions import (
    E_STEP,
    END,
    EPOCH,
    KILLED,
    Entry,
    KillPoint,
    Records,
    Scale,
    TrainingWatch,
    carry_out,
    is_each_once,
    kill_points,
    measure,
    resumed_at,
    step_ledger,
    training_phase,
    verdicts,
)
from benchmarks.millions_tables import memory_table, time_table
from benchmarks.processes import Command, Peak, Peaks, Rss, kind_of, rss_of
from benchmarks.small_encoder import LEDGER, build, steps_made
from pipeline.config.loading import load_config
from pipeline.data.decode import decode
from pipeline.data.pixel_options import AS_THEY_ARE
from pipeline.data.pixels import read_picture

ARGUMENTS = {"size": 8, "clusters": 5, "kills": 3}


def rows_of(paths: list[Path]) -> list[dict[str, Any]]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_images_do_not_depend_on_the_processes_and_are_those_of_their_group_plus_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_images, "FILE_IMAGES", 1500)
    monkeypatch.setattr(many_images, "ROW_GROUP", 400)
    paths = write_images(tmp_path / "one", 2000, seed=3)
    monkeypatch.undo()
    assert [pq.read_metadata(path).num_rows for path in paths] == [1500, 500]
    rows = rows_of(paths)
    assert [row["label"] for row in rows] == [number % GROUPS for number in range(2000)]
    assert len({row["image"]["path"] for row in rows}) == 2000
    bases = group_images(8, seed=3).astype(int)
    for number in (0, 7, 1007, 1999):
        pixels = np.asarray(Image.open(io.BytesIO(rows[number]["image"]["bytes"]))).astype(int)
        assert 0 < np.abs(pixels - bases[number % GROUPS]).max() <= NOISE
    assert rows[7]["image"]["bytes"] != rows[1007]["image"]["bytes"]


def test_images_are_the_same_again_by_their_seed(tmp_path: Path) -> None:
    one, two, other = (
        rows_of(write_images(tmp_path / name, 50, seed=seed, processes=processes))
        for name, seed, processes in (("one", 1, 1), ("two", 1, 2), ("other", 2, 1))
    )
    assert one == two
    assert one[0]["image"]["bytes"] != other[0]["image"]["bytes"]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 20)
    before = path.stat().st_mtime_ns
    assert write_images(tmp_path, 20) == [path]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("size", [4, 8, 147])
def test_pngs_are_what_every_decoder_reads_and_ingest_keeps_their_bytes(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    for image, data in zip(pixels, encode_pngs(pixels), strict=True):
        assert decode(data, size).permute(1, 2, 0).numpy().tolist() == image.tolist()
        assert read_picture(data, AS_THEY_ARE).as_stored


@pytest.mark.parametrize("size", [3, 148])
def test_a_size_that_cannot_be_encoded_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=rf"size is {size}; give 4 to 147 pixels"):
        write_images(tmp_path, 5, size=size)


def test_the_encoder_counts_steps_of_the_online_network_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEDGER, str(tmp_path))
    encoder, images = build(), torch.zeros(2, 3, 8, 8)
    assert steps_made(tmp_path) == 0
    for _ in range(3):
        encoder(images).sum().backward()
    with torch.no_grad():
        assert encoder(images).shape == (2, 128)
    encoder.eval()(images)
    assert steps_made(tmp_path) == 3
    (tmp_path / "of another process").write_bytes(b"..")
    assert steps_made(tmp_path) == 3


def test_the_settings_are_those_of_a_run(tmp_path: Path) -> None:
    assert Scale(tmp_path, 50_000).interval == 10
    scale = Scale(tmp_path, 1_000_000, size=16, clusters=50)
    arguments = scale.settings()
    config = load_config("benchmarks/millions.yaml", arguments[1::2])
    assert set(arguments[::2]) == {"--set"}
    assert (scale.steps, scale.interval, config.checkpoint.every_steps) == (244, 12, 12)
    assert (config.data.image_size, config.views.size, config.method.num_clusters) == (16, 16, 50)


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        (0, []),
        (1, [KillPoint(EPOCH, 52)]),
        (2, [KillPoint(EPOCH, 52), KillPoint(E_STEP, 100)]),
        (3, [KillPoint(EPOCH, 52), KillPoint(E_STEP, 100), KillPoint(END, 100)]),
        (4, [KillPoint(EPOCH, 32), KillPoint(EPOCH, 67), KillPoint(E_STEP, 100), KillPoint(END, 100)]),
    ],
)
def test_kills_are_between_two_checkpoints_then_in_the_estep_then_at_the_end(
    kills: int, expected: list[KillPoint]
) -> None:
    assert kill_points(kills, steps=100, interval=5) == expected


def test_a_run_is_killed_at_its_step_also_when_it_was_resumed(tmp_path: Path) -> None:
    ledger = tmp_path / "steps"
    ledger.mkdir()
    watch = TrainingWatch(Scale(tmp_path, 102_400), ledger, KillPoint(EPOCH, 52))
    (ledger / "1").write_bytes(b"." * 50)
    assert not watch.doomed([])
    assert not watch.doomed([(1.0, "resumed after epoch 0, step 1, on 2 workers")])
    assert watch.doomed([(1.0, "resumed after epoch 0, step 2, on 2 workers")])
    assert not TrainingWatch(Scale(tmp_path, 102_400), ledger, None).doomed([])


def test_a_run_is_killed_at_the_end_once_its_last_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.millions.AFTERWARDS", 0.05)
    scale = Scale(tmp_path, 102_400)
    watch = TrainingWatch(scale, tmp_path, KillPoint(END, 100))
    about = scale.run / "checkpoint_2" / "about.json"
    about.parent.mkdir(parents=True)
    for text in ('{"epoch": 0}', '{"ep'):
        about.write_text(text)
        assert not watch.doomed([])
    about.write_text('{"epoch": 1}')
    assert not watch.doomed([])
    time.sleep(0.06)
    assert watch.doomed([])


def test_lines_say_where_a_run_was_resumed_and_in_which_phase_it_is() -> None:
    started = [(1.0, "run millions: 9 images"), (2.0, "epoch 0/1  acc 0.1")]
    assert (resumed_at(started, 10), training_phase(started)) == (None, "training")
    inside = [*started, (3.0, "resumed after epoch 0, step 7, on 2 workers")]
    assert (resumed_at(inside, 10), training_phase(inside)) == (7, "training")
    assert training_phase([*inside, (4.0, "epoch 1/1  loss 1.0")]) == "ending"
    after = [(1.0, "resumed after epoch 1, step 0, on 2 workers")]
    assert (resumed_at(after, 10), training_phase(after)) == (10, "ending")


def span(start: int | None, made: int) -> dict[str, Any]:
    return {"from_step": start, "made": made}


def test_the_ledger_of_steps_counts_what_resumes_repeat() -> None:
    commands = [span(None, 0), span(0, 52), span(None, 0), span(50, 50), span(95, 5), span(100, 0)]
    found = step_ledger(commands, steps=100, interval=5)
    assert (found["made"], found["repeated"], found["holds"]) == (107, [2, 5, 0], True)


@pytest.mark.parametrize(
    "commands",
    [
        [span(0, 56), span(50, 50)],  # repeats six
        [span(0, 52), span(55, 45)],  # leaves out three
        [span(0, 52), span(50, 49)],  # does not reach the end
    ],
)
def test_the_ledger_of_steps_does_not_hold(commands: list[dict[str, Any]]) -> None:
    assert not step_ledger(commands, steps=100, interval=5)["holds"]


@pytest.mark.parametrize(
    ("index", "expected"), [([0, 1, 2, 3], True), ([2, 0, 3, 1], True), ([0, 1, 2], False), ([0, 1, 2, 2, 3], False)]
)
def test_each_image_is_there_once(tmp_path: Path, index: list[int], expected: bool) -> None:
    pq.write_table(pa.table({"index": index}), tmp_path / "part.parquet")
    assert is_each_once(tmp_path, 4) is expected
    assert not is_each_once(tmp_path, 2)


def test_steps_that_are_done_are_not_repeated_and_one_that_failed_is(tmp_path: Path) -> None:
    scale, file, calls = Scale(tmp_path, 10), tmp_path / "measurements.json", []

    def step(name: str, fails: bool = False) -> Any:
        def carry_out(scale: Scale, entry: Entry, save: Any) -> None:
            calls.append(name)
            entry["commands"].append({"ended": "by itself", "seconds": 2.0})
            save()
            if fails:
                raise SystemExit(name)

        return carry_out

    with pytest.raises(SystemExit, match="second"):
        measure(scale, Records(file, ARGUMENTS), {"first": step("first"), "second": step("second", fails=True)})
    records = Records(file, ARGUMENTS)
    measure(scale, records, {"first": step("first"), "second": step("second")})
    assert calls == ["first", "second", "second"]
    found = Records(file, ARGUMENTS).values["sizes"]["10"]
    assert {name: entry["seconds"] for name, entry in found.items()} == {"first": 2.0, "second": 4.0}


def test_records_of_other_arguments_are_refused(tmp_path: Path) -> None:
    Records(tmp_path / "m.json", ARGUMENTS).save()
    with pytest.raises(SystemExit, match=r"'kills': 3.*'kills': 0.*give another --folder"):
        Records(tmp_path / "m.json", ARGUMENTS | {"kills": 0})


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_is_recorded_with_its_lines_and_memory(tmp_path: Path) -> None:
    peaks: Peaks = {}
    code = "import time; print('begun', flush=True); x = bytes(range(256)) * 200_000; time.sleep(1.5); print('done')"
    command = Command(python(code), tmp_path / "log", {}, peaks)
    status = command.run(phase=lambda lines: "late" if lines else "early")
    assert status == 0
    assert [line for _, line in command.lines] == ["begun", "done"]
    assert command.lines[0][0] < 1.5 <= command.seconds
    assert peaks["late"]["driver"].private > 50_000_000
    assert peaks["early"]["driver"].processes == 1


def test_a_killed_command_takes_its_children_along_and_is_recorded(tmp_path: Path) -> None:
    child = "subprocess.Popen(['sleep', '77'], start_new_session=True)"
    code = f"import subprocess; child = {child}; print(child.pid, flush=True); child.wait()"
    entry: Entry = {"commands": [], "memory": {}}
    children: list[psutil.Process] = []

    def doomed(lines: list[tuple[float, str]]) -> bool:
        children.extend(psutil.Process(int(line)) for _, line in lines)
        return bool(lines)

    ended = carry_out(Scale(tmp_path, 10), entry, lambda: None, python(code), doomed=doomed)
    assert not ended
    assert not children[0].is_running()
    assert [command["ended"] for command in entry["commands"]] == [KILLED]


def test_a_command_that_fails_is_recorded_and_named(tmp_path: Path) -> None:
    entry: Entry = {"commands": [], "memory": {}}
    with pytest.raises(SystemExit, match=r"ended with status 3 .*sys\.exit\(3\).*see .*log"):
        carry_out(Scale(tmp_path, 10), entry, lambda: None, python("import sys; sys.exit(3)"))
    assert len(entry["commands"]) == 1


def test_an_interrupt_ends_the_command_and_is_recorded(tmp_path: Path) -> None:
    entry: Entry = {"commands": [], "memory": {}}
    saved: list[int] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore it
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        carry_out(Scale(tmp_path, 10), entry, lambda: saved.append(1), python("import time; time.sleep(77)"))
    assert [command["ended"] for command in entry["commands"]] == ["interrupted"]
    assert saved == [1]


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        ("ray::RayTrainWorker.run_train_fn", "train worker"),
        ("ray::TrainController.run", "coordinator"),
        ("ray::_AutoscalingCoordinatorActor", "coordinator"),
        ("ray::DatasetManager.__init__", "coordinator"),
        ("ray::Board", "coordinator"),
        ("ray::ReadParquet->MapBatches(decode_table)", "task or actor"),
        ("ray::IDLE", "task or actor"),
        ("ray::DashboardAgent", "Ray's own"),
        ("ray-dashboard-JobHead-0 (python -B -c ...)", "Ray's own"),
        ("python -u site-packages/ray/_private/log_monitor.py --session-dir=/tmp/ray", "Ray's own"),
        ("ray/core/src/ray/raylet/raylet --python_worker_command=ray/_private/workers/x.py", "raylet"),
        ("ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray/dashboard", "GCS"),
        ("sleep 1", "other"),
    ],
)
def test_kinds_of_processes(command_line: str, kind: str) -> None:
    assert kind_of(command_line) == kind


def test_a_peak_is_of_the_largest_process_and_of_all_together() -> None:
    peak = Peak()
    peak.include({"a": [Rss(5, 1), Rss(7, 0)], "b": [Rss(6, 2)]})
    peak.include({"b": [Rss(9, 0)]})
    assert peak == Peak(private=9, shared=2, private_of_all=18, processes=3, largest="b")


def test_memory_of_this_process_is_private() -> None:
    before = rss_of(psutil.Process().pid)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 50 << 20, flags=flags) as held:  # the allocator may have memory left that was freed before
        held.write(b"x" * (50 << 20))
        after = rss_of(psutil.Process().pid)
    assert after.private - before.private > 45 << 20


def measured(images: int, driver: int, store: int) -> dict[str, Entry]:
    train_facts = {
        "phases": {"ending": 3.0},
        "images_per_second": 1500.0,
        "ledger": {"steps": 9, "interval": 2, "repeated": [1], "holds": True},
        "each_once": True,
    }
    memory = {"training": {"driver": {"private": driver, "shared": 1}, "object store": {"private": 0, "shared": store}}}
    return {
        "train": {"seconds": images / 1000, "memory": memory, **train_facts},
        "assign": {"seconds": 4.0, "memory": {}, "parts": {"all": 4, "kept": 2}, "each_once": False},
    }


def test_tables_have_rates_and_the_bytes_that_an_image_adds() -> None:
    sizes = {"1000000": measured(1_000_000, 100 << 20, 5 << 20), "3000000": measured(3_000_000, 116 << 20, 5 << 20)}
    times = time_table(sizes)
    assert "| train | 1,000 s, 1,000 images/s | 3,000 s, 1,000 images/s |" in times
    assert "| train: ending | 3 s | 3 s |" in times
    assert "| train: steps | 1,500 images/s | 1,500 images/s |" in times
    memory = memory_table(sizes).splitlines()
    assert memory[2:] == ["| training | driver | 100 | 116 | 8.4 |", "| training | object store | 5 | 5 | 0.0 |"]
    alone = memory_table({"1000000": sizes["1000000"]}).splitlines()
    assert alone[2] == "| training | driver | 100 |  |"


def test_verdicts_say_what_was_repeated() -> None:
    found = dict(verdicts({"1000": measured(1000, 1, 1)}))
    assert found == {
        "1,000 images: 9 steps, of which resumes repeated 1; a checkpoint every 2": True,
        "1,000 images: training leaves each image once": True,
        "1,000 images: assign leaves each image once; continued, it kept 2 of 4 parts": False,
    }
