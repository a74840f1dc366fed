"""The map between density and network units, s(x) = 2x/(x+a) − 1, and back.

Both functions work on NumPy arrays and, because they use nothing but operators, on TensorFlow tensors too, without
importing TensorFlow.
"""

import numpy as np


def transform(x, a):
    """Map densities [0, ∞) to network units [−1, 1): s = 2x/(x+a) − 1.

    Evaluated as (x − a)/(x + a), which is the same without the cancellation near x = a.

    Parameters
    ----------
    x : array or tensor, any shape
        Densities, in particles per voxel. A tensor must be of a floating type.
    a : float
        Density that maps to s = 0 (`datascale` in the configuration).

    Returns
    -------
    array or tensor
        s, of the shape and floating type of `x`; integer arrays give float32.

    Raises
    ------
    ValueError
        `a` is not positive.
    """
    a = _positive(a)
    if not _is_tensor(x):
        x = np.asarray(x)
        if x.dtype.kind in "biu":
            x = x.astype(np.float32)
    return (x - a) / (x + a)


def invtransform(s, a):
    """Map network units back to densities: x = a(1+s)/(1−s).

    The inverse of `transform`, except where s has rounded to 1 (or lies above): there s is taken to be the largest
    number below 1 of its type, so that the density stays finite (a · 2²⁵ in float32). Every s below 1 is left
    exactly as it is. In float32 with a = 4 the round trip keeps integers up to 10 000 within 0.5.

    Parameters
    ----------
    s : array or tensor, any shape, floating type float16, float32 or float64
        Network units.
    a : float
        The same as in `transform`.

    Returns
    -------
    array or tensor
        Densities, of the shape and floating type of `s`; integer arrays give float32.

    Raises
    ------
    ValueError
        `a` is not positive, or `s` is of a type without known precision.
    """
    a = _positive(a)
    if not _is_tensor(s):
        s = np.asarray(s)
        if s.dtype.kind in "biu":
            s = s.astype(np.float32)
    # A clip from plain operators, which arrays and tensors share: the excess is exactly 0 up to the limit, and above
    # it the subtraction gives back the limit itself.
    limit = 1.0 - float(np.finfo(getattr(s.dtype, "as_numpy_dtype", s.dtype)).epsneg)
    excess = s - limit
    s = s - (excess + abs(excess)) / 2.0
    return a * ((1.0 + s) / (1.0 - s))


def _is_tensor(x) -> bool:
    """Whether `x` is an array of another library, to be left to its own operators."""
    return hasattr(x, "dtype") and not isinstance(x, np.ndarray | np.generic)


def _positive(a) -> float:
    # A Python float keeps the type of the array it meets; a NumPy scalar would widen float32 to float64.
    a = float(a)
    if not 0.0 < a < np.inf:
        raise ValueError(f"the scale a must be positive and finite, not {a}")
    return a
