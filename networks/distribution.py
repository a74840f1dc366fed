"""What a training step needs to be spread over replicas: sharing out, averaging, agreeing.

Replicas are the devices of all workers together, in the order of the workers' ranks; each has an equal share of the
batch, in that order. Where there is only one, every function here hands its argument on.
"""

import numpy as np
import tensorflow as tf

MEAN = tf.distribute.ReduceOp.MEAN


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """How many of the replicas are this worker's own."""
    return 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)


def share_out(values: tf.Tensor, strategy: tf.distribute.Strategy):
    """Share a worker's part of the batch, (n, ...), out to its replicas."""
    number = local_replicas(strategy)
    if number == 1:
        return values
    parts = tf.split(values, number)
    return strategy.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group % number]
    )


def own_replica(value, strategy: tf.distribute.Strategy) -> tf.Tensor:
    """The value of this worker's first replica, of a result that is the same on all."""
    return strategy.experimental_local_results(value)[0]


def mean_over_replicas(tensors):
    """Average tensors, float32, in whatever structure, over the replicas; called on each of them.

    They travel as one vector: a message costs more than what is in it. Gradients flow back through the average.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    flat = tf.nest.flatten(tensors)
    vector = tf.concat([tf.reshape(tensor, [-1]) for tensor in flat], axis=0)
    parts = tf.split(context.all_reduce(MEAN, vector), [int(np.prod(tensor.shape)) for tensor in flat])
    shaped = [tf.reshape(part, tensor.shape) for part, tensor in zip(parts, flat, strict=True)]
    return tf.nest.pack_sequence_as(tensors, shaped)


def any_worker(flag: bool, strategy: tf.distribute.Strategy) -> bool:
    """Whether the flag is set on any worker; all of them have to ask."""
    if strategy.num_replicas_in_sync == 1:
        return flag
    return bool(own_replica(_mean_of_workers(tf.constant(float(flag)), strategy), strategy) > 0)


def send_from_first(arrays: list[np.ndarray], strategy: tf.distribute.Strategy) -> list[np.ndarray]:
    """The arrays, float32, of the first worker, on all of them, bit for bit; all have to call it with equal shapes."""
    # The only number that leaves every other as it is, signed zeros included, when it is added.
    nothing = np.float32(-0.0)

    def send():
        context = tf.distribute.get_replica_context()
        first = tf.equal(context.replica_id_in_sync_group, 0)
        return [
            context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, array, tf.fill(array.shape, nothing)))
            for array in arrays
        ]

    sent = tf.function(lambda: strategy.run(send), autograph=False)()
    return [own_replica(value, strategy).numpy() for value in sent]


@tf.function(reduce_retracing=True, autograph=False)
def _mean_of_workers(value, strategy):
    return strategy.run(lambda own: tf.distribute.get_replica_context().all_reduce(MEAN, tf.identity(own)), (value,))
