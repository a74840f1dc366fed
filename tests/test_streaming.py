"""Which slices a step trains on, and that they arrive in order whatever happens beside."""

import numpy as np
import pytest

from utils.slices import open_slices
from utils.streaming import BatchStream, rows_of_step


@pytest.fixture
def slices(tmp_path):
    """23 slices of 8 x 8 pixels, slice i filled with i."""
    images = np.broadcast_to(np.arange(23, dtype=np.int16)[:, None, None, None], (23, 8, 8, 1))
    for split in ("train", "val"):
        np.save(tmp_path / f"few_{split}.npy", images)
    with open_slices("few", "train", 8, tmp_path) as opened:
        yield opened


def test_an_epoch_is_a_permutation():
    for epoch in (0, 1, 7):
        rows = np.concatenate([rows_of_step(epoch * 5 + batch, 23, 4, seed=1) for batch in range(5)])
        assert len(np.unique(rows)) == 20
        assert rows.min() >= 0
        assert rows.max() <= 22


def test_epochs_and_seeds_differ_and_left_over_slices_get_their_turn():
    epochs = [np.concatenate([rows_of_step(e * 5 + b, 23, 4, seed=1) for b in range(5)]) for e in range(12)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(rows_of_step(0, 23, 4, seed=1), rows_of_step(0, 23, 4, seed=2))
    assert len(np.unique(np.concatenate(epochs))) == 23


def test_rows_and_places_are_independent():
    """Eighths of the file against eighths of the epoch: chi-square within 5 standard deviations."""
    number, bins = 500, 8
    places, table = np.arange(number) * bins // number, np.zeros((bins, bins))
    for epoch in range(100):
        np.add.at(table, (places, rows_of_step(epoch, number, number, seed=3) * bins // number), 1)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chi_square, freedom = np.sum((table - expected) ** 2 / expected), (bins - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_batches_are_those_of_their_steps(slices):
    with BatchStream(slices, 4, seed=5, first_step=3, total_steps=11) as stream:
        batches = list(stream)
    assert len(batches) == 8
    for step, batch in zip(range(3, 11), batches, strict=True):
        assert batch.shape == (4, 8, 8)
        np.testing.assert_array_equal(batch[:, 0, 0], rows_of_step(step, 23, 4, seed=5))
    assert stream.waited > 0


def test_an_error_while_reading_reaches_the_consumer(slices, monkeypatch):
    monkeypatch.setattr(type(slices), "read", lambda self, rows: (_ for _ in ()).throw(OSError("the disk is gone")))
    with BatchStream(slices, 4, 0, 0, 5) as stream, pytest.raises(OSError, match="the disk is gone"):
        list(stream)


def test_closing_early_ends_the_thread(slices):
    stream = BatchStream(slices, 4, 0, 0, 10_000)
    next(iter(stream))
    stream.close()
    assert not stream._thread.is_alive()
