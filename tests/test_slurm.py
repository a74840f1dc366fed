"""The Slurm script, run by bash with stand-ins for Slurm's commands that write down how they were called."""

import os
import subprocess

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "slurm" / "train.slurm"


def submit(folder, srun_status, *arguments):
    commands = folder / "commands"
    commands.mkdir()
    for name, status in (("srun", srun_status), ("scontrol", 0)):
        stand_in = commands / name
        stand_in.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\nexit {status}\n')
        stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    process = subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    calls = folder / "calls"
    return process.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_a_stopped_run_requeues_itself(tmp_path):
    status, calls = submit(tmp_path, 75, "base", "0", "--set", "seed=1")
    assert status == 75
    assert calls == ["srun --cpus-per-task=1 python train.py base 0 --resume --set seed=1", "scontrol requeue 4711"]


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
