"""Layers that Keras does not have in the form that the GAN needs."""

import math

import keras
import tensorflow as tf

from networks.convolutions import convolve, convolve_transposed

# tanh(e^3) is 1 in float32: a larger exponent cannot change the rescaled channel, but its gradient could overflow.
_MAX_LOG_RATIO = 3.0
# The density that becomes tanh(1) in the rescaled channel [particles per voxel].
RESCALE = 1000.0


class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, strided, channels_last and with padding `same`, by the fastest way that the machine has.

    Parameters
    ----------
    exact_inputs : bool
        Whether inputs and bias, in float32, keep twice the digits where the layer computes in a shorter type: each is
        taken as a sum of two numbers of that type, and all are added up before the result is rounded. bfloat16 alone
        cannot tell bright pixels from one another. Gradients are of the shorter type.
    **kwargs
        As in Keras; of the padding, dilation and activation that it offers, the above.
    """

    def __init__(self, *args, exact_inputs=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.exact_inputs = exact_inputs
        self.autocast = not exact_inputs

    def add_weight(self, *args, **kwargs):
        return super().add_weight(*args, autocast=self.autocast, **kwargs)

    def call(self, inputs):
        kernel, stride = tf.cast(self.kernel.value, self.compute_dtype), self.strides[0]
        if inputs.dtype != kernel.dtype:
            return self._convolve_exactly(inputs, kernel, stride)
        outputs = convolve(inputs, kernel, stride)
        return tf.nn.bias_add(outputs, tf.cast(self.bias.value, outputs.dtype)) if self.use_bias else outputs

    def _convolve_exactly(self, inputs, kernel, stride):
        channels, kernels = list(_split(inputs, kernel.dtype)), [kernel, kernel]
        if self.use_bias:
            # A bias is the kernel of a channel of ones, at a pixel that the padding never covers.
            channels += 2 * [tf.ones_like(inputs[..., :1], dtype=kernel.dtype)]
            before = max(self.kernel_size[0] - stride, 0) // 2
            at = [[before, self.kernel_size[0] - before - 1]] * 2 + [[0, 0]] * 2
            kernels += [tf.pad(part[None, None, None], at) for part in _split(self.bias.value, kernel.dtype)]
        return convolve(tf.concat(channels, -1), tf.concat(kernels, 2), stride)

    def get_config(self):
        return super().get_config() | {"exact_inputs": self.exact_inputs}


def _split(values, dtype):
    """Two numbers of a shorter type whose sum is (nearly) each value; only the first has a gradient, that of both."""
    rounded = tf.cast(values, dtype)
    return rounded, tf.stop_gradient(tf.cast(values - tf.cast(rounded, values.dtype), dtype))


class Conv2DTransposeSame(keras.layers.Layer):
    """Transposed convolution whose output has `strides` times the side of its input.

    The output shape is fixed when the graph is built; Keras' own layer leaves it open until the first call.

    Parameters
    ----------
    filters : int
        Channels of the output.
    kernel_size, strides : int
        Pixels, along both sides.
    use_bias : bool
        Whether to add a bias per channel.
    kernel_initializer
        As in Keras.

    Notes
    -----
    Images are channels_last. The kernel is (kernel_size, kernel_size, filters, input channels), as in Keras.
    """

    def __init__(self, filters, kernel_size, strides, use_bias, kernel_initializer, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, self.filters, input_shape[-1]),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        kernel = tf.convert_to_tensor(self.kernel.value)
        outputs = convolve_transposed(inputs, kernel, self.strides)
        return tf.nn.bias_add(outputs, self.bias) if self.use_bias else outputs

    def compute_output_shape(self, input_shape):
        batch, rows, columns, _ = input_shape
        return (batch, rows * self.strides, columns * self.strides, self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm over the last axis, as one fused operation where Keras makes a dozen of it.

    Its batch statistics can be those of all replicas, and it can be differentiated twice: Keras takes the mean inside
    the variance for a constant, so that the second derivative, which a gradient penalty needs, is wrong.

    Parameters
    ----------
    synchronized : bool
        Mean and variance of the whole batch, of which every replica has an equal share. (Keras' own way, E[x²] − E[x]²,
        loses digits where the mean is large.)
    **kwargs
        As in Keras.
    """

    def call(self, inputs, training=None, mask=None):
        scale, offset = self.gamma.value, self.beta.value
        if not training:
            return self._fused(inputs, scale, offset, self.moving_mean.value, self.moving_variance.value)[0]
        context = tf.distribute.get_replica_context()
        if self.synchronized and context and context.num_replicas_in_sync > 1:
            outputs, mean, variance = self._over_replicas(inputs, scale, offset, context)
        else:
            outputs, mean, variance = self._fused(inputs, scale, offset)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1.0 - self.momentum) * value)
        return outputs

    def _fused(self, inputs, scale, offset, mean=None, variance=None):
        """Normalise by a given mean and variance, or by those of the batch; gives them too."""
        flat = inputs.shape.rank == 2
        # (n, features) -> (n, 1, 1, features): each feature is a channel.
        images = tf.reshape(inputs, (-1, 1, 1, inputs.shape[1])) if flat else inputs
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=scale,
            offset=offset,
            mean=() if mean is None else mean,
            variance=() if variance is None else variance,
            epsilon=self.epsilon,
            is_training=mean is None,
        )
        number = tf.size(images) / tf.size(mean)
        # What is put out for the moving average is the unbiased variance; Keras' moving average is of the biased one.
        biased = variance * tf.cast((number - 1) / number, variance.dtype)
        return tf.reshape(outputs, tf.shape(inputs)) if flat else outputs, mean, biased

    def _over_replicas(self, inputs, scale, offset, context):
        """Normalise by mean and variance over the shares of all replicas; gives them too."""

        def mean_over_all(values):
            return context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.reduce_mean(values, self._reduction_axes, True))

        values = tf.cast(inputs, tf.float32)
        mean = mean_over_all(values)
        variance = mean_over_all(tf.math.squared_difference(values, mean))
        scale, offset = (tf.reshape(weight, mean.shape) for weight in (scale, offset))
        outputs = tf.nn.batch_normalization(values, mean, variance, offset, scale, self.epsilon)
        statistics = (tf.squeeze(value, self._reduction_axes) for value in (mean, variance))
        return tf.cast(outputs, inputs.dtype), *statistics


class MultiChannelRescaling(keras.layers.Layer):
    """The image channels from the generator's last pre-activation u: s = tanh(u), and tanh(x/1000).

    The density is x = a exp(2u), so that the second channel needs neither the division nor the overflow of the
    textbook inverse of s(x).

    Parameters
    ----------
    datascale : float
        a [particles per voxel].
    """

    def __init__(self, datascale, **kwargs):
        super().__init__(**kwargs)
        self.datascale = datascale

    def call(self, inputs):
        log_ratio = tf.minimum(2.0 * inputs + math.log(self.datascale / RESCALE), _MAX_LOG_RATIO)
        return tf.concat([tf.tanh(inputs), tf.tanh(tf.exp(log_ratio))], axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2 * input_shape[-1])

    def get_config(self):
        return super().get_config() | {"datascale": self.datascale}
