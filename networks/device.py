"""Starting TensorFlow: quietly, with GPU memory that grows on demand, with reproducible arithmetic, on one device,
on several of this machine, or on those of many."""

import contextlib
import functools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import CleanExit, UserError
from utils.cluster import Cluster
from utils.logs import log

if TYPE_CHECKING:
    import tensorflow as tf

STRATEGIES = ("auto", "single", "mirrored", "multiworker")
# Once all workers are there, TensorFlow connects them within seconds [s].
_JOINING = 120
# Pixels in a batch, up to which operations are so short that two threads on one of them mostly wait for each other.
_SMALL_BATCH = 2**15


@dataclass(frozen=True)
class Machine:
    """What there is to compute on."""

    strategy: "tf.distribute.Strategy"
    """How TensorFlow spreads a step over it."""
    xla: bool
    """Whether a step is to be compiled by XLA."""
    description: dict
    """`kind` (CPU or GPU), `devices` (names of this process's), `strategy`, `workers` and `replicas` (in all), `tf32`,
    `xla` and `threads`."""


def start_tensorflow(
    choice: str = "single",
    devices: int | None = None,
    cluster: Cluster | None = None,
    meet: Callable[[list[str]], None] = lambda devices: None,
    xla: bool | None = None,
    xla_before: bool | None = None,
    batch_pixels: int | None = None,
) -> Machine:
    """Import TensorFlow and open its devices; the notes that it writes meanwhile go to the log, not to the terminal.

    Parameters
    ----------
    choice : str
        One of `STRATEGIES`. ``auto``: several workers where there is a cluster, else all GPUs where there is more than
        one, else a single device.
    devices : int, optional
        How many devices this process uses: of its GPUs (default: all) or, where it has none, logical devices that its
        processor is shared out to (default: 1). ``single`` uses the first.
    cluster : Cluster, optional
        The workers that train together, without which there is no ``multiworker``.
    meet : callable
        Given the names of this worker's devices, returns when all workers are there. TensorFlow then connects them.
    xla : bool, optional
        Whether training steps are to be compiled by XLA; by default as before.
    xla_before : bool, optional
        Whether they were when the run was last started, which on several devices does not matter: they do without. A
        new run has them compiled on a single GPU.
    batch_pixels : int, optional
        Pixels in a batch of what is to be trained. Two CPU cores compute small batches with one thread an operation and
        two operations at a time, unless TensorFlow's own variable says otherwise.

    Raises
    ------
    UserError
        If there are fewer GPUs than asked for, if workers without GPUs are to use several devices each, if the workers
        cannot reach each other, or if XLA is asked for on more than one device.
    """
    # Of several workers, the loss of one makes TensorFlow write several lines beside the exception that says the same.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if cluster else "2")
    use_onednn()
    with _stderr_to_log():
        import tensorflow as tf

        names = _choose_devices(tf, 1 if choice == "single" else devices)
        _choose_threads(tf, batch_pixels)
        if choice in ("auto", "multiworker") and cluster:
            if names[1:] and not tf.config.get_visible_devices("GPU"):
                # TensorFlow would use the first of them, and say nothing.
                raise UserError(f"--devices {devices}: without GPUs each of several workers computes on one device")
            kind, strategy = "multiworker", _join(tf, cluster, lambda: meet(names))
        elif choice == "mirrored" or (choice == "auto" and len(names) > 1):
            kind, strategy = "mirrored", tf.distribute.MirroredStrategy(names)
        else:
            kind, strategy = "single", tf.distribute.get_strategy()
        tf.config.list_logical_devices()
    workers, replicas = cluster.size if kind == "multiworker" else 1, strategy.num_replicas_in_sync
    if xla and replicas > 1:
        raise UserError(f"XLA compiles the step of one device only, and there are {replicas}; --no-xla does without it")
    if xla is None:
        # A CPU starts operations fast enough, and XLA's convolutions are slow there.
        on_one = bool(tf.config.get_visible_devices("GPU")) if xla_before is None else xla_before
        xla = replicas == 1 and on_one
    return Machine(strategy, xla, _describe(tf, kind, workers, replicas, xla))


