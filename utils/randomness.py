"""What random numbers of a training step are for: each purpose has a stream of its own, a pure function of the run's
seed, the purpose and the step."""

import enum


@enum.unique
class Purpose(enum.IntEnum):
    """Folded into the run's seed. A number that changes makes other runs of the same seeds."""

    NOISE = 0
    FLIPS = 1
    AUGMENTATION = 2
    DEQUANTISATION = 3
    ROUNDING = 4
    CROPS = 5
