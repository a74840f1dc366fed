"""Starting TensorFlow: quietly, with GPU memory that grows on demand, and with reproducible arithmetic."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from utils.logs import log


def start_tensorflow() -> dict:
    """Import TensorFlow and open its devices; the notes that it writes meanwhile go to the log, not to the terminal.

    Returns
    -------
    dict
        What there is to compute on: `kind` (CPU or GPU), `devices` (their names), `tf32`, `xla` and `threads`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_to_log():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            # Otherwise TensorFlow takes all memory at once, and nobody else can use the device.
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            # CPUs are reproducible by themselves; some GPU kernels have to be told.
            tf.config.experimental.enable_op_determinism()
        tf.config.list_logical_devices()
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return {
        "kind": "GPU" if gpus else "CPU",
        "devices": details or ["CPU"],
        # Rounding depends on how many threads share a sum.
        "tf32": bool(gpus) and tf.config.experimental.tensor_float_32_execution_enabled(),
        "xla": tf.config.optimizer.get_jit() or "off",
        "threads": tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0)),
    }


@contextlib.contextmanager
def _stderr_to_log() -> Iterator[None]:
    """Send what C++ code writes to the standard error into the log.

    TensorFlow's libraries write notes while they are loaded, before any setting of theirs can silence them. If
    loading fails, the notes belong to the error and are shown.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        notes.seek(0)
        for line in notes.read().decode(errors="replace").splitlines():
            log.debug("TensorFlow: %s", line)
