"""The Slurm script for training, run by bash with stand-ins for Slurm's commands."""

import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, run_script, write_config
from tests.run_files import metrics
from tests.test_workers import assert_equal_to_rounding, state_of
from utils.checkpoints import saved_steps
from utils.cli import UserError
from utils.cluster import find_cluster

SCRIPT = ROOT / "slurm" / "train.slurm"
SRUN = "srun --cpus-per-task=1 --kill-on-bad-exit=0 --wait=300"

# What srun does with two tasks on one node, as far as training can see it; their process numbers are left for the test,
# which sends the signals that Slurm would send.
TWO_TASKS = f"""#!/bin/bash
while [[ $1 == --* ]]; do shift; done
shift
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank {sys.executable} -u {ROOT}/"$@" > output$rank 2>&1 &
    echo $! >> tasks
done
status=0
for task in $(cat tasks); do
    wait $task
    ended=$?
    (( ended > status )) && status=$ended
done
exit $status
"""


def slurm_commands(folder, srun):
    """A folder of stand-ins; scontrol writes down how it was called."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    scontrol = f'#!/bin/bash\necho "scontrol $*" >> {folder}/calls\n'
    for name, text in (("srun", srun), ("scontrol", scontrol)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}


def calls_in(folder):
    calls = folder / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


def submit(folder, srun_status, *arguments):
    environment = slurm_commands(folder, f'#!/bin/bash\necho "srun $*" >> {folder}/calls\nexit {srun_status}\n')
    process = subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    return process.returncode, calls_in(folder)


def test_a_stopped_run_requeues_itself(tmp_path):
    status, calls = submit(tmp_path, 75, "base", "0", "--set", "seed=1")
    assert status == 75
    assert calls == [f"{SRUN} python train.py base 0 --resume --set seed=1", "scontrol requeue 4711"]


@pytest.mark.parametrize("outcome", [0, 2, 3])
def test_any_other_end_is_final(tmp_path, outcome):
    status, calls = submit(tmp_path, outcome, "base", "0")
    assert status == outcome
    assert len(calls) == 1


def test_without_arguments_it_says_how_to_call_it(tmp_path):
    status, calls = submit(tmp_path, 0)
    assert status != 0
    assert calls == []


def test_slurm_is_told_to_warn_and_to_requeue():
    directives = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=USR1@120" in directives
    assert "#SBATCH --requeue" in directives


def free_job_number():
    """The number of a job whose tasks may use the port that follows from it, and the next one."""
    for number in range(os.getpid() % 10_000, 18_000, 2):
        try:
            for port in (12_000 + number, 12_001 + number):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return str(number)
    raise AssertionError("no free ports")


@pytest.mark.parametrize(
    ("nodes", "tasks", "addresses"),
    [
        ("one", "2", ["one:16711", "one:16712"]),
        ("n[9-10]", "2,1", ["n9:16711", "n9:16712", "n10:16711"]),
        ("n[08,10-11],m5", "1(x3),2", ["n08:16711", "n10:16711", "n11:16711", "m5:16711", "m5:16712"]),
        ("r[1-2]n[3,5]-ib", "1(x4)", ["r1n3-ib:16711", "r1n5-ib:16711", "r2n3-ib:16711", "r2n5-ib:16711"]),
    ],
)
def test_tasks_have_the_addresses_of_slurms_lists(nodes, tasks, addresses):
    step = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_JOB_ID": "4711"}
    cluster = find_cluster(step | {"SLURM_STEP_NUM_TASKS": str(len(addresses)), "SLURM_PROCID": "1"})
    assert (cluster.rank, list(cluster.addresses)) == (1, addresses)


@pytest.mark.parametrize(("nodes", "tasks"), [("n[1-x]", "1(x2)"), ("n[1-2]", "2(x2)"), ("n[1-2]", "1"), ("n1", "")])
def test_lists_that_are_not_of_the_tasks_are_refused(nodes, tasks):
    step = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks}
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE"):
        find_cluster(step | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"})


@pytest.mark.parametrize(("rank", "number"), [(1, 0), (2, 1)])
def test_tasks_that_are_dealt_to_nodes_in_turn_are_refused(rank, number):
    step = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_TASKS": "4"}
    task = step | {"SLURM_PROCID": str(rank)}
    assert find_cluster(task | {"SLURM_LOCALID": str(rank % 2)}).rank == rank
    with pytest.raises(UserError, match="--distribution=block"):
        find_cluster(task | {"SLURM_LOCALID": str(number)})


def test_a_refusal_of_the_first_task_reaches_the_other(workplace):
    environment = slurm_commands(workplace, TWO_TASKS) | {"SLURM_JOB_ID": free_job_number()}
    command = ["bash", SCRIPT, "tiny", "0", "--init-from", "nowhere"]
    process = subprocess.run(command, cwd=workplace, env=environment, check=False, timeout=120)
    assert process.returncode == 2
    for rank in (0, 1):
        assert "nowhere" in (workplace / f"output{rank}").read_text()


def test_two_tasks_are_warned_requeued_and_end_as_one_process_would(workplace):
    write_config(workplace, Nepochs=2000, checkpt_batch=20, sync_batchnorm=True)
    environment = slurm_commands(workplace, TWO_TASKS) | {"SLURM_JOB_ID": free_job_number()}
    command = ["bash", SCRIPT, "tiny", "0"]
    job = subprocess.Popen(command, cwd=workplace, env=environment, stdout=subprocess.PIPE, text=True)
    run_folder = workplace / "expts" / "tiny" / "run0"
    while job.poll() is None and not (run_folder / "metrics.jsonl").exists():
        time.sleep(0.1)
    for task in (workplace / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    said = [(workplace / f"output{rank}").read_text() for rank in (0, 1)]
    assert job.returncode == 75, said
    assert "goes back into the queue" in output
    assert calls_in(workplace) == [f"scontrol requeue {environment['SLURM_JOB_ID']}"]
    assert "stopped by SIGUSR1" in said[0]
    assert "stopped by SIGUSR1" in said[1]

    stopped = max(saved_steps(run_folder / "checkpoints"))
    epochs = math.ceil(stopped / 5) + 2
    (workplace / "tasks").unlink()
    requeued = subprocess.run([*command, "--set", f"Nepochs={epochs}"], cwd=workplace, env=environment, check=False)
    assert requeued.returncode == 0, (workplace / "output0").read_text()
    alone = run_script("train.py", "tiny", 1, "--set", f"Nepochs={epochs}", cwd=workplace)
    assert alone.returncode == 0, alone.stderr
    assert_equal_to_rounding(*(state_of(workplace, run, 5 * epochs) for run in (0, 1)))
    steps = [[line["step"] for line in metrics(run_folder.with_name(f"run{run}"))] for run in (0, 1)]
    assert steps[0] == steps[1]
