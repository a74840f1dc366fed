"""Layers that Keras does not have in the form that the GAN needs."""

import math

import keras
import tensorflow as tf

# tanh(e^3) is 1 in float32: a larger exponent cannot change the rescaled channel, but its gradient could overflow.
_MAX_LOG_RATIO = 3.0
# The density that becomes tanh(1) in the rescaled channel [particles per voxel].
RESCALE = 1000.0


class Conv2DTransposeSame(keras.layers.Layer):
    """Transposed convolution whose output has `strides` times the side of its input.

    The output shape is fixed when the graph is built; Keras' own layer leaves it open until the first call.

    Parameters
    ----------
    filters : int
        Channels of the output.
    kernel_size, strides : int
        Pixels, along both sides.
    data_format : str
        ``channels_first`` or ``channels_last``.
    use_bias : bool
        Whether to add a bias per channel.
    kernel_initializer
        As in Keras.

    Notes
    -----
    The kernel is (kernel_size, kernel_size, filters, input channels), as in Keras, whatever the data format.
    """

    def __init__(self, filters, kernel_size, strides, data_format, use_bias, kernel_initializer, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.data_format = data_format
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        channels = input_shape[1 if self.data_format == "channels_first" else -1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, self.filters, channels),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs):
        nchw = self.data_format == "channels_first"
        stride = (1, 1, self.strides, self.strides) if nchw else (1, self.strides, self.strides, 1)
        outputs = tf.nn.conv2d_transpose(
            inputs,
            self.kernel,
            output_shape=(tf.shape(inputs)[0], *self.compute_output_shape(inputs.shape)[1:]),
            strides=stride,
            padding="SAME",
            data_format="NCHW" if nchw else "NHWC",
        )
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias, data_format="NCHW" if nchw else "NHWC")
        return outputs

    def compute_output_shape(self, input_shape):
        if self.data_format == "channels_first":
            batch, _, rows, columns = input_shape
            return (batch, self.filters, rows * self.strides, columns * self.strides)
        batch, rows, columns, _ = input_shape
        return (batch, rows * self.strides, columns * self.strides, self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "data_format": self.data_format,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm, whose batch statistics can be those of all replicas, and can be differentiated twice.

    Parameters
    ----------
    synchronized : bool
        Mean and variance of the whole batch, of which every replica has an equal share. (Keras' own way, E[x²] − E[x]²,
        loses digits where the mean is large.)
    twice_differentiable : bool
        Keras takes the mean inside the variance for a constant. The first derivative is right nevertheless, since the
        variance is stationary in it, and cheaper; the second, which a gradient penalty needs, is not.
    **kwargs
        As in Keras.
    """

    def __init__(self, *args, twice_differentiable=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.twice_differentiable = twice_differentiable

    def _moments(self, inputs, mask):
        mean = self._mean_over_replicas(tf.reduce_mean(inputs, self._reduction_axes, keepdims=True))
        centre = mean if self.twice_differentiable else tf.stop_gradient(mean)
        squares = tf.math.squared_difference(inputs, centre)
        variance = self._mean_over_replicas(tf.reduce_mean(squares, self._reduction_axes, keepdims=True))
        return tf.squeeze(mean, self._reduction_axes), tf.squeeze(variance, self._reduction_axes)

    def _mean_over_replicas(self, value):
        context = tf.distribute.get_replica_context()
        if not self.synchronized or context is None or context.num_replicas_in_sync == 1:
            return value
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)

    def get_config(self):
        return super().get_config() | {"twice_differentiable": self.twice_differentiable}


class MultiChannelRescaling(keras.layers.Layer):
    """The image channels from the generator's last pre-activation u: s = tanh(u), and tanh(x/1000).

    The density is x = a exp(2u), so that the second channel needs neither the division nor the overflow of the
    textbook inverse of s(x).

    Parameters
    ----------
    datascale : float
        a [particles per voxel].
    axis : int
        Axis of the channels.
    """

    def __init__(self, datascale, axis, **kwargs):
        super().__init__(**kwargs)
        self.datascale = datascale
        self.axis = axis

    def call(self, inputs):
        log_ratio = tf.minimum(2.0 * inputs + math.log(self.datascale / RESCALE), _MAX_LOG_RATIO)
        return tf.concat([tf.tanh(inputs), tf.tanh(tf.exp(log_ratio))], axis=self.axis)

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        shape[self.axis] *= 2
        return tuple(shape)

    def get_config(self):
        return super().get_config() | {"datascale": self.datascale, "axis": self.axis}
