"""Training on more slices than fit in memory: rate of random reads, time to the first step, memory, waiting for data.

python -m benchmarks.bench_streaming [--slices 200000] [--steps 20] [--folder FOLDER]

Universes of 128³ voxels with shuffled content are sliced into shards and joined (two processes, at most); the same
slices are then copied into one plain file. Both are read and trained on, beside a tiny data set that shows what the
framework takes by itself. Cold means that the kernel was told to forget every data file (posix_fadvise DONTNEED after
fsync) immediately before; what a host keeps for a virtual machine is out of reach. The machine's own rate is that of
bare positional reads of one slice each, at the same places. Needs twice 33 kB per slice on the disk.
"""

import argparse
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from tests.conftest import ROOT
from utils.cli import ArgumentParser, UserError, run
from utils.slices import SliceSet, open_slices

GRID = 128
BATCH = 64
READS = 200  # batches per rate
HELD_BACK = 0.01
ALLOWANCE = 1.5  # memory that more data may take beside the framework [GiB]
COMMON = {"datafmt": "channels_last", "print_batch": 1, "checkpt_samples": 64, "save_steps": 10**6}
TRAININGS = {
    "base": COMMON,
    # Steps as short as on a GPU leave as little time to read.
    "small network": COMMON | {"nconvfilters": "[4,4,4,4]", "ndeconvfilters": "[4,4,4,1]", "nlayers": 4},
}


def make_universes(folder: Path, number: int) -> None:
    """Universes in which every plane is one of a few, in random order."""
    rng = np.random.default_rng(0)
    planes = rng.poisson(1.0, (GRID, GRID, GRID, 1)).astype(np.int16)
    folder.mkdir()
    for index in tqdm(range(number), desc="making universes", disable=None):
        with h5py.File(folder / f"{index:04d}.hdf5", "w") as file:
            file["full"] = planes[rng.permutation(GRID)]
            file["redshifts"] = [0.0]


def slice_all(folder: Path, universes: str, out: str) -> tuple[float, float]:
    """Run the command; files/s, and the peak memory of the largest of its processes [GiB]."""
    number = len(list((folder / universes).iterdir()))
    command = [sys.executable, ROOT / "data/slice_universes.py", universes, "--out", f"data/{out}", "--stride", "1"]
    command += ["--axes", "012", "--jobs", "2", "--test-fraction", "0", "--val-fraction", str(HELD_BACK)]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return number / (time.perf_counter() - start), memory


def copy_plain(data: Path, joined: str, plain: str) -> None:
    """Copy joined files into files that stand alone."""
    for split in ("train", "val"):
        with h5py.File(data / f"{joined}_{split}.h5") as old, h5py.File(data / f"{plain}_{split}.h5", "w") as new:
            new.attrs.update(old.attrs)
            new["universe"] = old["universe"][...]
            slices = new.create_dataset("slices", old["slices"].shape, old["slices"].dtype)
            for row in tqdm(range(0, len(slices), 1024), desc=f"copying {split}", disable=None):
                slices[row : row + 1024] = old["slices"][row : row + 1024]


