"""The arithmetic of the hidden layers: which is chosen, and what Keras makes of it.

Weights, the images and everything that follows them (losses, logits, statistics, optimisers) are float32 always.
"""

import numpy as np
import tensorflow as tf

from networks.device import processor_flags
from networks.distribution import any_worker, local_replicas, send_from_first
from utils.config import PRECISIONS, Config

# NVIDIA's Ampere was the first to multiply bfloat16 in hardware.
_FIRST_WITH_BFLOAT16 = (8, 0)


def has_bfloat16() -> bool:
    """Whether what this process computes on multiplies bfloat16 in hardware; emulation is slower than float32."""
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
        return all(detail.get("compute_capability", (0, 0)) >= _FIRST_WITH_BFLOAT16 for detail in details)
    return bool(processor_flags() & {"amx_bf16", "avx512_bf16", "bf16"})


def choose_precision(precision: str, strategy: tf.distribute.Strategy) -> str:
    """What `auto` stands for here; the same on all workers: bfloat16 if all of them have it.

    Parameters
    ----------
    precision : str
        One of `PRECISIONS`. Of several workers all have to ask, and what the first asks for holds, unless it is `auto`.
    strategy : tf.distribute.Strategy

    Returns
    -------
    str
        One of `PRECISIONS`, but `auto`.
    """
    together = strategy.num_replicas_in_sync > local_replicas(strategy)
    poor = not has_bfloat16()
    if together:
        poor = any_worker(poor, strategy)
        (index,) = send_from_first([np.float32(PRECISIONS.index(precision))], strategy)
        precision = PRECISIONS[int(index)]
    if precision != "auto":
        return precision
    return "float32" if poor else "mixed_bfloat16"


def hidden_dtype(config: Config) -> str:
    """The Keras dtype policy of hidden layers; for `auto`, what this machine has."""
    if config.precision != "auto":
        return config.precision
    return choose_precision("auto", tf.distribute.get_strategy())
