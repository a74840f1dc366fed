"""Several processes that train together: the same as one, and no hang when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, run_script, write_config
from tests.run_files import metrics
from utils.checkpoints import checkpoint_path, load_checkpoint, saved_steps


def free_addresses(number):
    """Addresses on this machine whose ports nobody uses at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"localhost:{opened.getsockname()[1]}" for opened in sockets]
    for opened in sockets:
        opened.close()
    return addresses


def start_workers(folder, run, *arguments, number=2, own=()):
    """Processes that train together; `own` are arguments of the last one alone."""
    addresses, processes = free_addresses(number), []
    for rank in range(number):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        command = [sys.executable, "-u", ROOT / "train.py", "tiny", str(run), *arguments]
        command += own if rank == number - 1 else ()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"TF_CONFIG": json.dumps(task)}
        # What is said on stderr is part of what is tested.
        del environment["TF_CPP_MIN_LOG_LEVEL"]
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    return addresses, processes


def state_of(folder, run, step):
    return load_checkpoint(checkpoint_path(folder / "expts" / "tiny" / f"run{run}" / "checkpoints", step)).arrays


def assert_equal_to_rounding(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def place(workplace):
    write_config(workplace, Nepochs=10, checkpt_batch=25, sync_batchnorm=True, match_histogram=True)
    return workplace


def test_two_processes_train_as_one_and_one_goes_on_when_the_other_dies(place):
    alone = run_script("train.py", "tiny", 0, cwd=place)
    assert alone.returncode == 0, alone.stderr
    _, workers = start_workers(place, 1)
    said = []
    for worker in workers:
        output, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error
        said.append(output)
    assert "multiworker: 2 replicas in 2 process(es)" in said[0]
    assert_equal_to_rounding(state_of(place, 0, 50), state_of(place, 1, 50))

    addresses, (first, second) = start_workers(place, 2, "--set", "Nepochs=2000", "--set", "save_steps=10")
    for line in first.stdout:
        if "step 20/" in line:
            break
    second.send_signal(signal.SIGKILL)
    _, error = first.communicate(timeout=60)
    second.communicate()
    assert first.returncode == 2, error
    assert len(error.splitlines()) == 1, error
    assert f"worker 1 ({addresses[1]}) has died" in error
    resumed = run_script("train.py", "tiny", 2, "--resume", cwd=place)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_to_rounding(state_of(place, 0, 50), state_of(place, 2, 50))
    runs = [place / "expts" / "tiny" / f"run{run}" for run in (0, 2)]
    steps = [[line["step"] for line in metrics(run)] for run in runs]
    assert steps[0] == steps[1]


def test_three_processes_train_as_one(place):
    settings = ("--set", "batchsize=12", "--set", "Nepochs=25")
    alone = run_script("train.py", "tiny", 0, *settings, cwd=place)
    assert alone.returncode == 0, alone.stderr
    _, workers = start_workers(place, 1, *settings, number=3)
    for worker in workers:
        _, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error
    (step,) = saved_steps(place / "expts" / "tiny" / "run0" / "checkpoints")[-1:]
    assert_equal_to_rounding(state_of(place, 0, step), state_of(place, 1, step))


def test_workers_that_would_train_something_else_are_refused(place):
    addresses, workers = start_workers(place, 0, own=("--set", "label_flip=0.5"))
    for worker in workers:
        _, error = worker.communicate(timeout=60)
        assert worker.returncode == 2, error
        assert f"worker 1 ({addresses[1]})" in error
        assert "configuration.label_flip is 0.5, not 0.01" in error


@pytest.mark.parametrize(
    ("own", "words"),
    [(("--set", "label_flip=7"), "label_flip = 7"), (("--devices", "2"), "--devices 2: without GPUs")],
)
def test_a_refused_worker_tells_the_others(place, own, words):
    _, workers = start_workers(place, 0, own=own)
    for worker in workers:
        _, error = worker.communicate(timeout=60)
        assert worker.returncode == 2, error
        assert words in error