def forget(data: Path) -> None:
    """Empty the page cache of all data files."""
    for path in data.rglob("*.h5"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(slices: SliceSet, batches: np.ndarray) -> float:
    """Bytes per second of reading batches of slices."""
    start = time.perf_counter()
    for rows in batches:
        slices.read(rows)
    return batches.size * slices.dim**2 * slices.dtype.itemsize / (time.perf_counter() - start)


def raw_rate(path: Path, batches: np.ndarray, size: int) -> float:
    """Bytes per second of bare reads at the same places of a file."""
    place, descriptor = bytearray(size), os.open(path, os.O_RDONLY)
    try:
        start = time.perf_counter()
        for row in batches.ravel().tolist():
            os.preadv(descriptor, [place], row * size)
        return batches.size * size / (time.perf_counter() - start)
    finally:
        os.close(descriptor)


def sequential_rate(path: Path) -> float:
    """Bytes per second of reading the first gigabyte of a file in order."""
    place, total, start = bytearray(2**23), 0, time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while total < 2**30 and (count := file.readinto(place)):
            total += count
    return total / (time.perf_counter() - start)


def show_rates(data: Path) -> None:
    """Print rates of random reads, cold (every slice for the first time) and warm (the same ones again)."""
    start = time.perf_counter()
    with open_slices("joined", "train", GRID, data) as joined, open_slices("plain", "train", GRID, data) as plain:
        print(f"  opening both                    {time.perf_counter() - start:9.2f} s")
        number, size = min(READS, len(joined) // BATCH), joined.dim**2 * joined.dtype.itemsize
        batches = np.random.default_rng(1).permutation(len(joined))[: number * BATCH].reshape(number, BATCH)
        readers = {
            "plain": lambda: read_rate(plain, batches),
            "joined": lambda: read_rate(joined, batches),
            "bare reads": lambda: raw_rate(plain.path, batches, size),
        }
        for state in ("cold", "warm"):
            rates = {}
            for name, rate in readers.items():
                if state == "cold":
                    forget(data)
                else:
                    rate()
                rates[name] = rate() / 1e6
            print(
                f"  random slices, {state}, MB/s         " + ", ".join(f"{n} {rate:.0f}" for n, rate in rates.items())
            )
        forget(data)
        print(f"  bare reads in order, cold, MB/s {sequential_rate(plain.path) / 1e6:9.0f}")


def limit_memory(limit: float) -> None:
    """Let this process have so much private memory [GiB] and no more."""
    if limit < math.inf:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)


def private_memory(process: int) -> float:
    """What the kernel counts towards that limit [GiB]."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmData")), 0) / 2**20


def train(folder: Path, run_number: int, name: str, settings: dict, steps: int, limit: float) -> dict[str, float]:
    """Train some steps on cold data, with a limit to private memory [GiB].

    Seconds until training begins and until its first step is done, peak resident and private memory [GiB], share
    of waiting, seconds per step.
    """
    forget(folder / "data")
    command = [sys.executable, "-u", ROOT / "train.py", "base", str(run_number), "--config", ROOT / "config.yaml"]
    for key, value in (settings | {"dataname": name, "checkpt_batch": steps, "Nepochs": 10**4}).items():
        command += ["--set", f"{key}={value}"]
    start, first = time.perf_counter(), None
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=folder, preexec_fn=lambda: limit_memory(limit), **pipes)
    said, private = [], 0.0
    for line in process.stdout:
        said.append(line)
        private = max(private, private_memory(process.pid))
        if " training: " in line:
            begun = time.perf_counter() - start
        if first is None and " | d_loss " in line:
            first = time.perf_counter() - start
        if f"checkpoint at step {steps}:" in line:
            process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen cannot know: wait4 has taken it
    if process.returncode != 75:
        raise UserError(f"training ended with exit code {process.returncode}: {''.join(said[-5:])}")
    metrics = (folder / f"expts/base/run{run_number}/metrics.jsonl").read_text().splitlines()
    timing = json.loads(metrics[-1])["timing"]
    return {
        "begun": begun,
        "first": first,
        "memory": usage.ru_maxrss / 2**20,
        "private": private,
        "waiting": timing["wait_share"],
        "step": timing["seconds_per_step"],
    }


def main():
    """Make the data, measure, print."""
    parser = ArgumentParser(description="Measure training on more slices than fit in memory.")
    parser.add_argument("--slices", type=int, default=200_000, help="training slices, at least")
    parser.add_argument("--steps", type=int, default=20, help="training steps of each kind")
    parser.add_argument(
        "--folder", type=Path, default=argparse.SUPPRESS, help="where to put the data; default: temporary files"
    )
    arguments = parser.parse_args()
    number = int(arguments.slices / (3 * GRID) / (1 - HELD_BACK)) + 2
    with tempfile.TemporaryDirectory(dir=getattr(arguments, "folder", None)) as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        make_universes(folder / "universes", number)
        make_universes(folder / "few", 4)
        rate, memory = slice_all(folder, "universes", "joined")
        print(
            f"  slicing with --jobs 2           {rate:9.1f} files/s, {rate * GRID**3 * 2 / 1e6:.0f} MB/s read, "
            f"{3 * rate * GRID**3 * 2 / 1e6:.0f} MB/s written"
        )
        print(f"  its peak memory                 {memory:9.2f} GiB")
        again, _ = slice_all(folder, "universes", "joined")
        print(f"  joining {number} shards again     {number / again:9.2f} s")
        slice_all(folder, "few", "tiny")
        copy_plain(folder / "data", "joined", "plain")
        show_rates(folder / "data")
        run_number = itertools.count()
        for kind, settings in TRAININGS.items():
            print(f"  training, {kind}, {arguments.steps} steps of {BATCH}, data cold:")
            limit = math.inf
            for name in ("tiny", "plain", "joined"):
                with open_slices(name, "train", GRID, folder / "data") as slices:
                    number = len(slices)
                seen = train(folder, next(run_number), name, settings, arguments.steps, limit)
                print(
                    f"    {number:7,} slices, {name:6s}  trains after {seen['begun']:4.1f} s, first step done after "
                    f"{seen['first']:4.1f} s, peak memory {seen['memory']:5.2f} GiB, waiting for data "
                    f"{seen['waiting']:6.2%}, {seen['step']:.3f} s/step",
                    flush=True,
                )
                if name == "tiny":
                    limit = seen["private"] + ALLOWANCE
                    print(
                        f"    from here on a limit of {limit:.2f} GiB of private memory: {ALLOWANCE} more than that had"
                    )


if __name__ == "__main__":
    run(main)
