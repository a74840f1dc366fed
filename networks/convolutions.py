"""Strided convolutions and their transposes, computed in another way where TensorFlow's own is slow on a CPU.

Three of its kernels are: transposed convolutions to a few channels in float32 (the generator's last layer and, in
float32, the gradient with respect to the discriminator's images); kernel gradients on small maps in bfloat16; and
everything between many channels in float32. They are computed here from operations that are fast, exactly up to
rounding; everything else is left to TensorFlow. Images are channels_last, padding is `same`, and all of it can be
differentiated any number of times.
"""

import math

import tensorflow as tf

from networks import winograd
from networks.device import processor_flags

# Up to that many channels, a convolution of neighbouring pixels and a rearrangement are twice as fast.
_FEW_CHANNELS = 4
# In bfloat16, up to that side of a convolution's output, a matrix product per pixel of the kernel is twice as fast.
_SMALL_SIDE = 8
# In float32 Winograd's way is faster from that many channels on both sides on, where a convolution's output is of that
# side: 1.1 to 2.7 times with AVX2 alone, 1.2 to 1.7 times with AVX-512, whose multiplications are the cheaper beside
# the same memory. Larger maps were not tried: the matrices that take a whole side to the points grow with it.
_MANY_CHANNELS = {"avx512f": 256, "avx2": 128}
_WINOGRAD_SIDES = range(8, 33)


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """The convolution, `tf.nn.conv2d`.

    Parameters
    ----------
    images : tensor, (n, N, N, channels in), float
        N a multiple of `stride`.
    kernel : tensor, (k, k, channels in, channels out), of the same type
    stride : int

    Returns
    -------
    tensor, (n, N/stride, N/stride, channels out)
    """

    @tf.custom_gradient
    def forward(images, kernel):
        def gradients(upstream):
            return convolve_transposed(upstream, kernel, stride), _kernel_gradient(images, upstream, kernel, stride)

        if _winograd_pays(images.shape[1] // stride, kernel, stride):
            return winograd.convolve(images, kernel, stride), gradients
        return tf.nn.conv2d(images, kernel, stride, "SAME"), gradients

    return forward(images, kernel)


def convolve_transposed(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """The transpose of `convolve`, `tf.nn.conv2d_transpose`.

    Parameters
    ----------
    images : tensor, (n, M, M, channels in), float
    kernel : tensor, (k, k, channels out, channels in), of the same type
    stride : int

    Returns
    -------
    tensor, (n, M * stride, M * stride, channels out)
    """

    @tf.custom_gradient
    def forward(images, kernel):
        def gradients(upstream):
            return convolve(upstream, kernel, stride), _kernel_gradient(upstream, images, kernel, stride)

        if _on_cpu() and images.dtype == tf.float32 and kernel.shape[2] <= _FEW_CHANNELS and stride > 1:
            outputs = transposed_by_neighbours(images, kernel, stride)
        elif _winograd_pays(images.shape[1], kernel, stride):
            outputs = winograd.convolve_transposed(images, kernel, stride)
        else:
            rows, columns = (side * stride for side in images.shape[1:3])
            shape = (tf.shape(images)[0], rows, columns, kernel.shape[2])
            outputs = tf.nn.conv2d_transpose(images, kernel, shape, stride, "SAME")
        return outputs, gradients

    return forward(images, kernel)


def transposed_by_neighbours(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """`convolve_transposed` as a convolution of stride 1 whose channels are then spread over pixels.

    Of the stride² output pixels at an input pixel, each depends on the few input pixels around, and all on the same
    ones: a convolution gives them as stride² times the channels (Shi et al. 2016, arXiv:1609.05158).
    """
    side, _, channels, channels_in = kernel.shape
    # Output pixel stride·q + p takes from input pixel q - d the kernel's pixel stride·d + p + before.
    before = max(side - stride, 0) // 2
    first, last = -((stride - 1 + before) // stride), (side - 1 - before) // stride  # of d
    taps = last - first + 1
    front = -(stride * first + before)
    pads = (front, stride * taps - side - front)
    kernel = tf.pad(kernel, (pads, pads, (0, 0), (0, 0)))
    kernel = tf.reshape(kernel, (taps, stride, taps, stride, channels, channels_in))  # side -> (d, p)
    kernel = tf.transpose(tf.reverse(kernel, (0, 2)), (0, 2, 5, 1, 3, 4))
    kernel = tf.reshape(kernel, (taps, taps, channels_in, stride * stride * channels))
    around = (last, -first)
    # (n, M, M, channels in) -> (n, M, M, stride² * channels) -> (n, M * stride, M * stride, channels)
    return tf.nn.depth_to_space(tf.nn.conv2d(images, kernel, 1, ((0, 0), around, around, (0, 0))), stride)


def _kernel_gradient(images, upstream, kernel, stride):
    """Of the sum of `convolve(images, kernel) * upstream`, with respect to the kernel."""
    side, outputs = kernel.shape[0], upstream.shape[1]
    if _on_cpu() and images.dtype == tf.bfloat16 and outputs <= _SMALL_SIDE:
        return kernel_gradient_by_products(images, upstream, side, stride)
    if _winograd_pays(outputs, kernel, stride):
        return winograd.kernel_gradient(images, upstream, side, stride)
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=kernel.shape,
        out_backprop=upstream,
        strides=(1, stride, stride, 1),
        padding="SAME",
    )


def kernel_gradient_by_products(images: tf.Tensor, upstream: tf.Tensor, side: int, stride: int) -> tf.Tensor:
    """The kernel's gradient, one matrix product for each of its pixels.

    Parameters
    ----------
    images : tensor, (n, N, N, channels in)
        What was convolved.
    upstream : tensor, (n, N/stride, N/stride, channels out)
        Gradient with respect to the result.
    side, stride : int
        Of the kernel.

    Returns
    -------
    tensor, (side, side, channels in, channels out)
    """
    rows, channels, channels_out = upstream.shape[1], images.shape[-1], upstream.shape[-1]
    before = max(side - stride, 0) // 2
    blocks = rows + (side - 1) // stride
    pads = (before, blocks * stride - rows * stride - before)
    images = tf.pad(images, ((0, 0), pads, pads, (0, 0)))
    # (n, N', N', channels) -> (n, blocks, stride, blocks, stride, channels): every stride-th pixel side by side
    images = tf.reshape(images, (-1, blocks, stride, blocks, stride, channels))
    images = tf.transpose(images, (2, 4, 0, 1, 3, 5))
    upstream = tf.reshape(upstream, (-1, channels_out))  # (n, M, M, channels out) -> (n * M * M, channels out)

    def product(i, j):
        rows_seen, columns_seen = (slice(pixel // stride, pixel // stride + rows) for pixel in (i, j))
        seen = images[i % stride, j % stride, :, rows_seen, columns_seen]
        return tf.matmul(tf.reshape(seen, (-1, channels)), upstream, transpose_a=True)

    products = tf.stack([product(i, j) for i in range(side) for j in range(side)])
    return tf.reshape(products, (side, side, channels, channels_out))


def _winograd_pays(outputs: int, kernel: tf.Tensor, stride: int) -> bool:
    """Whether convolutions of this kernel to so many outputs along a side are faster in Winograd's way."""
    side = kernel.shape[0]
    # With one or two weights per stride it saves little, and with one alone nothing.
    saves = side > 2 * stride and min(kernel.shape[2:]) >= _many_channels()
    possible = outputs in _WINOGRAD_SIDES and winograd.is_possible(side, stride, outputs)
    return saves and possible and kernel.dtype == tf.float32 and _on_cpu()


def _on_cpu() -> bool:
    return not tf.config.get_visible_devices("GPU")


def _many_channels() -> float:
    """With how many it pays on this processor; infinitely many where that has not been measured."""
    return next((channels for flag, channels in _MANY_CHANNELS.items() if flag in processor_flags()), math.inf)
