"""Reading slice files, of this suite and of the old one, and refusing what is none."""

import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from tests.conftest import ROOT
from utils.cli import UserError
from utils.slice_writer import SliceWriter
from utils.slices import FORMAT_VERSION, has_split, open_slices

DIM = 8
NUMBERS = {"pixel_size": 0.5, "redshift": 1.5, "minimum": 0.0, "maximum": 999.0, "mean": 7.0}


def some_slices(number=30, dtype=np.int16, dim=DIM):
    return np.random.default_rng(1).integers(0, 1000, (number, dim, dim)).astype(dtype)


def write_h5(path, slices, **changes):
    """A slice file made by hand: any storage, any damage; an attribute or dataset that is None is left out."""
    attributes = {"format_version": FORMAT_VERSION} | NUMBERS
    with h5py.File(path, "w") as file:
        universe = changes.pop("universe") if "universe" in changes else np.arange(len(slices)) // 5
        if universe is not None:
            file["universe"] = universe
        storage = changes.pop("storage", {})
        if slices is not None:
            file.create_dataset("slices", data=slices, **storage)
        file.attrs.update({name: value for name, value in (attributes | changes).items() if value is not None})


def write_pair(folder, slices, **changes):
    for split in ("train", "val"):
        write_h5(folder / f"raw_{split}.h5", slices, **changes)


def save_pair(folder, slices):
    for split in ("train", "val"):
        np.save(folder / f"raw_{split}.npy", slices)


def refusal(folder, img_dim=DIM, split="train"):
    with pytest.raises(UserError) as caught:
        open_slices("raw", split, img_dim, folder=folder).close()
    return str(caught.value)


