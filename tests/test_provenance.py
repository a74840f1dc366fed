"""What a run remembers of the slices that it was trained on."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from utils.provenance import differences, run_record, trained_on


@pytest.fixture
def record(tmp_path, tiny_config):
    """A function: the record of a start on slices with a content, after another start."""

    def record(content, before):
        for split in ("train", "val"):
            np.save(tmp_path / f"{split}.npy", np.full(3, content))
        slices = {split: SimpleNamespace(path=tmp_path / f"{split}.npy") for split in ("train", "val")}
        return json.loads(json.dumps(run_record(tiny_config, slices, {}, before)))

    return record


def test_only_what_a_run_was_trained_on_throughout_is_its_training_set(record, tmp_path):
    first = record(1, {})
    assert trained_on(first, tmp_path / "train.npy") is True
    again = record(1, first)
    assert (again["data_before"], trained_on(again, tmp_path / "train.npy")) == ([], True)
    second = record(2, again)
    assert trained_on(first, tmp_path / "train.npy") is False
    assert trained_on(second, tmp_path / "train.npy") is False  # for it has been trained on the first ones too
    back = record(1, second)
    assert trained_on(back, tmp_path / "train.npy") is False
    assert len(back["data_before"]) == 2
    assert trained_on({}, tmp_path / "train.npy") is None


def test_other_slices_are_told_in_words_and_moved_ones_are_not(record, tmp_path):
    first = record(1, {})
    second = record(2, first)
    told = differences(first, second)
    assert [line.partition(" has ")[0] for line in told] == [str(tmp_path / f"{name}.npy") for name in ("train", "val")]
    assert all("other slices than before" in line for line in told)
    moved = json.loads(json.dumps(first).replace(str(tmp_path), "elsewhere"))
    assert differences(moved, first) == []
    shutil.copy(tmp_path / "train.npy", tmp_path / "copy.npy")
    assert trained_on(record(2, {}), tmp_path / "copy.npy") is True
