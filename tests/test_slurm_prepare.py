"""The Slurm script that makes data, run by bash with Slurm's variables set by hand and a stand-in for srun."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, run_script
from tests.universe_files import joined_bytes, load

SCRIPT = ROOT / "slurm" / "prepare.slurm"
SLICING = ("--img-dim", "8", "--stride", "4", "--axes", "012")
SIMULATION = ("--grid", "16", "--box", "32", "--steps", "4")


def submit(folder, *arguments, does="exit 0", **variables):
    """Run the script with a stand-in for srun that notes how it was called; gives status, calls and errors."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    stand_in = commands / "srun"
    stand_in.write_text(f'#!/bin/bash\necho "srun $*" >> {folder}/calls\n{does}\n')
    stand_in.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = clean | {"PATH": f"{commands}:{os.environ['PATH']}"} | variables
    process = subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    calls = folder / "calls"
    said = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return process.returncode, said, process.stderr


def task(number, tasks, **more):
    """Slurm's variables in one task of an array."""
    count = {"SLURM_ARRAY_TASK_COUNT": str(tasks), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": str(tasks - 1)}
    return {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_CPUS_PER_TASK": "4"} | count | more


def test_tasks_divide_the_universes(tmp_path):
    seeds = []
    for number in range(4):
        status, calls, _ = submit(tmp_path, "simulate", "10", "--grid", "64", FIRST_SEED="100", **task(number, 4))
        assert status == 0
        before, count, seed = calls[0].replace(" --seed", "").rsplit(" ", 2)[0:3]
        assert before == "srun --cpus-per-task=4 python data/simulate_universes.py --grid 64 --num"
        seeds += range(int(seed), int(seed) + int(count))
    assert seeds == list(range(100, 110))
    assert submit(tmp_path, "simulate", "2", **task(0, 4))[:2] == (0, [])


@pytest.mark.parametrize("option", ["--seed", "--seed=5", "--num", "--num=3"])
def test_what_each_task_sets_itself_is_refused(tmp_path, option):
    status, calls, errors = submit(tmp_path, "simulate", "10", option, "5", **task(0, 4))
    assert (status, calls) == (2, [])
    assert "FIRST_SEED" in errors


def test_tasks_slice_their_parts_and_one_joins(tmp_path):
    call = "srun --cpus-per-task=4 python data/slice_universes.py universes --jobs 4 --stride 4"
    arguments = ("universes", "--stride", "4")
    assert submit(tmp_path, "slice", *arguments, **task(3, 16))[1] == [f"{call} --shard 3/16"]
    assert submit(tmp_path, "join", *arguments, SLURM_CPUS_PER_TASK="4")[1] == [call]


def test_some_tasks_again_must_say_how_many_there_were(tmp_path):
    again = task(7, 16, SLURM_ARRAY_TASK_COUNT="2", SLURM_ARRAY_TASK_MIN="3", SLURM_ARRAY_TASK_MAX="7")
    status, calls, errors = submit(tmp_path, "slice", "universes", **again)
    assert (status, calls) == (2, [])
    assert "TASKS" in errors
    assert submit(tmp_path, "slice", "universes", TASKS="16", **again)[1][0].endswith("--shard 7/16")


@pytest.mark.parametrize("arguments", [(), ("slice",), ("cut", "universes")])
def test_wrong_calls_say_how_to_call_it(tmp_path, arguments):
    status, calls, errors = submit(tmp_path, *arguments)
    assert status != 0
    assert calls == []
    assert "usage" in errors


def test_failure_of_the_command_is_that_of_the_job(tmp_path):
    assert submit(tmp_path, "join", "universes", does="exit 2")[0] == 2


def test_the_three_stages_give_what_two_commands_give(tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    does = f'shift 2\nexec {sys.executable} "$@"'
    for number in range(2):
        arguments = ("simulate", "5", *SIMULATION, "--out", "universes")
        assert submit(tmp_path, *arguments, does=does, **task(number, 2))[::2] == (0, "")
    for number in range(2):
        arguments = ("slice", "universes", *SLICING, "--out", "raw")
        assert submit(tmp_path, *arguments, does=does, **task(number, 2))[::2] == (0, "")
    assert submit(tmp_path, "join", "universes", *SLICING, "--out", "raw", does=does)[::2] == (0, "")

    other = tmp_path / "other"
    other.mkdir()
    arguments = ("--num", 5, *SIMULATION, "--out", "universes")
    assert run_script("data/simulate_universes.py", *arguments, cwd=other).returncode == 0
    process = run_script("data/slice_universes.py", "universes", *SLICING, "--out", "raw", cwd=other)
    assert process.returncode == 0
    assert joined_bytes(tmp_path) == joined_bytes(other)
    assert len(load(tmp_path / "raw_train.h5")["file"]) == 3
