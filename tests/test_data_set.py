"""Data sets that grow: shards in parallel, interrupted, extended; every slice stays where it is."""

import json
import os
import shutil
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT, assert_refused, run_script
from tests.universe_files import (
    SCRIPT,
    SMALL,
    THIRDS,
    joined_bytes,
    load,
    names,
    shard_paths,
    slice_them,
    write_universe,
    write_universes,
)
from utils.cli import UserError
from utils.data_set import Entry, assign
from utils.provenance import run_record
from utils.slice_plan import draw_splits
from utils.slices import open_slices

SPLITS = ("train", "val", "test")


def split_of_slices(files):
    """Which file each slice is in, by universe and place."""
    where = {}
    for split, content in files.items():
        places = zip(content["universe"], content["axis"], content["plane"], content["corner"].tolist(), strict=True)
        for universe, axis, plane, corner in places:
            where[content["file"][universe], axis, plane, *corner] = split
    return where


def inodes(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shard_paths(folder)}


# ---- The sequence of splits ----

SHARES = st.tuples(st.floats(0.001, 0.45), st.floats(0.001, 0.45)).map(
    lambda held: {"train": 1 - sum(held), "val": held[0], "test": held[1]}
)


@settings(deadline=None, max_examples=60)
@given(SHARES, st.integers(0, 2**40), st.integers(3, 400), st.integers(0, 400))
def test_splits_are_stable_and_honour_their_shares(shares, seed, number, before):
    splits = draw_splits(number, shares, seed)
    first = splits[: min(before, number)]
    assert draw_splits(len(first), shares, seed) == first
    assert draw_splits(number, shares, seed, first) == splits
    for split, share in shares.items():
        count, due = splits.count(split), share * number
        assert count >= 1
        assert count < max(2, due + 1)
        if min(shares.values()) * number >= 1:  # nobody has had a universe before it was due
            assert abs(count - due) < 1


def test_the_seed_decides_and_no_place_in_an_order_is_privileged():
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    drawn = [draw_splits(1000, shares, seed) for seed in range(20)]
    assert len({tuple(splits) for splits in drawn}) == 20
    for split in ("val", "test"):
        places = np.bincount([i % 10 for splits in drawn for i, given in enumerate(splits) if given == split])
        assert places.sum() == 2000
        assert 100 < places.min() <= places.max() < 400


def test_a_split_may_lack_more_than_its_share_before_each_has_a_universe():
    splits = draw_splits(24, {"train": 0.4, "val": 0.1, "test": 0.5}, 0)
    assert [splits.count(split) for split in ("train", "val", "test")] == [10, 2, 12]


def test_one_split_takes_everything():
    assert draw_splits(5, {"train": 1.0}, 0) == 5 * ["train"]


def test_what_would_move_slices_is_refused(tmp_path):
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    slabs = [Entry("a", None, ""), Entry("b", None, "")]
    assert assign(slabs[:1], ["b"], shares, 0, tmp_path) == {"a": None, "b": None}
    with pytest.raises(UserError, match="slab"):
        assign(slabs, ["c"], shares, 0, tmp_path)
    with pytest.raises(UserError, match="belongs to val"):
        assign([Entry("a", "train", ""), Entry("b", "test", ""), Entry("c", "train", "")], [], shares, 0, tmp_path)


# ---- Parallel, in parts, in turn ----


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Eight universes, sliced at once; copies of the folder keep the files' times."""
    folder = tmp_path_factory.mktemp("at_once")
    write_universes(folder / "in", 8)
    slice_them(folder, *SMALL, *THIRDS, "--axes", "012")
    return folder


@pytest.fixture
def fresh(at_once, tmp_path):
    """The same universes, not sliced."""
    shutil.copytree(at_once / "in", tmp_path / "in")
    return tmp_path


OPTIONS = (*SMALL, *THIRDS, "--axes", "012")


