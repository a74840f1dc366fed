"""What changes in the course of a run, each a function of the step alone: resuming needs nothing but the step."""

import math

import tensorflow as tf

from utils.config import Config

# Between these parts of a run the weight of the R1 penalty grows: once there are filaments, and while learning rates
# still allow the networks to follow.
_R1_GROWTH_FROM, _R1_GROWTH_TO = 0.4, 0.7

# An average over one part in so many of the steps done: over more (a ninth), it takes specks away from slices that have
# few; over less, it leaves too many in others.
_AVERAGED_PART = 13.0


def part_done(step: tf.Tensor, total_steps: int) -> tf.Tensor:
    """The part of a run that is done when a step (from 0 on) begins: a scalar float32 tensor from 0 to 1."""
    return tf.cast(step, tf.float32) / total_steps


def learning_rate_factor(step: tf.Tensor, total_steps: int | None, config: Config) -> tf.Tensor | float:
    """What the learning rates are multiplied with, by `lr_schedule`.

    1, or half a cosine from 1 at step 0 towards `lr_floor`, which it would reach after the last step (Loshchilov &
    Hutter 2017, arXiv:1608.03983, eq. 5 without restarts).
    """
    if config.lr_schedule == "constant":
        return 1.0
    falling = 0.5 * (1.0 + tf.cos(math.pi * part_done(step, total_steps)))
    return config.lr_floor + (1.0 - config.lr_floor) * falling


def r1_weight(step: tf.Tensor, total_steps: int | None, config: Config) -> tf.Tensor | float:
    """What the R1 penalty of a step counts, by `r1_weight` and `r1_growth`.

    It is computed every `r1_interval` steps only, so weighted up (lazy regularisation: Karras et al. 2020,
    arXiv:1912.04958).
    """
    weight = config.r1_weight * config.r1_interval
    if config.r1_growth == 1:
        return weight
    grown = (part_done(step, total_steps) - _R1_GROWTH_FROM) / (_R1_GROWTH_TO - _R1_GROWTH_FROM)
    return weight * (1.0 + (config.r1_growth - 1.0) * tf.clip_by_value(grown, 0.0, 1.0))


def average_decay(step: tf.Tensor, config: Config) -> tf.Tensor:
    """Decay of the generator's moving average: `ema_decay`, but less in the first 13 / (1 - ema_decay) steps.

    Till then the average reaches back over about a thirteenth of the steps done, however many they are: step t has the
    weight (t / steps)^12 in it, the power-function average of Karras et al. 2024 (arXiv:2312.02696).
    """
    done = 1.0 + tf.cast(step, tf.float32)
    warm_up = done / (_AVERAGED_PART + done)
    return tf.minimum(config.ema_decay, warm_up)
