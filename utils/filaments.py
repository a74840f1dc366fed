"""How far structures are drawn out: what tells filaments from clumps of the same spectrum, histogram and area."""

import numpy as np
from scipy.ndimage import gaussian_filter

from utils.stacks import checked, map_batches, positive


def orientation_coherence(images, scale=1.0, window=3.0) -> np.ndarray:
    """Strength of the structure tensor of each image, and the part of it that points one way.

    The structure tensor is the mean of ∇f ∇fᵀ in a Gaussian window (Bigün & Granlund 1987), f the image smoothed on a
    smaller scale. Across a filament all gradients lie along one line, and one eigenvalue λ₁ is far above the other;
    around clumps and specks they point everywhere, λ₁ = λ₂.

    Parameters
    ----------
    images : (n, N, N) array
        Best of a transformed density, where bright haloes do not outweigh everything.
    scale : float
        Standard deviation of the smoothing [pixels].
    window : float
        Standard deviation of the window [pixels].

    Returns
    -------
    (n, 2) float64 array
        Means over the pixels of λ₁ − λ₂ and of λ₁ + λ₂, in units of the image squared per pixel squared. The coherence
        of a set is the ratio of their sums, from 0 (no direction anywhere) to 1 (parallel lines).

    Raises
    ------
    ValueError
        If the images are no stack of squares of at least two pixels a side, or `scale` or `window` is not positive.
    """
    images = checked(images)
    if images.shape[-1] < 2:
        raise ValueError(f"gradients need at least two pixels a side, not images of shape {images.shape[1:]}")
    scale, window = positive("scale", scale), positive("window", window)

    def strengths(batch):
        smooth = gaussian_filter(batch.astype(np.float64), (0, scale, scale))
        down, right = np.gradient(smooth, axis=(1, 2))
        products = down * down, right * right, down * right
        rows, columns, mixed = (gaussian_filter(product, (0, window, window)) for product in products)
        difference = np.hypot(rows - columns, 2.0 * mixed)
        return np.stack([difference.mean(axis=(1, 2)), (rows + columns).mean(axis=(1, 2))], axis=1)

    return np.concatenate(map_batches(strengths, images))
