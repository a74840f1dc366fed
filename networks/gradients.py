"""Gradients, and a graph, that give a run twice the same, bit for bit: nothing depends on which thread is done first.

TensorFlow, even on a processor, leaves two things to its threads. What adds three terms or more begins with one whose
memory is free to be overwritten, and on which that is depends, to rounding, the sum; two terms have only one. And when
it thins out what has to wait for what, it trusts paths through operations that it then takes away: the bias of a last
convolution was at times updated before the R1 penalty had read it.
"""

import keras
import tensorflow as tf


def pairwise_gradients(total: tf.Tensor, variables: list) -> list[tf.Tensor]:
    """Derivatives of a scalar, added in pairs wherever several paths lead to a variable; they too have derivatives.

    Parameters
    ----------
    total : tensor, scalar
        Computed inside the same `tf.function`.
    variables : list of tensor or keras.Variable

    Returns
    -------
    list of tensor
        Of the variables' shapes.
    """
    values = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    return tf.gradients(total, values, aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE)


def keep_order() -> None:
    """Keep TensorFlow, in this process, from making one sum of several and from thinning out what waits for what."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False, "dependency_optimization": False})
