"""Checkpoint files: what is written comes back, and damage is noticed."""

import numpy as np
import pytest

from utils.checkpoints import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint, saved_steps
from utils.cli import UserError

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
