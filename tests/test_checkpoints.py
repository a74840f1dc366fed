"""Checkpoint files: what is written comes back, and damage is noticed."""

import errno
import json
import os

import h5py
import numpy as np
import pytest

from utils.checkpoints import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint, saved_steps
from utils.cli import UserError
from utils.files import atomic_path
from utils.runs import RunFolder, check_weights, stamp_weights

ARRAYS = {"generator/000": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3, np.int64)}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    path = save_checkpoint(tmp_path, 7, ARRAYS, {"best": {"chisq": float("inf")}}, keep=2)
    loaded = load_checkpoint(path)
    assert loaded.meta["step"] == 7
    assert loaded.meta["best"] == {"chisq": float("inf")}
    for name, array in ARRAYS.items():
        assert loaded.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded.arrays[name], array)


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 20_000):
        save_checkpoint(tmp_path, step, ARRAYS, {}, keep=2)
    assert saved_steps(tmp_path) == [100, 20_000]
    assert newest_checkpoint(tmp_path)[0].meta["step"] == 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state_000000100.npz", "state_000020000.npz"]


def test_an_empty_folder_has_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, {})
    assert newest_checkpoint(tmp_path / "nowhere") == (None, {})


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damage_is_noticed(tmp_path, damage):
    save_checkpoint(tmp_path, 1, ARRAYS, {}, keep=2)
    path = save_checkpoint(tmp_path, 2, {"big": np.arange(100_000.0)}, {}, keep=2)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-200], "flipped": content, "empty": b"", "foreign": b"x" * 500}[damage])
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_checkpoint(path)
    checkpoint, damaged = newest_checkpoint(tmp_path)
    assert checkpoint.meta["step"] == 1
    assert list(damaged) == [path]
    assert path.name in damaged[path]
    checkpoint.path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is good"):
        newest_checkpoint(tmp_path)


def test_a_flipped_bit_is_harmless_or_told(tmp_path):
    path = save_checkpoint(tmp_path, 2, ARRAYS, {}, keep=2)
    whole, told = path.read_bytes(), 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            loaded = load_checkpoint(path)
        except ValueError:
            told += 1
        else:
            assert all(np.array_equal(loaded.arrays[name], array) for name, array in ARRAYS.items())
    assert told > len(whole) / 2


def test_an_array_that_looks_enormous_is_damaged(tmp_path):
    path = save_checkpoint(tmp_path, 2, {"long": np.zeros((1, 1, 1, 1, 1, 1, 1000))}, {}, keep=2)
    content = path.read_bytes()
    assert content.count(b"(1, 1, 1, 1, 1, 1, 1000)") == 1
    path.write_bytes(content.replace(b"(1, 1, 1, 1, 1, 1, 1000)", b"(99999999999, 1, 1000  )"))
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_pickles_are_never_loaded(tmp_path):
    np.savez(checkpoint_path(tmp_path, 1), meta=np.array([{"step": 1}], dtype=object))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_checkpoint(checkpoint_path(tmp_path, 1))


def test_a_failed_write_leaves_the_older_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, ARRAYS, {}, keep=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, ARRAYS, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["state_000000001.npz"]


def write_weights(run, name, config, step):
    """A weights file of one step, as training writes it: beside, then renamed."""
    with atomic_path(run.models / name) as temporary:
        with h5py.File(temporary, "w") as file:
            file["kernel"] = np.full(3, step)
        stamp_weights(temporary, config, step, {})


def test_weights_of_an_option_that_is_no_longer_there_are_refused(tmp_path, tiny_config):
    """A network without the layer would load the others, and say nothing."""
    run = RunFolder("tiny", "0", tmp_path)
    run.create()
    write_weights(run, "g_cosmo_last.weights.h5", tiny_config, 4)
    path = run.models / "g_cosmo_last.weights.h5"
    for value, words in ((0.0, None), (2.0, "density_cap, which is no longer there, was 2.0")):
        with h5py.File(path, "r+") as file:
            architecture = json.loads(file.attrs["architecture"]) | {"density_cap": value}
            file.attrs["architecture"] = json.dumps(architecture)
        if words is None:
            assert check_weights(path, tiny_config)["step"] == 4
        else:
            with pytest.raises(UserError, match=words):
                check_weights(path, tiny_config)


@pytest.fixture
def improved_run(tmp_path, tiny_config):
    """A run with a state of step 5, whose best weights have become better in step 9, in an epoch that then ended."""
    run = RunFolder("tiny", "0", tmp_path)
    run.create()
    write_weights(run, "g_cosmo_best.weights.h5", tiny_config, 4)
    save_checkpoint(run.checkpoints, 5, ARRAYS, {"records": {}}, keep=2, weights=run.best_weights())
    for name in ("g_cosmo_best", "g_cosmo_best_pspect", "g_cosmo0009"):
        write_weights(run, f"{name}.weights.h5", tiny_config, 9)
    return run


def step_of(path):
    with h5py.File(path) as file:
        return int(file["kernel"][0])


@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_goes_back_forgets_later_weights(improved_run, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    assert improved_run.cut_back(newest_checkpoint(improved_run.checkpoints)[0]) == []
    assert {path.name: step_of(path) for path in improved_run.models.iterdir()} == {"g_cosmo_best.weights.h5": 4}


def test_lost_best_weights_are_named(improved_run):
    for copy in improved_run.checkpoints.glob("*.weights.h5"):
        copy.unlink()
    (complaint,) = improved_run.cut_back(newest_checkpoint(improved_run.checkpoints)[0])
    assert complaint.startswith("g_cosmo_best.weights.h5, which was among the best, is lost")


def test_records_that_have_lost_their_end_are_named(tmp_path):
    run = RunFolder("tiny", "0", tmp_path)
    run.create()
    sizes = {"metrics.jsonl": 9, "logs/events.out.tfevents.1": 5, "logs/events.out.tfevents.2": 7}
    save_checkpoint(run.checkpoints, 5, ARRAYS, {"records": sizes}, keep=1)
    for name, size in (("metrics.jsonl", 4), ("logs/events.out.tfevents.2", 8)):
        (run.path / name).write_bytes(bytes(size))
    complaints = run.cut_back(newest_checkpoint(run.checkpoints)[0])
    assert [complaint.split()[0] for complaint in complaints] == ["metrics.jsonl", "logs/events.out.tfevents.1"]
    assert run.record_sizes() == {"metrics.jsonl": 4, "logs/events.out.tfevents.2": 7}


def test_best_weights_go_with_their_checkpoint(improved_run):
    for step in (9, 10):
        save_checkpoint(improved_run.checkpoints, step, ARRAYS, {}, keep=2, weights=improved_run.best_weights())
    names = {f"state_{step:09d}.g_cosmo_{which}.weights.h5" for step in (9, 10) for which in ("best", "best_pspect")}
    assert {path.name for path in improved_run.checkpoints.glob("*.weights.h5")} == names
