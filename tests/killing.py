"""Killing a training process at a chosen moment, for tests and for the benchmark."""

import random
import time
from pathlib import Path

MOMENTS = ("any time", "state being written", "weights being written", "events being written")


def kill(process, run: Path, moment: str, seed: int) -> None:
    """Send SIGKILL at a moment: after a random time, or as soon as a file of some kind is seen to be written.

    Of the times that the moment comes, a random one is chosen. Whether the process ended first, its return
    code tells.
    """
    chance = random.Random(seed)
    if moment == "any time":
        time.sleep(chance.uniform(0, 1.5))
    else:
        for _ in range(chance.randint(1, 4)):
            _wait_for(process, run, moment)
    process.kill()
    process.communicate()


def _wait_for(process, run: Path, moment: str) -> None:
    """Return when writing begins; look without pause, since it takes milliseconds."""
    pattern = {"state being written": "checkpoints/.partial*", "weights being written": "models/.partial*"}.get(moment)
    before = _event_bytes(run)
    while process.poll() is None:
        if pattern and any(run.glob(pattern)):
            while process.poll() is None and any(run.glob(pattern)) and random.random() < 0.5:
                pass  # not always at the very beginning
            return
        if not pattern and _event_bytes(run) > before:
            return


def _event_bytes(run: Path) -> int:
    return sum(path.stat().st_size for path in (run / "logs").glob("events*"))
