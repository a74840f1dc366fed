"""Where the time of a training step goes, by TensorFlow's profiler."""

from collections import Counter
from pathlib import Path

import tensorflow as tf

from utils.logs import log

# The first steps compile and fill caches; after these, so many are looked at.
STEPS_BEFORE, STEPS = 10, 20
_ROWS = 12


class StepProfile:
    """Profiles some steps soon after the beginning; a context manager, told of every step by `after_step`.

    Parameters
    ----------
    folder : path
        Where the trace goes, for TensorBoard with tensorboard-plugin-profile.
    first_step : int
        Steps done before training began.
    """

    def __init__(self, folder: str | Path, first_step: int):
        self._folder = Path(folder)
        self._begin, self._end = first_step + STEPS_BEFORE, first_step + STEPS_BEFORE + STEPS
        self._running = self._done = False

    def after_step(self, step: int, losses: dict[str, tf.Tensor]) -> None:
        """Begin or end the trace where it is due; at its end the table goes to the log."""
        if step not in (self._begin, self._end):
            return
        # Wait for the device: what it still has to do belongs to the steps before.
        next(iter(losses.values())).numpy()
        if step == self._begin:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True
            return
        self._running, self._done = False, True
        tf.profiler.experimental.stop()
        for line in time_table(self._folder):
            log.info("%s", line)
        log.info("trace for TensorBoard with tensorboard-plugin-profile: %s", self._folder)

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_) -> None:
        """Say so if training has ended, however it did, before there was a profile."""
        if self._running:
            tf.profiler.experimental.stop()
        if not self._done:
            log.warning("--profile needs %d steps, training has ended before: no profile", STEPS_BEFORE + STEPS)


def time_table(folder: Path) -> list[str]:
    """What the newest trace in a folder says: time per step by kind of operation, as lines of text."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    space = xplane_pb2.XSpace.FromString(newest.read_bytes())
    time, calls = Counter(), Counter()
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        on_gpu = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            for event in line.events:
                path, _, kind = names[event.metadata_id].rpartition(":")
                # On the processor operations are named path:Kind; the rest, such as EagerExecute,
                # ExecutorState::Process or EagerLocalExecute: function, is what contains them.
                if on_gpu or (path and not path.endswith(":") and kind.isidentifier()):
                    time[kind] += event.duration_ps / 1e9 / STEPS
                    calls[kind] += 1
    if not time:
        return ["the profile has no operations: the profiler of this machine does not see them"]
    lines = [f"where a step goes, mean of {STEPS} steps; operations at the same time are counted side by side"]
    lines.append(f"{'operation':40}{'calls':>8}{'ms':>10}{'share':>8}")
    for kind, milliseconds in time.most_common(_ROWS):
        share = milliseconds / time.total()
        lines.append(f"{kind[:39]:40}{calls[kind] / STEPS:8.1f}{milliseconds:10.3f}{share:8.1%}")
    rest = time.total() - sum(milliseconds for _, milliseconds in time.most_common(_ROWS))
    lines.append(f"{'all others':48}{rest:10.3f}{rest / time.total():8.1%}")
    return lines
