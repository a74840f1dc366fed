"""Kill a training run at random moments, resume it, and compare it with one that was never interrupted.

python -m benchmarks.bench_recovery [--kills 20] [--seed 0]

Weights, metrics without their timing, and TensorBoard events are compared bit for bit. Every run is killed twice before
it may finish, so that resumed runs are killed too.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.conftest import OLD_KEYS, ROOT, run_script
from tests.killing import MOMENTS, kill
from tests.run_files import assert_same_run
from utils.cli import ArgumentParser, UserError, run

COMMAND = [sys.executable, "-u", str(ROOT / "train.py"), "tiny", "0", "--resume"]
KILLS_PER_RUN = 2


def prepare(folder: Path) -> None:
    """Universes, slices and the configuration of a tiny GAN."""
    simulate = run_script("data/simulate_universes.py", "--num", 6, "--grid", 16, "--out", "universes", cwd=folder)
    arguments = ("universes", "--img-dim", 8, "--stride", 4, "--val-fraction", 0.3, "--out", "data/raw")
    (folder / "data").mkdir()
    slicing = run_script("data/slice_universes.py", *arguments, cwd=folder)
    for process in (simulate, slicing):
        if process.returncode:
            raise UserError(process.stderr)
    settings = {"Nepochs": 20, "checkpt_batch": 8, "save_steps": 7}
    (folder / "config.yaml").write_text(yaml.safe_dump({"tiny": OLD_KEYS | settings}))


def copy_of(folder: Path, name: str) -> Path:
    """A folder to train in with the same data and configuration."""
    new = folder / name
    new.mkdir()
    (new / "data").symlink_to(folder / "data")
    (new / "config.yaml").symlink_to(folder / "config.yaml")
    return new


def start(folder: Path) -> tuple[subprocess.Popen, float]:
    """Start or resume training; gives the process and the seconds to its first step."""
    begun = time.perf_counter()
    process = subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if " | d_loss " in line:
            return process, time.perf_counter() - begun
    raise UserError(f"training in {folder} ended before its first step")


def main():
    """Kill, resume, compare, print."""
    parser = ArgumentParser(description="Kill training at random moments, resume it and compare.")
    parser.add_argument("--kills", type=int, default=20, help="kills to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    arguments = parser.parse_args()
    if arguments.kills < KILLS_PER_RUN or arguments.kills % KILLS_PER_RUN:
        parser.error(f"--kills {arguments.kills}: it must be a positive multiple of {KILLS_PER_RUN}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder)
        reference = copy_of(folder, "uninterrupted")
        process, _ = start(reference)
        process.communicate()
        killed, recovery, moments = 0, [], []
        for number in range(arguments.kills // KILLS_PER_RUN):
            place = copy_of(folder, f"killed{number}")
            run_folder = place / "expts" / "tiny" / "run0"
            for attempt in range(KILLS_PER_RUN):
                process, _ = start(place)
                seed = arguments.seed + KILLS_PER_RUN * number + attempt
                moments.append(MOMENTS[seed % len(MOMENTS)])
                kill(process, run_folder, moments[-1], seed)
                killed += process.returncode == -9
            process, seconds = start(place)
            recovery.append(seconds)
            process.communicate()
            assert_same_run(run_folder, reference / "expts" / "tiny" / "run0")
            print(f"  {killed} kills survived of {len(moments)} tried; last: {moments[-1]}", flush=True)
    print("  kills by moment: " + ", ".join(f"{moment} {moments.count(moment)}" for moment in MOMENTS))
    print(f"  seconds from command to first new step: median {statistics.median(recovery):.1f}")


if __name__ == "__main__":
    run(main)
