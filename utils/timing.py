"""Where a run's time goes."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator


class Stopwatch:
    """Seconds spent in each of several activities, and how often, beside the total since it was made."""

    def __init__(self):
        self._start = time.perf_counter()
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @contextlib.contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Count the time in the block towards an activity."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start
            self.counts[activity] += 1

    @property
    def total(self) -> float:
        """Seconds since this stopwatch was made."""
        return time.perf_counter() - self._start

    def shares(self) -> dict[str, float]:
        """Each activity's share of the total time."""
        return {activity: seconds / self.total for activity, seconds in self.seconds.items()}


def pace(watch: Stopwatch, steps: int, batchsize: int) -> dict[str, float]:
    """Speed of a run in this process so far; all of it depends on the clock.

    Parameters
    ----------
    watch : Stopwatch
        Made when training began; `compiling` are the steps that were compiled first.
    steps : int
        Done since then, those that were compiled included; at least 1.
    batchsize : int
        Images in a step.

    Returns
    -------
    dict of str to float
        `seconds` in all; `seconds_per_step` and `images_per_second` without, `all_seconds_per_step` with what is done
        beside the steps; and the share of each of those activities. Once there are steps that were not compiled, all
        but the first are of these and the time without compiling; until then compiling counts as part of the steps, and
        there is no `all_seconds_per_step`, for it would tell nothing of the steps to come.
    """
    seconds, compiled = dict(watch.seconds), watch.counts["compiling"]
    spent = watch.total
    compiling = seconds.pop("compiling", 0.0)
    settled = steps > compiled
    if settled:
        spent -= compiling
        steps -= compiled
    in_steps = spent - sum(seconds.values())
    return {
        "seconds": watch.total,
        "seconds_per_step": in_steps / steps,
        "images_per_second": batchsize * steps / in_steps,
        **({"all_seconds_per_step": spent / steps} if settled else {}),
        **{f"{activity}_share": value / spent for activity, value in seconds.items()},
    }