def use_onednn() -> None:
    """Have TensorFlow compute with oneDNN on any processor, unless its own variable says otherwise; before its import.

    By itself it does so only where there are instructions for neural networks, such as AVX-512 VNNI; with AVX2 alone
    matrix products are twice as fast with it too.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@functools.cache
def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do, such as ``avx2``; nothing where there is no Linux to say it."""
    information = Path("/proc/cpuinfo")
    return frozenset(information.read_text().split() if information.exists() else ())


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is what NumPy or TensorFlow raise where memory, of the processor or a GPU, does not suffice."""
    # Before TensorFlow is there, the error is none of its own; importing it now would put its notes on the terminal.
    tf = sys.modules.get("tensorflow")
    return isinstance(error, MemoryError) or (tf is not None and isinstance(error, tf.errors.ResourceExhaustedError))


def avoid_failing_fusion(discriminator_norm: str) -> None:
    """Switch TensorFlow's fusion of operations off where it would fail: with a discriminator without batch norm.

    TensorFlow 2.21 then tries to fuse convolution, bias and LeakyReLU although the gradient needs what lies between; it
    gives up all its fusions, which costs nothing that could be measured, and puts a line about it on the terminal.
    """
    if discriminator_norm == "none":
        import tensorflow as tf

        tf.config.optimizer.set_experimental_options({"remapping": False})


def log_missing_bfloat16() -> None:
    """Send to the log the line that oneDNN writes once where there is no bfloat16; else training would show it."""
    import tensorflow as tf

    with _stderr_to_log(), tf.device("CPU:0"):
        factor = tf.ones((8, 8), tf.bfloat16)
        tf.function(tf.matmul, autograph=False)(factor, factor)


def _choose_devices(tf, devices: int | None) -> list[str]:
    """Prepare this process's devices, before TensorFlow opens them; gives their names."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        number = devices or 1
        if number > 1:
            share = tf.config.LogicalDeviceConfiguration()
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [share] * number)
        return [f"CPU:{index}" for index in range(number)]
    if devices and devices > len(gpus):
        raise UserError(f"--devices {devices}: there are {len(gpus)} GPUs")
    gpus = gpus[:devices]
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        # Otherwise TensorFlow takes all memory at once, and nobody else can use the device.
        tf.config.experimental.set_memory_growth(gpu, True)
    # CPUs are reproducible by themselves; some GPU kernels have to be told.
    tf.config.experimental.enable_op_determinism()
    return [f"GPU:{index}" for index in range(len(gpus))]


def _choose_threads(tf, batch_pixels: int | None) -> None:
    """Choose how many threads share an operation of the CPU, before TensorFlow opens it."""
    small = batch_pixels is not None and batch_pixels <= _SMALL_BATCH
    two_cores = len(os.sched_getaffinity(0)) == 2 and not tf.config.get_visible_devices("GPU")
    if small and two_cores and "TF_NUM_INTRAOP_THREADS" not in os.environ:
        tf.config.threading.set_intra_op_parallelism_threads(1)


def _join(tf, cluster: Cluster, meet: Callable[[], None]) -> "tf.distribute.Strategy":
    """Connect this worker with the others."""
    # TensorFlow's own reader of Slurm's variables sorts nodes by their names as text: n10 before n9.
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        num_accelerators={"GPU": len(tf.config.get_visible_devices("GPU"))},
        rpc_layer="grpc",
    )
    meet()
    # Should a worker die in this moment, TensorFlow would wait for it without end, and lets no Python run: not even a
    # signal handler. The kernel ends the process then.
    signal.alarm(_JOINING)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.OpError as error:
        raise UserError(f"{cluster.name(cluster.rank)} cannot join the others: {str(error).splitlines()[0]}") from None
    finally:
        signal.alarm(0)


def _describe(tf, strategy: str, workers: int, replicas: int, xla: bool) -> dict:
    gpus = tf.config.get_visible_devices("GPU")
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    chosen = int(threads if threads.isdigit() else 0) or tf.config.threading.get_intra_op_parallelism_threads()
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return {
        "kind": "GPU" if gpus else "CPU",
        "devices": details or ["CPU"],
        "strategy": strategy,
        "workers": workers,
        "replicas": replicas,
        "tf32": bool(gpus) and tf.config.experimental.tensor_float_32_execution_enabled(),
        "xla": "step" if xla else tf.config.optimizer.get_jit() or "off",
        # Rounding depends on how many threads share a sum.
        "threads": chosen or len(os.sched_getaffinity(0)),
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
        except CleanExit:
            raise
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