# ---- Reading ----


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int64", "float16", "float32", "float64", ">i2", ">f4"])
@pytest.mark.parametrize("storage", [{}, {"chunks": (1, DIM, DIM)}, {"chunks": (4, DIM, DIM), "compression": "gzip"}])
def test_h5_rows_come_back_as_stored(tmp_path, dtype, storage):
    slices = (some_slices() % 256).astype(dtype)
    write_pair(tmp_path, slices, storage=storage)
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        images = opened.read([7, 0, 29, 7])
        assert images.dtype == opened.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(images, slices[[7, 0, 29, 7]])
        assert opened.read([]).shape == (0, DIM, DIM)
        assert (len(opened), opened.number, opened.dim) == (30, 30, DIM)
        assert opened.path == tmp_path / "raw_train.h5"
        assert {name: getattr(opened, name) for name in NUMBERS} == NUMBERS
        assert np.array_equal(opened.universe, np.arange(30) // 5)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32", "float64", ">f4"])
def test_old_npy_files_are_read_as_they_are(tmp_path, dtype):
    slices = some_slices(dtype=dtype)
    save_pair(tmp_path, slices[..., np.newaxis])
    with open_slices("raw", "val", DIM, folder=tmp_path) as opened:
        images = opened.read([29, 3])
        assert images.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(images, slices[[29, 3]])
        assert (opened.minimum, opened.maximum) == (slices.min(), slices.max())
        assert opened.mean == pytest.approx(slices.astype(float).mean(), rel=1e-12)
        assert (opened.pixel_size, opened.redshift, opened.universe) == (1.0, None, None)


def test_writer_and_reader_agree(tmp_path):
    slices = some_slices()
    attributes = {"format_version": FORMAT_VERSION} | NUMBERS
    arrays = {
        "slices": (slices.shape, np.dtype(np.int16)),
        "universe": ((30,), np.dtype(np.int32)),
        "corner": ((30, 2), np.dtype(np.int32)),
    }
    small = {"universes/file": np.array([b"a.hdf5", "b/ü.hdf5".encode()])}
    for split in ("train", "val"):
        with SliceWriter(tmp_path / f"raw_{split}.h5", arrays, small, attributes) as writer:
            for row in (15, 0):
                writer.write("slices", row, slices[row : row + 15])
                writer.write("universe", row, np.full(15, row))
                writer.write("corner", row, np.full((15, 2), row))
            with pytest.raises(IndexError):
                writer.write("slices", 16, slices[:15])
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        assert np.array_equal(opened.read(np.arange(30)), slices)
        assert {name: getattr(opened, name) for name in NUMBERS} == NUMBERS
        assert opened.universe.tolist() == [0] * 15 + [15] * 15
    with h5py.File(tmp_path / "raw_val.h5") as file:
        assert [name.decode() for name in file["universes/file"]] == ["a.hdf5", "b/ü.hdf5"]
        assert file["corner"][15].tolist() == [15, 15]


def test_rows_outside_the_file_are_a_programming_error(tmp_path):
    write_pair(tmp_path, some_slices())
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        for rows in ([30], [-1], [0, 99]):
            with pytest.raises(IndexError, match="30 slices"):
                opened.read(rows)
    with pytest.raises(ValueError, match="closed"):
        opened.read([0])


def test_several_threads_may_read_at_once(tmp_path):
    slices = some_slices(500)
    write_pair(tmp_path, slices)
    batches = np.random.default_rng(2).integers(0, 500, (40, 64))
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened, ThreadPoolExecutor(4) as pool:
        for rows, images in zip(batches, pool.map(opened.read, batches), strict=True):
            assert np.array_equal(images, slices[rows])


def test_spread_rows_are_different_and_even(tmp_path):
    write_pair(tmp_path, some_slices(1024), universe=np.arange(1024) // 128)
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        for number in (1, 3, 64, 100, 1000, 1023):
            rows = opened.rows_spread(number)
            assert len(rows) == len(set(rows.tolist())) == number
            assert (np.diff(rows) > 0).all()
            stretch = np.searchsorted(np.arange(1, number + 1) * 1024 // number, rows, side="right")
            assert np.array_equal(stretch, np.arange(number))
        assert np.array_equal(opened.rows_spread(5000), np.arange(1024))
        assert opened.rows_spread(0).tolist() == []
        rows = opened.rows_spread(64)
        assert np.array_equal(rows, opened.rows_spread(64))
        assert np.bincount(opened.universe[rows]).tolist() == [8] * 8
        # With 16 images per plane, a fixed step of 16 would give one corner only.
        assert len(set((rows % 16).tolist())) > 12


def test_memory_does_not_grow_with_the_file(tmp_path):
    large = np.lib.format.open_memmap(tmp_path / "raw_train.npy", "w+", np.int16, (2000, 128, 128, 1))
    large[0, 0, 0] = 1
    large.flush()
    (tmp_path / "raw_val.npy").symlink_to(tmp_path / "raw_train.npy")
    tracemalloc.start()
    try:
        with open_slices("raw", "train", 128, folder=tmp_path) as opened:
            opened.read(np.arange(64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < large.nbytes / 2  # of 65 MB


def test_slices_without_a_particle_are_refused(tmp_path):
    save_pair(tmp_path, np.zeros((3, DIM, DIM, 1), np.int16))
    assert "raw_train.npy has no particles" in refusal(tmp_path)
    write_pair(tmp_path, np.zeros((3, DIM, DIM), np.int16), mean=0.0)
    assert "raw_train.h5 has no particles" in refusal(tmp_path)


def test_universes_are_counted_from_zero(tmp_path):
    write_pair(tmp_path, some_slices(3), universe=np.array([0, -1, 1], np.int32))
    assert "`universe` has the number -1" in refusal(tmp_path)


def test_npy_files_are_read_through_once_for_each_version(tmp_path, monkeypatch):
    passes = []

    def counted(path, rows, images):
        passes.append(len(rows))
        return images.min(), images.max()

    monkeypatch.setattr("utils.slices._range", counted)
    for level, expected in ((1, [5]), (2, [5, 5])):
        save_pair(tmp_path, np.full((5, DIM, DIM, 1), level, np.int16))
        os.utime(tmp_path / "raw_train.npy", ns=(level, level))  # whatever the clock's resolution
        for _ in range(2):
            with open_slices("raw", "train", DIM, tmp_path) as opened:
                assert opened.mean == level
        assert passes == expected


def test_reader_does_not_need_tensorflow():
    code = "import sys, utils.slices; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- Which file ----


def test_the_h5_pair_goes_before_the_npy_pair(tmp_path):
    save_pair(tmp_path, some_slices(9)[..., np.newaxis])
    write_pair(tmp_path, some_slices(30))
    assert len(open_slices("raw", "train", DIM, folder=tmp_path)) == 30
    assert not has_split("raw", "test", tmp_path)
    write_h5(tmp_path / "raw_test.h5", some_slices(5))
    assert has_split("raw", "test", tmp_path)
    assert len(open_slices("raw", "test", DIM, folder=tmp_path)) == 5


def test_a_single_h5_beside_an_npy_pair_is_not_read(tmp_path):
    save_pair(tmp_path, some_slices(9)[..., np.newaxis])
    write_h5(tmp_path / "raw_train.h5", some_slices(30))
    for split in ("train", "val"):
        assert len(open_slices("raw", split, DIM, folder=tmp_path)) == 9
    (tmp_path / "raw_val.npy").unlink()
    assert "raw_val.h5" in refusal(tmp_path)


def test_an_absolute_name_needs_no_folder(tmp_path):
    write_pair(tmp_path, some_slices())
    assert len(open_slices(str(tmp_path / "raw"), "train", DIM, folder="nowhere")) == 30
    assert has_split(str(tmp_path / "raw"), "val", folder="nowhere")


def test_a_missing_file_says_what_was_looked_for(tmp_path):
    message = refusal(tmp_path)
    for word in ("raw_train.h5", "raw_val.h5", "raw_train.npy", "raw_val.npy", "slice_universes.py"):
        assert word in message
    write_pair(tmp_path, some_slices())
    message = refusal(tmp_path, split="test")
    assert "raw_test.h5" in message
    assert "--test-fraction" in message
    with pytest.raises(ValueError, match="training"):
        open_slices("raw", "training", DIM, folder=tmp_path)


def test_files_of_different_slicings_are_not_mixed(tmp_path):
    write_pair(tmp_path, some_slices(), slicing=np.bytes_("a"))
    assert len(open_slices("raw", "val", DIM, folder=tmp_path)) == 30
    write_h5(tmp_path / "raw_val.h5", some_slices(), slicing=np.bytes_("b"))
    assert "different slicings" in refusal(tmp_path, split="val")


# ---- Refusals ----


@pytest.mark.parametrize(
    ("slices", "changes", "word"),
    [
        (some_slices(dim=16), {}, "--img-dim 8"),
        (some_slices(0), {}, "no slices"),
        (some_slices()[:, :4], {}, "(30, 4, 8)"),
        (some_slices()[..., np.newaxis], {}, "(30, 8, 8, 1)"),
        (some_slices()[0], {}, "(8, 8)"),
        (some_slices() > 5, {}, "bool"),
        (some_slices().astype(complex), {}, "complex128"),
        (some_slices().astype("S3"), {}, "S3"),
        (some_slices().astype(np.longdouble), {}, "64 bits"),
        (None, {"universe": None}, "slices"),
        (some_slices(), {"universe": np.arange(3)}, "universe"),
        (some_slices(), {"universe": None}, "universe"),
        (some_slices(), {"format_version": FORMAT_VERSION + 1}, "newer"),
        (some_slices(), {"format_version": None}, "format_version"),
        (some_slices(), {"format_version": "one"}, "format_version"),
        (some_slices(), {"mean": None}, "mean"),
        (some_slices(), {"maximum": np.nan}, "maximum"),
        (some_slices(), {"minimum": -1.0}, "minimum"),
        (some_slices(), {"pixel_size": 0.0}, "pixel_size"),
        (h5py.Empty("f4"), {"universe": None}, "slices"),
    ],
)
def test_h5_that_does_not_hold_slices(tmp_path, slices, changes, word):
    write_pair(tmp_path, slices, **changes)
    message = refusal(tmp_path)
    assert word in message
    assert "raw_train.h5" in message


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
@pytest.mark.parametrize("suffix", [".h5", ".npy"])
def test_damaged_files(tmp_path, suffix, damage):
    write_pair(tmp_path, some_slices()) if suffix == ".h5" else save_pair(tmp_path, some_slices()[..., np.newaxis])
    path = tmp_path / f"raw_train{suffix}"
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[:-1000], "text": b"not slices at all" * 99}[damage])
    assert path.name in refusal(tmp_path)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (some_slices(), "(n, dim, dim, 1)"),
        (np.stack(4 * [some_slices()], axis=-1), "(30, 8, 8, 4)"),
        (some_slices(0)[..., np.newaxis], "no slices"),
        (some_slices(dim=16)[..., np.newaxis], "img_dim"),
        (some_slices()[..., np.newaxis] > 5, "bool"),
        (some_slices()[..., np.newaxis].astype("U3"), "U3"),
        (np.asfortranarray(some_slices()[..., np.newaxis]), "Fortran"),
    ],
)
def test_npy_that_does_not_hold_slices(tmp_path, array, word):
    save_pair(tmp_path, array)
    message = refusal(tmp_path)
    assert word in message
    assert "raw_train.npy" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5])
