"""Noticing on the device, step by step, that training has diverged."""

import tensorflow as tf


class DivergenceWatch:
    """Remembers the first step in which something was not finite, and what; made in the scope of the strategy."""

    def __init__(self):
        self._step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self._place = tf.Variable(0, dtype=tf.int64, trainable=False)

    def note(self, step: tf.Tensor, tensors: list[tf.Tensor]) -> None:
        """Look at the tensors of a step, counted from 0; always as many, in the same order.

        A sum is one operation per tensor, and is finite if and only if all terms are (numbers that add up to an
        overflow have long diverged).
        """
        good = tf.math.is_finite(tf.stack([tf.reduce_sum(tensor) for tensor in tensors]))
        first = tf.logical_and(self._step < 0, tf.logical_not(tf.reduce_all(good)))
        self._step.assign(tf.where(first, step, self._step))
        self._place.assign(tf.where(first, tf.argmin(tf.cast(good, tf.int32)), self._place))

    def first(self) -> tuple[int, int] | None:
        """The first bad step, counted from 0, and the place of the first bad tensor in its list; None if none was."""
        step = int(self._step.numpy())
        return None if step < 0 else (step, int(self._place.numpy()))
