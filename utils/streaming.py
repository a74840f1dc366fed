"""Training batches, read from disk while the device computes; which slices they hold follows from (seed, step)."""

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from utils.crops import PeriodicCrops
from utils.randomness import Purpose
from utils.slices import SliceSet

# Batches read ahead: enough to hide a slow read, few enough to cost no memory.
_READ_AHEAD = 4


def rows_of_step(step: int, number: int, batchsize: int, seed: int) -> np.ndarray:
    """The row numbers of one step's batch: a pure function of its arguments.

    Every epoch is a new permutation of all rows, evaluated only where it is needed.

    Parameters
    ----------
    step : int
        Steps done before this one.
    number : int
        Slices in the training set, at least `batchsize`.
    batchsize : int
    seed : int
        The run's seed.

    Returns
    -------
    ndarray, (batchsize,), int64
    """
    epoch, batch = divmod(step, number // batchsize)
    with tf.device("CPU"):
        places = tf.range(batch * batchsize, (batch + 1) * batchsize, dtype=tf.int64)
        last = tf.constant(number - 1, tf.int64)
        return tf.random.experimental.index_shuffle(places, tf.constant((seed, epoch), tf.int64), last).numpy()


def shifts_of_step(step: int, dim: int, batchsize: int, seed: int) -> np.ndarray:
    """By how many pixels each image of one step's batch is moved down and right: a pure function of its arguments.

    Returns
    -------
    ndarray, (batchsize, 2), int32
        From 0 to dim - 1.
    """
    with tf.device("CPU"):
        own_seed = tf.random.experimental.stateless_fold_in(tf.constant((seed, Purpose.CROPS), tf.int64), step)
        return tf.random.stateless_uniform((batchsize, 2), own_seed, 0, dim, tf.int32).numpy()


class BatchStream:
    """The batches of steps `first_step` up to `total_steps`, in order, read ahead by a thread.

    Parameters
    ----------
    slices : SliceSet
    batchsize, seed : int
    first_step, total_steps : int
        Where to begin, and where to end.
    rank, workers : int
        Of how many workers this is which one: it reads its share of every batch.
    random_crops : bool
        Move each image by a random shift in its plane (`utils.crops.PeriodicCrops`).

    Attributes
    ----------
    waited : float
        Seconds the consumer has waited for data so far.
    """

    def __init__(
        self,
        slices: SliceSet,
        batchsize: int,
        seed: int,
        first_step: int,
        total_steps: int,
        rank: int = 0,
        workers: int = 1,
        random_crops: bool = False,
    ):
        self.waited = 0.0
        own = slice(rank * batchsize // workers, (rank + 1) * batchsize // workers)
        crops = PeriodicCrops(slices) if random_crops else None

        def read(step: int) -> np.ndarray:
            rows = rows_of_step(step, len(slices), batchsize, seed)[own]
            if crops is None:
                return slices.read(rows)
            return crops.read(rows, shifts_of_step(step, slices.dim, batchsize, seed)[own])

        self._images = map(read, range(first_step, total_steps))
        self._batches = queue.Queue(_READ_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="slice reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield batches (batchsize / workers, N, N) in the stored dtype; an error while reading is raised here."""
        while True:
            start = time.perf_counter()
            batch = self._batches.get()
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def close(self) -> None:
        """Stop reading. The slices stay open."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for images in self._images:
                if not self._hand_over(images):
                    return
            self._hand_over(None)
        except Exception as error:  # raised again in the consumer's thread, by __iter__
            self._hand_over(error)

    def _hand_over(self, item) -> bool:
        """Put an item in the queue unless the stream is closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._batches.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
