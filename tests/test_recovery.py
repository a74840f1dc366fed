"""A run that is killed, stopped, damaged or diverges: nothing is lost, and what goes on is the same run."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from networks.gan import GAN
from tests.conftest import ROOT, assert_refused, run_script, write_config
from tests.killing import MOMENTS, kill
from tests.run_files import assert_same_run, events, metrics
from utils.checkpoints import checkpoint_path, saved_steps
from utils.cli import UserError
from utils.lock import single_writer

SETTINGS = {"Nepochs": 10, "checkpt_batch": 8}  # 50 steps
SAVE_OFTEN = ("--set", "save_steps=7")


def train(folder, *arguments):
    return run_script("train.py", "tiny", 0, *SAVE_OFTEN, *arguments, cwd=folder)


def start(folder, *arguments, **options):
    """A training process whose output can be read while it runs."""
    command = [sys.executable, "-u", ROOT / "train.py", "tiny", "0", *SAVE_OFTEN, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, **pipes, **options)


def wait_for(process, words):
    for line in process.stdout:
        if re.search(words, line):
            return line
    raise AssertionError(f"{words!r} never appeared: {process.stderr.read()}")


@pytest.fixture(scope="module")
def uninterrupted(sliced, tmp_path_factory):
    """The run that all others have to equal."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").symlink_to(sliced / "data")
    write_config(folder, **SETTINGS)
    process = train(folder)
    assert process.returncode == 0, process.stderr
    return folder / "expts" / "tiny" / "run0"


@pytest.fixture
def place(workplace):
    write_config(workplace, **SETTINGS)
    return workplace


@pytest.fixture
def copied(place, uninterrupted):
    """A copy of the finished run, to be damaged."""
    run = place / "expts" / "tiny" / "run0"
    shutil.copytree(uninterrupted, run)
    return run


@pytest.mark.parametrize(("seed", "moment"), list(enumerate((*MOMENTS, MOMENTS[0]))))
def test_killed_at_any_moment_it_ends_as_the_same_run(place, uninterrupted, seed, moment):
    """SIGKILL at a random time, or while the state, weights or events are being written."""
    run = place / "expts" / "tiny" / "run0"
    process = start(place)
    wait_for(process, "step 1/50")
    kill(process, run, moment, seed)
    resumed = train(place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, uninterrupted)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(place, uninterrupted, name):
    process = start(place)
    wait_for(process, "step 2/50")
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    step = int(re.search(rf"stopped by {name} after step (\d+)", error)[1])
    assert "python train.py tiny 0 --resume" in error
    assert len(error.splitlines()) == 1
    assert saved_steps(place / "expts" / "tiny" / "run0" / "checkpoints")[-1] == step < 50
    resumed = train(place, "--resume")
    assert f"resumed at step {step}" in resumed.stdout
    assert_same_run(place / "expts" / "tiny" / "run0", uninterrupted)


def test_a_second_writer_is_refused_and_a_killed_one_forgotten(place):
    process = start(place)
    wait_for(process, "step 1/50")
    assert_refused(train(place, "--resume"), "in use by another process", f"process {process.pid}", os.uname().nodename)
    process.kill()
    process.communicate()
    assert train(place, "--resume").returncode == 0


def test_a_silent_lock_of_another_host_is_taken_over(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "process": 1}))
    with pytest.raises(UserError, match="host elsewhere, process 1"), single_writer(lock):
        pass
    os.utime(lock, (time.time() - 61, time.time() - 61))
    with single_writer(lock):
        assert json.loads(lock.read_text())["process"] == os.getpid()
    assert lock.read_text() == ""


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(place, copied, uninterrupted, damage):
    newest, older = (checkpoint_path(copied / "checkpoints", step) for step in (50, 49))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(content if damage == "flipped" else content[:-1000])
    process = train(place, "--resume")
    assert process.returncode == 0, process.stderr
    assert f"{newest.name} is damaged" in process.stdout
    assert f"resumed at step 49 from {older.relative_to(place)}" in process.stdout
    assert_same_run(copied, uninterrupted)