def test_npy_pixels_must_be_densities(tmp_path, value):
    slices = some_slices(dtype=np.float32)
    slices[17, 3, 4] = value
    save_pair(tmp_path, slices[..., np.newaxis])
    message = refusal(tmp_path)
    assert "raw_train.npy" in message
    assert "slice 17 " in message


@pytest.mark.parametrize("storage", [{}, {"chunks": (4, DIM, DIM)}])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
def test_h5_pixels_must_be_densities(tmp_path, storage, value):
    slices = some_slices(dtype=np.float32)
    slices[17, 3, 4] = value
    write_pair(tmp_path, slices, storage=storage)
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        assert len(opened.read([16, 18])) == 2
        with pytest.raises(UserError, match=r"raw_train.h5: slice 17 .* must be densities"):
            opened.read([16, 17])


@pytest.mark.parametrize("storage", [{}, {"chunks": (4, DIM, DIM), "compression": "gzip"}])
def test_a_flipped_bit_never_ends_in_a_traceback(tmp_path, storage):
    write_pair(tmp_path, some_slices(dtype=np.float32), storage=storage)
    path, rng, told = tmp_path / "raw_train.h5", np.random.default_rng(0), 0
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
                opened.read(np.arange(len(opened)))
        except UserError:
            told += 1
    assert told > 0


class _Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_ever_unpickled(tmp_path):
    trap = np.empty((1, DIM, DIM, 1), object)
    trap[...] = _Trap(tmp_path / "trapped")
    for split in ("train", "val"):
        np.save(tmp_path / f"raw_{split}.npy", trap, allow_pickle=True)
    assert "raw_train.npy" in refusal(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write_pair(tmp_path, some_slices())
    with open_slices("raw", "train", DIM, folder=tmp_path) as opened:
        os.truncate(opened.path, opened.path.stat().st_size // 2)
        with pytest.raises(UserError, match="shortened"):
            opened.read(np.arange(30))
