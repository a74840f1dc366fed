"""Slicing what is damaged or does not fit, interruptions, a full disk: one line each, and nothing half done."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT, assert_refused, run_script
from tests.universe_files import (
    GRID,
    SCRIPT,
    SMALL,
    joined_bytes,
    outputs,
    shard_paths,
    slice_them,
    voxels,
    write_universe,
    write_universes,
)

# ---- Damage ----


def damage(path, kind):
    """Write a file that is no sound universe, in a named way."""
    full = voxels(0).astype(np.float32)[..., np.newaxis].repeat(4, axis=-1)
    if kind == "negative":
        full[12, 3, 3, 0] = -1
    elif kind in ("nan", "inf"):
        full[12, 3, 3, 0] = float(kind)
    changes = {
        "no full": {"full": None},
        "no redshifts": {"redshifts": None},
        "rank": {"full": full[..., 0]},
        "no cube": {"full": full[:-1]},
        "type": {"full": full.astype("S4")},
        "redshifts": {"redshifts": np.zeros(3)},
        "too large": {"full": np.full((GRID, GRID, GRID, 4), 40000, np.int32)},
        "parameters": {"physPar": np.zeros((2, 2))},
        "box": {"box_size": -3.0},
    }
    write_universe(path, **changes.get(kind, {"full": full}))
    content = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no HDF5")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "unreadable plane":
        break_chunk(path)
    elif kind == "dangling link":
        path.unlink()
        path.symlink_to("nowhere")


def break_chunk(path):
    """Store `full` with checksums, and break the one of plane 8: the header does not show it."""
    with h5py.File(path, "r+") as file:
        full = file["full"][...]
        del file["full"]
        dataset = file.create_dataset("full", data=full, chunks=(4, GRID, GRID, 4), fletcher32=True)
        place = dataset.id.get_chunk_info(2).byte_offset
    with open(path, "rb+") as file:
        file.seek(place + 100)
        file.write(b"\xff" * 50)


KINDS = {
    "empty": "empty.hdf5",
    "text": "HDF5",
    "truncated": "truncated",
    "dangling link": "dangling",
    "no full": "no dataset full",
    "no redshifts": "no dataset redshifts",
    "rank": "(16, 16, 16)",
    "no cube": "(15, 16, 16, 4)",
    "type": "S4",
    "redshifts": "redshifts",
    "parameters": "physPar",
    "box": "box_size",
    "nan": "plane 12",
    "inf": "plane 12",
    "negative": "plane 12",
    "too large": "32767",
    "unreadable plane": "plane 8",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_and_nothing_is_left(tmp_path, kind):
    write_universes(tmp_path / "in", 3)
    name = f"a {kind}.hdf5"
    damage(tmp_path / "in" / name, kind)
    process = run_script(SCRIPT, "in", *SMALL, "--out", "raw", cwd=tmp_path)
    assert_refused(process, name, KINDS[kind])
    # Sound universes may be sliced by then, which need not be done again.
    assert outputs(tmp_path) in ([], ["raw_shards"])
    assert all("universe_" in path.name for path in shard_paths(tmp_path))
    assert not list(tmp_path.rglob(".partial*"))


def test_damaged_files_are_skipped_when_asked_as_if_they_were_not_there(tmp_path):
    write_universes(tmp_path / "in", 5)
    slice_them(tmp_path, *SMALL)
    clean = joined_bytes(tmp_path)
    shutil.rmtree(tmp_path / "raw_shards")
    for kind in KINDS:
        damage(tmp_path / f"in/deep/{kind}.hdf5", kind)
    process = run_script(SCRIPT, "in", *SMALL, "--out", "raw", "--skip-damaged", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    warnings = process.stderr.splitlines()
    assert len(warnings) == len(KINDS)
    for kind in KINDS:
        assert sum(f"/{kind}.hdf5: " in line and "skipped" in line for line in warnings) == 1
    assert joined_bytes(tmp_path) == clean


def test_nothing_left_after_skipping_is_an_error(tmp_path):
    damage(tmp_path / "in/a.hdf5", "empty")
    process = run_script(SCRIPT, "in", "--skip-damaged", "--out", "raw", cwd=tmp_path)
    assert process.returncode == 2
    assert all(word in line for line, word in zip(process.stderr.splitlines(), ("skipped", "none of 1"), strict=True))
    assert outputs(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in", "--img-dim", 0], ["--img-dim"]),
        (["in", "--stride", 0], ["--stride"]),
        (["in", "--seed", -1], ["--seed"]),
        (["in", "--axes", "1"], ["--axes"]),
        (["in", "--val-fraction", -0.1], ["--val-fraction"]),
        (["in", "--val-fraction", "nan"], ["--val-fraction"]),
        (["in", "--val-fraction", 0.6, "--test-fraction", 0.4], ["training"]),
        (["in", "--img-dim", 17], ["universe_00.hdf5", "16", "17"]),
        (["in", "--redshift", "nan"], ["redshift"]),
        (["nowhere"], ["nowhere"]),
        (["nothing"], ["nothing", "simulate_universes.py"]),
        (["mixed"], ["a.hdf5", "b.hdf5", "pixel size"]),
        (["in", "--out", "."], ["--out .", "no name"]),
        (["in", "--out", "/"], ["--out /", "no name"]),
        (["in", "--out", ".."], ["--out ..", "no name"]),
        (["in", "--out", "a_file/raw"], ["a_file is no folder"]),
        (["in", "--out", "taken"], ["taken_shards is no folder"]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, arguments, words):
    if arguments[0] == "in":
        write_universes(tmp_path / "in", 3)
    if arguments[0] == "mixed":
        write_universe(tmp_path / "mixed/a.hdf5", box_size=16.0)
        write_universe(tmp_path / "mixed/b.hdf5", box_size=16.1)
    (tmp_path / "nothing").mkdir()
    for name in ("a_file", "taken_shards"):
        (tmp_path / name).write_text("no folder")
    before = outputs(tmp_path)
    process = run_script(SCRIPT, arguments[0], *SMALL, "--out", "raw", *arguments[1:], cwd=tmp_path)
    assert_refused(process, *words)
    assert outputs(tmp_path) == before


# ---- Interruption, full disk, memory ----


def write_slow_universe(path):
    """Its planes are slow to read: each lies in chunks of half the universe."""
    zeros = np.zeros((256, 256, 256, 1), np.int16)
    write_universe(path, full=None, redshifts=[0.0])
    with h5py.File(path, "r+") as file:
        file.create_dataset("full", data=zeros, chunks=(256, 256, 256, 1), compression="gzip", compression_opts=1)


def is_being_written(folder):
    return any(path.stat().st_size > 0 for path in (folder / "raw_shards").rglob(".partial*slow*"))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_replaces_nothing_and_is_continued(tmp_path, number, jobs):
    write_universes(tmp_path / "in", 3)
    slice_them(tmp_path, "--img-dim", 8, "--stride", 1)
    before = joined_bytes(tmp_path)
    shards = {path: path.stat().st_ino for path in shard_paths(tmp_path)}
    write_universe(tmp_path / "in/another.hdf5", 3)
    write_slow_universe(tmp_path / "in/slow.hdf5")
    options = ["in", "--img-dim", "8", "--stride", "1", "--out", "raw", "--jobs", str(jobs)]
    command = [sys.executable, ROOT / SCRIPT, *options]
    pipes = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        while not is_being_written(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)  # terminals and schedulers send it to all processes
        errors = process.communicate()[1]  # returns when the last of them has ended
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert len(errors.splitlines()) <= 1
        assert not list(tmp_path.rglob(".partial*"))
    assert joined_bytes(tmp_path) == before
    (tmp_path / "in/slow.hdf5").unlink()
    assert len(slice_them(tmp_path, "--img-dim", 8, "--stride", 1)["train"]["file"]) == 2
    assert shards.items() <= {path: path.stat().st_ino for path in shard_paths(tmp_path)}.items()


def test_a_process_that_is_killed_ends_the_run(tmp_path):
    write_universes(tmp_path / "in", 3)
    write_slow_universe(tmp_path / "in/slow.hdf5")
    options = ["in", "--img-dim", "8", "--stride", "1", "--out", "raw", "--jobs", "2"]
    with subprocess.Popen([sys.executable, ROOT / SCRIPT, *options], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while not is_being_written(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        writer = next(tmp_path.rglob(".partial*slow*")).name.removeprefix(".partial").partition("-")[0]
        assert int(writer) != process.pid
        os.kill(int(writer), signal.SIGKILL)
        errors = process.communicate()[1].decode()
    assert process.returncode == 2
    assert errors.splitlines() == ["slice_universes.py: error: " + errors.partition("error: ")[2].strip()]
    assert "--jobs" in errors
    assert joined_bytes(tmp_path) == {}


def test_a_full_disk_is_told_in_one_line(tmp_path):
    write_universes(tmp_path / "in", 3, grid=20)
    process = subprocess.run(
        [sys.executable, ROOT / SCRIPT, "in", "--img-dim", "20", "--stride", "1", "--out", "raw"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert_refused(process, "File too large", "raw_")
    assert outputs(tmp_path) == []


def peak_memory(folder):
    """Peak resident memory of slicing `folder`/in across all axes, in bytes."""
    code = (
        "import resource, runpy, sys\n"
        "try: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = (
        "in",
        "--axes",
        "012",
        "--val-fraction",
        "0",
        "--test-fraction",
        "0",
        "--img-dim",
        "16",
        "--out",
        "raw",
    )
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / SCRIPT, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return 1024 * int(process.stdout.split()[-1])


def test_memory_does_not_hold_a_universe(tmp_path):
    write_universe(tmp_path / "small/in/one.hdf5")
    for number in range(3):
        write_universe(tmp_path / f"large/in/{number}.hdf5", full=None)
        with h5py.File(tmp_path / f"large/in/{number}.hdf5", "r+") as file:
            file.create_dataset("full", (256, 256, 256, 4), np.int16)
    one_redshift = 2 * 256**3
    assert peak_memory(tmp_path / "large") - peak_memory(tmp_path / "small") < one_redshift / 2