def test_without_a_good_checkpoint_nothing_is_touched(place, copied):
    for path in (copied / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}
    assert_refused(train(place, "--resume"), "no checkpoint in", "nothing was changed")
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_full_disk_loses_nothing(place, uninterrupted):
    """No file may grow beyond a limit that the second checkpoint's event file passes."""
    first = next((uninterrupted / "logs").iterdir()).stat().st_size
    limit = first // 2
    state = checkpoint_path(uninterrupted / "checkpoints", 50).stat().st_size
    assert state < limit  # it is the events that meet the limit
    process = start(place, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "File too large" in error
    assert "--resume" in error
    assert len(error.splitlines()) == 1, error
    resumed = train(place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(place / "expts" / "tiny" / "run0", uninterrupted)


@pytest.mark.parametrize("limit", [5_000, 30_000, 240_000])
def test_a_disk_that_was_full_from_the_start(place, uninterrupted, limit):
    """The log, the weights or the first events meet the limit."""
    process = start(place, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert len(error.splitlines()) == 1, error
    run = place / "expts" / "tiny" / "run0"
    assert not list(run.rglob("*.partial*"))
    resumed = train(place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, uninterrupted)


def test_other_data_end_bit_exactness_with_a_warning(place, copied, sliced):
    (copied / "checkpoints" / "state_000000050.npz").unlink()
    (place / "data").unlink()
    (place / "data").mkdir()
    for split in ("train", "val"):
        content = bytearray((sliced / "data" / f"raw_{split}.h5").read_bytes())
        (place / "data" / f"raw_{split}.h5").write_bytes(content + b"\0" * 10)
    process = train(place, "--resume")
    assert process.returncode == 0, process.stderr
    assert "no longer bit for bit" in process.stdout
    assert "data.train.bytes was" in process.stdout


def test_the_record_says_what_a_run_was_made_with(copied):
    record = json.loads((copied / "run.json").read_text())
    assert {"version", "commit", "seed", "data", "numerics"} <= record.keys()
    assert record["data"]["train"]["bytes"] > 0
    assert {"tensorflow", "keras"} <= record["numerics"]["packages"].keys()
    assert '"sha256_first"' in (copied / "train.log").read_text()


def test_init_from_begins_a_new_run_with_old_weights(place, copied):
    process = run_script("train.py", "tiny", 1, "--init-from", copied, "--set", "Nepochs=1", cwd=place)
    assert process.returncode == 0, process.stderr
    first, scratch = metrics(copied.with_name("run1"))[0], metrics(copied)[0]
    assert first["step"] == 1
    assert first["d_loss"] != scratch["d_loss"]
    assert_refused(
        run_script("train.py", "tiny", 2, "--init-from", "nowhere", cwd=place), "nowhere", "g_cosmo_last.weights.h5"
    )
    assert not copied.with_name("run2").exists()


def test_divergence_keeps_the_last_good_state(place):
    process = train(place, "--set", "learn_rate=[1e37, 1e37]")
    assert process.returncode == 3
    assert re.search(r"training diverged: .* was not finite in step \d+", process.stderr)
    assert len(process.stderr.splitlines()) == 1
    run = place / "expts" / "tiny" / "run0"
    for path in (run / "checkpoints").glob("*.npz"):
        with np.load(path) as state:
            assert all(np.isfinite(state[name]).all() for name in state.files)
    assert not list((run / "models").glob("*_last*"))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_divergence_names_the_first_bad_step_and_tensor(tiny_config, network):
    gan = GAN(tiny_config)
    densities = np.ones((6, 8, 8), np.int16)
    gan.train_on_densities(densities)
    assert gan.first_divergence() is None
    weight = getattr(gan, network).trainable_variables[0]
    weight.assign(tf.fill(weight.shape, np.nan))
    for _ in range(3):
        gan.train_on_densities(densities)
    step, tensor = gan.first_divergence()
    assert step == 2
    assert tensor.startswith(("loss", "gradient"))


def test_a_second_interrupt_stops_at_once(place):
    process = start(place, "--set", "Nepochs=100000")
    wait_for(process, "step 2/")
    process.send_signal(signal.SIGSTOP)  # both signals are there before the step ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (75, 130)


def test_events_of_a_killed_run_have_no_step_twice(place):
    process = start(place)
    wait_for(process, "checkpoint at step 16")
    process.kill()
    process.communicate()
    assert train(place, "--resume").returncode == 0
    steps = [step for tag, step, _ in events(place / "expts" / "tiny" / "run0") if tag == "d_loss"]
    assert steps == [1, 8, 16, 24, 32, 40, 48, 50]
