"""A run that is killed, stopped, damaged or diverges: nothing is lost, and what goes on is the same run."""

import dataclasses
import functools
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
from utils.checkpoints import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint, saved_steps
from utils.cli import UserError
from utils.lock import single_writer
from utils.provenance import trained_on
from utils.runs import RunFolder
from utils.signals import StopRequest

SETTINGS = {"Nepochs": 10, "checkpt_batch": 20}  # 50 steps
SAVE_OFTEN = ("--set", "save_steps=7")


def train(folder, *arguments):
    return run_script("train.py", "tiny", 0, *SAVE_OFTEN, *arguments, cwd=folder)


def start(folder, *arguments, **options):
    """A training process whose output can be read while it runs, though Python by itself would keep it back."""
    command = [sys.executable, ROOT / "train.py", "tiny", "0", *SAVE_OFTEN, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes, **options)


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
    assert process.returncode == -signal.SIGKILL
    resumed = train(place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, uninterrupted)


def test_asked_to_stop_it_saves_and_says_how_to_go_on(place, uninterrupted):
    """Three times, by another signal each time; the first comes while it is starting."""
    run = place / "expts" / "tiny" / "run0"
    reached = []
    for name, words in (("SIGUSR1", "training slices"), ("SIGTERM", r"step \d+/50"), ("SIGINT", r"step \d+/50")):
        process = start(place, "--resume")
        wait_for(process, words)
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=60)
        assert process.returncode == 75, error
        assert "train.py tiny 0 --set save_steps=7 --resume" in error
        assert len(error.splitlines()) == 1
        reached.append(int(re.search(rf"stopped by {name} after step (\d+)", error)[1]))
        assert saved_steps(run / "checkpoints")[-1] == reached[-1]
    assert 1 == reached[0] < reached[1] < reached[2] < 50
    resumed = train(place, "--resume")
    assert f"resumed at step {reached[2]}" in resumed.stdout
    assert_same_run(run, uninterrupted)


def test_a_second_writer_is_refused_and_a_killed_one_forgotten(place):
    """What the killed one had written of its events is not there twice."""
    process = start(place)
    wait_for(process, "checkpoint at step 20")
    process.send_signal(signal.SIGSTOP)  # it must not end meanwhile
    assert_refused(train(place, "--resume"), "in use by another process", f"process {process.pid}", os.uname().nodename)
    process.kill()
    process.communicate()
    assert train(place, "--resume").returncode == 0
    steps = [step for tag, step, _ in events(place / "expts" / "tiny" / "run0") if tag == "d_loss"]
    assert steps == [1, 20, 40, 50]


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
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert f"resumed at step 49 from {older.relative_to(place)}" in process.stdout
    assert_same_run(copied, uninterrupted)


