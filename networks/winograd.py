"""Strided convolutions with a third of the multiplications, from matrix products over tiles.

Winograd's minimal filtering, as Lavin & Gray (2016, arXiv:1509.09308) use it for networks, for kernels that stride:
along each side a convolution of stride r is the sum of r convolutions of stride 1, one for every r-th pixel and every
r-th weight. Four neighbouring outputs of one of these, with three weights, are sums of six products, each of a sum of
pixels and a sum of weights, where term by term there would be twelve: a product of two polynomials is known by its
values at six points, which are the products of theirs. A kernel of 5 x 5 that moves by 2 so takes 11² instead of 20²
multiplications per tile of 4 x 4 outputs, and all of one point are a matrix product over channels.

A tensor is taken to the points and back by a matrix along each side. One set of matrices serves the convolution, its
transpose and its kernel's gradient, which are the three derivatives of one trilinear form. Images are channels_last,
padding is `same`; all is made of operations that TensorFlow can differentiate.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Outputs of a tile along a side.
_TILE = 4
# Points beside infinity. Of a dozen sets that were tried, errors in float32 are within 5 % of the smallest with these.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_MOST_WEIGHTS = len(_POINTS) + 2 - _TILE


def is_possible(side: int, stride: int, outputs: int) -> bool:
    """Whether convolutions of a kernel of that side to so many outputs along a side can be computed here."""
    return outputs % _TILE == 0 and -(-side // stride) <= _MOST_WEIGHTS


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """`networks.convolutions.convolve`, where `is_possible` says so."""
    transforms = _transforms(images.shape[1], kernel.shape[0], stride)
    products = tf.matmul(_to_points(images, transforms.images), _kernel_to_points(kernel, transforms.kernel))
    return _from_points(products, transforms.outputs)


def convolve_transposed(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """`networks.convolutions.convolve_transposed`, where `is_possible` says so."""
    transforms = _transforms(images.shape[1] * stride, kernel.shape[0], stride)
    at_points = _to_points(images, transforms.outputs)
    products = tf.matmul(at_points, _kernel_to_points(kernel, transforms.kernel), transpose_b=True)
    return _from_points(products, transforms.images)


def kernel_gradient(images: tf.Tensor, upstream: tf.Tensor, side: int, stride: int) -> tf.Tensor:
    """Of the sum of `convolve(images, kernel) * upstream`, with respect to the kernel.

    Parameters
    ----------
    images : tensor, (n, N, N, channels in)
    upstream : tensor, (n, N/stride, N/stride, channels out)
    side, stride : int
        Of the kernel.

    Returns
    -------
    tensor, (side, side, channels in, channels out)
    """
    transforms = _transforms(images.shape[1], side, stride)
    at_points = _to_points(images, transforms.images), _to_points(upstream, transforms.outputs)
    products = tf.matmul(*at_points, transpose_a=True)
    return _kernel_from_points(products, transforms.kernel)


class _Transforms(NamedTuple):
    """Matrices that take one side of each tensor to the points; their transposes lead back."""

    images: np.ndarray  # (points, tiles, N)
    outputs: np.ndarray  # (points, tiles, N/stride)
    kernel: np.ndarray  # (points, side)


@functools.cache
def _transforms(pixels: int, side: int, stride: int) -> _Transforms:
    """For images of so many pixels a side; the points are those of all `stride` convolutions, one after the other."""
    outputs = pixels // stride
    tiles = outputs // _TILE
    before = max(side - stride, 0) // 2
    parts = []
    for first in range(min(stride, side)):
        weights = range(first, side, stride)
        of_pixels, of_outputs, of_weights = _one_tile(len(weights))
        points = len(of_pixels)
        part = _Transforms(*(np.zeros((points, *shape)) for shape in [(tiles, pixels), (tiles, outputs), (side,)]))
        part.kernel[:, weights] = of_weights
        for tile in range(tiles):
            part.outputs[:, tile, tile * _TILE : (tile + 1) * _TILE] = of_outputs
            for index in range(points):
                pixel = stride * (tile * _TILE + index) + first - before
                if 0 <= pixel < pixels:  # beyond lies the padding
                    part.images[:, tile, pixel] = of_pixels[:, index]
        parts.append(part)
    return _Transforms(*map(np.concatenate, zip(*parts, strict=True)))


def _one_tile(weights: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What takes pixels (as many as points), outputs (_TILE) and weights of one tile to the points, each (points, ...).

    A polynomial of d coefficients is known by its values at d points, the one at infinity being its highest
    coefficient. So the product of two has coefficients ``inverse @ (values(w) @ weights * values(o) @ others)``.
    With pixels for factors of these coefficients, their sum is trilinear: of pixels, weights and others. What it
    multiplies the others by are the outputs of the tile, each the sum of weights times the pixels from there on.
    """
    points = _TILE + weights - 1

    def values(coefficients):
        finite = np.vander(_POINTS[: points - 1], coefficients, increasing=True)
        return np.vstack([finite, np.eye(coefficients)[-1:]])

    of_pixels = np.linalg.inv(values(points)).T
    # Without this pixels and weights would differ in size from point to point.
    scale = np.abs(of_pixels).max(axis=1, keepdims=True)
    return of_pixels / scale, values(_TILE), values(weights) * scale


def _to_points(values: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """Images, (n, N, N, channels), to (points², n * tiles², channels)."""
    points, tiles, side = matrix.shape
    channels = values.shape[-1]
    values = _along_sides(matrix.reshape(-1, side), values)  # (n, points * tiles, points * tiles, channels)
    values = tf.reshape(values, (-1, points, tiles, points, tiles, channels))
    return tf.reshape(tf.transpose(values, (1, 3, 0, 2, 4, 5)), (points**2, -1, channels))


def _from_points(values: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """The transpose of `_to_points`."""
    points, tiles, side = matrix.shape
    channels = values.shape[-1]
    # (points², n * tiles², channels) -> (n, points * tiles, points * tiles, channels)
    values = tf.transpose(tf.reshape(values, (points, points, -1, tiles, tiles, channels)), (2, 0, 3, 1, 4, 5))
    values = tf.reshape(values, (-1, points * tiles, points * tiles, channels))
    return _along_sides(matrix.reshape(-1, side).T, values)


def _kernel_to_points(kernel: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """A kernel, (side, side, channels in, channels out), to (points², channels in, channels out)."""
    (points, side), channels = matrix.shape, kernel.shape[2:]
    values = _along_sides(matrix, tf.reshape(kernel, (1, side, side, channels.num_elements())))
    return tf.reshape(values, (points**2, *channels))


def _kernel_from_points(values: tf.Tensor, matrix: np.ndarray) -> tf.Tensor:
    """The transpose of `_kernel_to_points`."""
    (points, side), channels = matrix.shape, values.shape[1:]
    values = _along_sides(matrix.T, tf.reshape(values, (1, points, points, channels.num_elements())))
    return tf.reshape(values, (side, side, *channels))


def _along_sides(matrix: np.ndarray, values: tf.Tensor) -> tf.Tensor:
    """Multiply both sides of (n, N, N, channels) by a matrix, (N', N): (n, N', N', channels)."""
    after, before = matrix.shape
    channels = values.shape[-1]
    matrix = tf.constant(matrix[None], values.dtype)
    rows = tf.matmul(matrix, tf.reshape(values, (-1, before, before * channels)))  # (n, N', N * channels)
    columns = tf.matmul(matrix, tf.reshape(rows, (-1, before, channels)))  # (n * N', N', channels)
    return tf.reshape(columns, (-1, after, after, channels))
