"""The optimisers of both networks."""

import keras
import tensorflow as tf

from utils.config import Config


class Adam(keras.optimizers.Adam):
    """Keras' Adam (Kingma & Ba 2015, arXiv:1412.6980), each weight updated by one fused operation instead of a dozen,
    all of which would read and write as much memory as the one."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        beta_1, beta_2 = (tf.constant(beta, variable.dtype) for beta in (self.beta_1, self.beta_2))
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=learning_rate,
            beta1=beta_1,
            beta2=beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def build_optimizer(learning_rate: float, config: Config, weights: list[keras.Variable]) -> keras.optimizers.Optimizer:
    """Adam for trainable weights, with loss scaling where gradients are computed in float16.

    Parameters
    ----------
    learning_rate : float
    config : Config
    weights : list of keras.Variable

    Returns
    -------
    keras.optimizers.Optimizer
        Built already: an unbuilt optimiser would silently skip its restored state. Losses go through its `scale_loss`.
    """
    beta_1, beta_2 = config.adam_betas
    optimizer = Adam(learning_rate, beta_1=beta_1, beta_2=beta_2)
    if config.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(weights)
    return optimizer


def first_moments(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Adam's running means of the gradients, in the order of the weights that it was built for."""
    return [variable for variable in optimizer.variables if variable.name.endswith("_momentum")]


def share_overflow(gradients: list[tf.Tensor], optimizer: keras.optimizers.Optimizer) -> list[tf.Tensor]:
    """Gradients of one replica, all NaN if those of another one overflow, so that all replicas skip the same updates.

    Keras looks at the first replica's alone. Gradients that are not scaled are handed on.
    """
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return gradients
    own = tf.cast(tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]), tf.float32)
    share = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, own)
    return [tf.where(share == 1.0, gradient, float("nan")) for gradient in gradients]