def test_without_a_good_checkpoint_nothing_is_touched(place, copied):
    for path in (copied / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}
    assert_refused(train(place, "--resume"), "no checkpoint in", "nothing was changed")
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_full_disk_loses_nothing(place, uninterrupted):
    """No file may grow beyond a limit, which is met by the log, then by the state, the first events and later ones."""
    run = place / "expts" / "tiny" / "run0"
    all_events = next((uninterrupted / "logs").iterdir()).stat().st_size
    for limit, where in ((5_000, "output"), (30_000, "state_"), (240_000, "events"), (all_events // 2, "events")):
        limits = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        process = start(place, "--resume", preexec_fn=limits)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        assert "File too large" in error
        assert where in error.split(";")[0]
        assert "--resume" in error
        assert len(error.splitlines()) == 1, error
        assert not list(run.rglob("*.partial*"))
    resumed = train(place, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(run, uninterrupted)


def test_other_data_end_bit_exactness_with_a_warning(place, copied, sliced):
    (copied / "checkpoints" / "state_000000050.npz").unlink()
    (place / "data").unlink()
    (place / "data").mkdir()
    (place / "data" / "raw_shards").symlink_to(sliced / "data" / "raw_shards")
    for split in ("train", "val"):
        content = bytearray((sliced / "data" / f"raw_{split}.h5").read_bytes())
        (place / "data" / f"raw_{split}.h5").write_bytes(content + b"\0" * 10)
    process = train(place, "--resume")
    assert process.returncode == 0, process.stderr
    assert "may no longer be bit for bit" in process.stdout
    assert "raw_train.h5 has other slices than before, perhaps of universes that were held back then" in process.stdout
    assert trained_on(json.loads((copied / "run.json").read_text()), sliced / "data" / "raw_train.h5") is False


def test_going_back_leaves_weights_that_were_put_aside(copied):
    models = copied / "models"
    shutil.copy(models / "g_cosmo_last.weights.h5", models / "g_cosmo_paper.weights.h5")
    (copied / "checkpoints" / "state_000000050.npz").unlink()
    folder = RunFolder("tiny", "0", copied.parents[1])
    folder.cut_back(newest_checkpoint(folder.checkpoints)[0])
    assert (models / "g_cosmo_paper.weights.h5").is_file()
    assert not (models / "g_cosmo_last.weights.h5").exists()


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
    assert_refused(run_script("train.py", "tiny", 2, "--init-from", "", cwd=place), "g_cosmo_last.weights.h5")
    for key, value in (
        ("ndeconvfilters", "[5, 1]"),
        ("multichannel", "False"),
        ("datascale", "5"),
        ("match_histogram", "True"),
    ):
        other = ("--set", f"{key}={value}")
        assert_refused(run_script("train.py", "tiny", 2, "--init-from", copied, *other, cwd=place), "do not fit", key)
    assert not copied.with_name("run2").exists()


def test_divergence_keeps_the_last_good_state(place, copied):
    """On resume with a far too large learning rate, which takes effect."""
    (copied / "checkpoints" / "state_000000050.npz").unlink()
    state = copied / "checkpoints" / "state_000000049.npz"
    before = state.read_bytes()
    process = train(place, "--resume", "--set", "learn_rate=[1e37, 1e37]", "--set", "Nepochs=20")
    assert process.returncode == 3, process.stderr
    assert "learn_rate was" in process.stdout
    assert re.search(r"training diverged: .* was not finite in step \d+", process.stderr)
    assert len(process.stderr.splitlines()) == 1
    assert saved_steps(copied / "checkpoints") == [49]
    assert state.read_bytes() == before


def test_a_generator_that_an_update_has_ruined_is_told(place):
    """All losses and gradients of the first step are finite; what the generator makes after it is not."""
    process = train(place, "--set", "learn_rate=[1e30, 2e-4]")
    assert process.returncode == 3, process.stderr
    assert "a slice of the generator was not finite after step 1" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert saved_steps(place / "expts" / "tiny" / "run0" / "checkpoints") == [0]


def test_divergence_names_the_first_bad_step_and_tensor(tiny_config):
    gan = GAN(tiny_config)
    densities = np.ones((6, 8, 8), np.int16)
    gan.train_on_densities(densities)
    assert gan.first_divergence() is None
    weight = gan.discriminator.trainable_variables[0]
    weight.assign(tf.fill(weight.shape, np.nan))
    for _ in range(3):
        gan.train_on_densities(densities)
    assert gan.first_divergence() == (2, f"gradient of discriminator/{weight.path}")


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_changed_learning_rate_takes_effect(tiny_config, schedule):
    first = GAN(dataclasses.replace(tiny_config, lr_schedule=schedule), total_steps=10)
    densities = np.ones((6, 8, 8), np.int16)
    first.train_on_densities(densities)
    arrays = {name: variable.numpy() for name, variable in first.state().items()}
    second = GAN(dataclasses.replace(tiny_config, lr_schedule=schedule, learn_rate=(1e-5, 3e-5)), total_steps=10)
    second.load_state(arrays, 1)
    second.train_on_densities(densities)
    factor = 1.0 if schedule == "constant" else 0.5 * (1 + np.cos(np.pi / 10))
    assert float(second.generator_optimizer.learning_rate.numpy()) == pytest.approx(1e-5 * factor)
    assert float(second.discriminator_optimizer.learning_rate.numpy()) == pytest.approx(3e-5 * factor)


def test_a_state_of_other_networks_is_refused(tiny_config):
    first, second = (GAN(dataclasses.replace(tiny_config, noise_vect_len=n), total_steps=10) for n in (5, 6))
    arrays = {name: variable.numpy() for name, variable in first.state().items()}
    before = second.generator.get_weights()
    with pytest.raises(ValueError, match=r"\d variables are others, or of other shapes, generator"):
        second.load_state(arrays, 1)
    for weight, old in zip(second.generator.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    del arrays[next(iter(arrays))]
    with pytest.raises(ValueError, match="1 variables are others"):
        first.load_state(arrays, 1)


def test_a_state_of_another_version_is_told(workplace):
    assert run_script("train.py", "tiny", 0, cwd=workplace).returncode == 0
    folder = workplace / "expts" / "tiny" / "run0" / "checkpoints"
    path = checkpoint_path(folder, saved_steps(folder)[-1])
    state = load_checkpoint(path)
    del state.arrays["generator/000"]
    save_checkpoint(folder, state.meta["step"], state.arrays, state.meta, keep=2)
    before = path.read_bytes()
    process = run_script("train.py", "tiny", 0, "--resume", "--set", "Nepochs=2", cwd=workplace)
    assert_refused(process, path.name, "another version", "generator/000", "run.json")
    assert path.read_bytes() == before
    assert (folder.parent / "models" / "g_cosmo_last.weights.h5").is_file()


def test_a_second_interrupt_stops_at_once():
    request = StopRequest()
    request.receive(signal.SIGINT, None)
    assert request.signal_name == "SIGINT"
    request.receive(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        StopRequest.receive(_after_interrupt(), signal.SIGINT, None)


def _after_interrupt():
    request = StopRequest()
    request.receive(signal.SIGINT, None)
    return request


def test_records_without_a_checkpoint_are_not_overwritten(place, copied):
    shutil.rmtree(copied / "checkpoints")
    before = (copied / "metrics.jsonl").read_bytes()
    assert_refused(train(place, "--resume"), "no checkpoint to go on from", "--init-from")
    assert (copied / "metrics.jsonl").read_bytes() == before


def test_a_lost_configuration_is_not_guessed(place, copied):
    (copied / "config.yaml").unlink()
    assert_refused(train(place, "--resume"), "config.yaml is missing", "train.log has it")


def test_a_run_that_is_past_the_end_is_refused(place, copied):
    assert_refused(train(place, "--resume", "--set", "Nepochs=1"), "is at step 50 already", "Nepochs")


def test_a_lost_record_is_no_reason_to_stop(place, copied):
    (copied / "run.json").unlink()
    process = train(place, "--resume", "--set", "Nepochs=11")
    assert process.returncode == 0, process.stderr
    assert "how it was started before is not known" in process.stdout


def test_output_that_nobody_reads_stops_nothing(place, uninterrupted):
    process = start(place)
    wait_for(process, "step 1/50")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert_same_run(place / "expts" / "tiny" / "run0", uninterrupted)