def test_several_processes_give_what_one_gives(fresh, at_once):
    slice_them(fresh, *OPTIONS, "--jobs", 3)
    assert joined_bytes(fresh) == joined_bytes(at_once)
    for path, other in zip(shard_paths(fresh), shard_paths(at_once), strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_parts_are_joined(fresh, at_once):
    for part in (2, 0, 1):
        before = inodes(fresh)
        process = run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", "--shard", f"{part}/3", cwd=fresh)
        assert process.returncode == 0, process.stderr
        assert len(inodes(fresh)) == len(before) + (2 if part == 2 else 3)
        assert joined_bytes(fresh) == {}
    sliced = inodes(fresh)
    slice_them(fresh, *OPTIONS)
    assert inodes(fresh) == sliced
    assert joined_bytes(fresh) == joined_bytes(at_once)


def test_parts_that_are_missing_are_made_when_joining(fresh, at_once):
    run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", "--shard", "4/5", cwd=fresh)
    one = inodes(fresh)
    slice_them(fresh, *OPTIONS)
    assert one.items() < inodes(fresh).items()
    assert joined_bytes(fresh) == joined_bytes(at_once)


@pytest.mark.parametrize("part", ["3/3", "-1/3", "1", "1/0", "a/b", "1/3/5"])
def test_parts_that_do_not_exist_are_refused(fresh, part):
    assert_refused(run_script(SCRIPT, "in", *OPTIONS, f"--shard={part}", "--out", "raw", cwd=fresh), "--shard", "N")


def test_two_at_the_same_time_disturb_each_other_not(fresh, at_once):
    command = [sys.executable, ROOT / SCRIPT, "in", *map(str, OPTIONS), "--out", "raw"]
    processes = [subprocess.Popen(command, cwd=fresh, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    assert joined_bytes(fresh) == joined_bytes(at_once)


def test_growing_moves_no_slice_and_gives_what_slicing_at_once_gives(fresh, at_once):
    later = sorted((fresh / "in").rglob("*.hdf5"), key=lambda path: path.relative_to(fresh / "in").parts)[4:]
    for path in later:
        path.rename(path.with_suffix(".later"))
    before, sliced = split_of_slices(slice_them(fresh, *OPTIONS)), inodes(fresh)
    for path in later:
        path.with_suffix(".later").rename(path)
    after = split_of_slices(slice_them(fresh, *OPTIONS, "--jobs", 2))
    assert before.items() < after.items()
    assert sliced.items() < inodes(fresh).items()
    assert joined_bytes(fresh) == joined_bytes(at_once)


def test_universes_that_sort_before_the_old_ones_move_nothing_either(fresh):
    before = split_of_slices(slice_them(fresh, *OPTIONS))
    for number in range(5):
        write_universe(fresh / f"in/a/{number}.hdf5", number)
    after = split_of_slices(slice_them(fresh, *OPTIONS))
    assert before.items() < after.items()
    assert len(after) * 8 == len(before) * 13


def test_a_universe_that_has_changed_is_sliced_again(fresh):
    slice_them(fresh, *OPTIONS)
    before, joined = inodes(fresh), joined_bytes(fresh)
    name = "deep/down/0/universe_04.hdf5"
    path = fresh / "in" / name
    times = path.stat()
    write_universe(path, 4)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    slice_them(fresh, *OPTIONS)
    assert len(before.items() - inodes(fresh).items()) == 1
    assert joined_bytes(fresh) == joined  # written again, but the same
    write_universe(path, 5)
    after = slice_them(fresh, *OPTIONS)
    assert before.keys() < inodes(fresh).keys()
    split = next(split for split, content in after.items() if name in content["file"])
    row = after[split]["file"].index(name)
    numbers = after[split]["slices"][after[split]["universe"] == row].max(axis=(1, 2)) // 4096
    assert set(numbers.tolist()) == {5}


def test_the_record_of_a_run_tells_other_pixels(fresh, tiny_config):
    def data():
        slice_them(fresh, *OPTIONS)
        with open_train(fresh) as opened:
            return run_record(tiny_config, {"train": opened}, {}, {})["data"]["train"], opened.universe.tolist()

    before = data()
    with h5py.File(fresh / "raw_train.h5") as file:
        name = file["universes/file"][0].decode()
    with h5py.File(fresh / "in" / name, "r+") as file:
        file["full"][0, 0, 0, 0] += 1
    os.utime(fresh / "in" / name, (1, 1))
    after = data()
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert after[0]["path"] == before[0]["path"]


def test_vanished_universes_keep_their_slices_until_their_shards_go(fresh, at_once):
    before = split_of_slices(slice_them(fresh, *OPTIONS))
    (fresh / "in/deep/down/0/universe_02.hdf5").unlink()
    shutil.rmtree(fresh / "in/deep/down/1")
    process = run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", cwd=fresh)
    assert "5 universe(s) are no longer there" in process.stdout
    assert joined_bytes(fresh) == joined_bytes(at_once)
    shutil.rmtree(fresh / "in/deep")
    assert run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", cwd=fresh).returncode == 0
    assert joined_bytes(fresh) == joined_bytes(at_once)
    shard = next(path for path in shard_paths(fresh) if "universe_02" in path.name)
    content = shard.read_bytes()
    shard.write_bytes(content[:2000])
    assert_refused(run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", cwd=fresh), shard.name, "damaged")
    shard.unlink()
    process = run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", cwd=fresh)
    assert "1 universe(s) are forgotten" in process.stdout
    files = {split: load(fresh / f"raw_{split}.h5") for split in SPLITS}
    assert split_of_slices(files).items() < before.items()
    assert set.union(*map(names, files.values())) == {
        f"deep/down/{i % 2}/universe_{i:02d}.hdf5" for i in range(8) if i != 2
    }


def test_other_options_begin_anew_and_use_what_fits(fresh):
    slice_them(fresh, *OPTIONS)
    before = inodes(fresh)
    process = run_script(SCRIPT, "in", *OPTIONS, "--seed", 1, "--out", "raw", cwd=fresh)
    assert "--seed was 0, is 1" in process.stdout
    assert inodes(fresh) == before
    process = run_script(SCRIPT, "in", *OPTIONS, "--stride", 8, "--out", "raw", cwd=fresh)
    assert "--seed was 1, is 0" in process.stdout
    assert "--stride was 4, is 8" in process.stdout
    assert "8 file(s)" in process.stdout
    assert len(inodes(fresh)) == 16
    assert before.items() < inodes(fresh).items()
    process = run_script(SCRIPT, "in/deep", *OPTIONS, "--stride", 8, "--out", "raw", cwd=fresh)
    assert "FOLDER was" in process.stdout


def test_slabs_do_not_become_whole_universes(tmp_path):
    write_universes(tmp_path / "in", 1)
    before = split_of_slices(slice_them(tmp_path, *SMALL))
    write_universes(tmp_path / "in", 2)
    assert before.items() < split_of_slices(slice_them(tmp_path, *SMALL)).items()
    write_universes(tmp_path / "in", 3)
    joined = joined_bytes(tmp_path)
    process = run_script(SCRIPT, "in", *SMALL, "--out", "raw", cwd=tmp_path)
    assert_refused(process, "slab", "--out", "data_set.json")
    assert joined_bytes(tmp_path) == joined
    (tmp_path / "raw_shards/data_set.json").unlink()
    assert slice_them(tmp_path, *SMALL)["train"]["split_by"] == "universes"


def test_a_damaged_record_is_not_taken_for_none(fresh):
    slice_them(fresh, *OPTIONS)
    (fresh / "raw_shards/data_set.json").write_text('{"record_version": 1, "options"')
    assert_refused(run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", cwd=fresh), "data_set.json", "damaged")


@pytest.mark.parametrize("tags", [(b"cosmoUniverse", "exagan_cola"), ("one", None)])
def test_data_sets_are_not_mixed(tmp_path, tags):
    write_universes(tmp_path / "in", 3)
    for path, tag in zip(sorted((tmp_path / "in").rglob("*.hdf5")), (tags[0], *tags), strict=True):
        with h5py.File(path, "r+") as file:
            if tag is not None:
                file.attrs["dataset_tag"] = tag
    for part in ((), ("--shard", "0/1")):
        process = run_script(SCRIPT, "in", *SMALL, *part, "--out", "raw", cwd=tmp_path)
        first, second = ("none" if tag is None else np.asarray(tag).astype(str) for tag in tags)
        assert_refused(process, "universe_00.hdf5", "universe_01.hdf5", f"'{first}'", f"'{second}'")


def test_room_is_asked_for_what_is_missing_alone(fresh, at_once):
    """A file system on which the whole data set would not fit, but what is still missing does."""
    code = (
        "import collections, runpy, shutil, sys\n"
        "usage = collections.namedtuple('usage', 'total used free')(0, 0, int(sys.argv.pop(1)))\n"
        "shutil.disk_usage = lambda path: usage\n"
        "runpy.run_path(sys.argv[0] if sys.argv.pop(0) else '', run_name='__main__')"
    )
    whole = sum(path.stat().st_size for path in shard_paths(at_once))
    command = [sys.executable, "-c", code, str(2**20 + whole // 3), str(ROOT / SCRIPT), "in", *map(str, OPTIONS)]
    command += ["--out", "raw"]
    refused = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    assert "GB free" in refused.stderr, refused.stderr
    for part in range(7):
        run_script(SCRIPT, "in", *OPTIONS, "--out", "raw", "--shard", f"{part}/9", cwd=fresh)
    accepted = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
    assert (accepted.returncode, accepted.stderr) == (0, "")
    assert joined_bytes(fresh) == joined_bytes(at_once)


# ---- Reading shards ----


def open_train(folder):
    return open_slices("raw", "train", 8, folder)


def test_slices_of_shards_are_read_as_hdf5_reads_them(fresh):
    write_universe(fresh / "in/z.hdf5", 3, dtype=np.float64)  # so that all are read as float32
    for split, content in slice_them(fresh, *OPTIONS).items():
        with open_slices("raw", split, 8, fresh) as opened:
            assert opened.dtype == np.float32
            rows = np.random.default_rng(0).permutation(len(opened))
            assert np.array_equal(opened.read(rows), content["slices"][rows])
            assert np.array_equal(opened.universe, content["universe"])
            assert (opened.minimum, opened.maximum) == (content["slices"].min(), content["slices"].max())
            assert opened.mean == pytest.approx(content["slices"].mean(dtype=float), rel=1e-14)
        with pytest.raises(ValueError, match="closed"):
            opened.read([0])


def test_slabs_are_read_from_where_they_begin(tmp_path):
    write_universes(tmp_path / "in", 2)
    for split, content in slice_them(tmp_path, "--img-dim", 8, "--stride", 1).items():
        with open_slices("raw", split, 8, tmp_path) as opened:
            assert np.array_equal(opened.read(np.arange(len(opened))), content["slices"])


READ_ALL = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from utils.slices import open_slices
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
with open_slices("raw", "train", 8, sys.argv[1]) as opened, ThreadPoolExecutor(4) as pool:
    batches = np.random.default_rng(1).integers(0, len(opened), (100, 16))
    images = np.concatenate(list(pool.map(opened.read, batches)))
np.save(sys.argv[1] + "/read.npy", images)
"""


def test_more_shards_than_files_may_be_open(tmp_path):
    for number in range(60):
        write_universe(tmp_path / f"in/{number:02d}.hdf5", number % 8, grid=8)
    content = slice_them(tmp_path, "--img-dim", 8, "--stride", 1, "--jobs", 2)["train"]
    assert len(content["file"]) == 48
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    rows = np.random.default_rng(1).integers(0, len(content["slices"]), (100, 16)).ravel()
    assert np.array_equal(np.load(tmp_path / "read.npy"), content["slices"][rows])


def harm(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "replaced":
        other = next(other for other in sorted(path.parent.glob("*.h5")) if other != path)
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("how", ["missing", "truncated", "replaced"])
def test_a_shard_that_is_not_what_it_was_is_noticed(fresh, at_once, how):
    slice_them(fresh, *OPTIONS)
    with open_train(fresh) as opened:
        assert opened.read([0]).any()
    with h5py.File(fresh / "raw_train.h5") as file:
        path = fresh / os.fsdecode(file["shards/file"][1])
    harm(path, how)
    with pytest.raises(UserError) as caught:
        open_train(fresh)
    for word in (path.name, "raw_train.h5", "slice_universes.py"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    slice_them(fresh, *OPTIONS)
    assert joined_bytes(fresh) == joined_bytes(at_once)
    open_train(fresh).close()


def test_a_shard_that_goes_while_it_is_used_is_noticed(fresh):
    slice_them(fresh, *OPTIONS)
    with open_train(fresh) as opened:
        shutil.rmtree(fresh / "raw_shards")
        with pytest.raises(UserError, match="no longer there"):
            opened.read([0])


def test_a_data_set_may_be_moved_and_linked(fresh):
    content = slice_them(fresh, *OPTIONS)["train"]
    (fresh / "elsewhere").mkdir()
    for path in fresh.glob("raw_*"):
        path.rename(fresh / "elsewhere" / path.name)
    (fresh / "links").mkdir()
    for split in SPLITS:
        (fresh / f"links/raw_{split}.h5").symlink_to(fresh / f"elsewhere/raw_{split}.h5")
    for folder in ("elsewhere", "links"):
        with open_train(fresh / folder) as opened:
            assert np.array_equal(opened.read(np.arange(len(opened))), content["slices"])


def test_names_that_mean_something_to_file_systems_or_to_hdf5(tmp_path):
    for number, name in enumerate(("100%b/a b.hdf5", "ü/..x.hdf5", "same/x.hdf5", f"{'long' * 50}.hdf5")):
        write_universe(tmp_path / "in" / name, number)
    files = slice_them(tmp_path, *SMALL, *THIRDS, out="50%d b")
    for split, content in files.items():
        with open_slices("50%d b", split, 8, tmp_path) as opened:
            assert np.array_equal(opened.read(np.arange(len(opened))), content["slices"])
            numbers = {int(image.max()) // 4096 for image in content["slices"]}
            assert len(numbers) == len(content["file"])


def test_virtual_files_of_other_tools_are_read_too(fresh):
    content = slice_them(fresh, *OPTIONS)["train"]
    for split in ("train", "val"):
        with h5py.File(fresh / f"raw_{split}.h5", "r+") as file:
            del file["shards"]
    with open_train(fresh) as opened:
        assert np.array_equal(opened.read([5, 3]), content["slices"][[5, 3]])
    for path in shard_paths(fresh):
        path.unlink()
    with pytest.raises(UserError, match="move both together"):
        open_train(fresh)


def test_a_damaged_table_of_shards_is_told(fresh):
    slice_them(fresh, *OPTIONS)
    with h5py.File(fresh / "raw_train.h5", "r+") as file:
        file["universe"][...] = file["universe"][...][::-1]
    with pytest.raises(UserError, match="order"):
        open_train(fresh)
    with h5py.File(fresh / "raw_train.h5", "r+") as file:
        del file["shards/digest"]
    with pytest.raises(UserError, match="digest"):
        open_train(fresh)


def test_checksums_are_those_of_the_pixels(at_once):
    for path in shard_paths(at_once)[:2]:
        with h5py.File(path) as file:
            slices = file["slices"][...]
            assert file["checksum"][...].tolist() == [zlib.crc32(image) for image in slices]
            assert np.array_equal(file["sum"], slices.sum(axis=(1, 2)))


def test_the_record_is_legible(at_once):
    record = json.loads((at_once / "raw_shards/data_set.json").read_text())
    assert record["options"]["--stride"] == 4
    assert record["options"]["FOLDER"] == "in"
    assert {entry["split"] for entry in record["universes"]} == set(SPLITS)
