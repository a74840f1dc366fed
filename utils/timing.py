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
