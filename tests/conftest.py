"""What several test files need."""

import os

# Before TensorFlow is imported: its start-up notes would bury pytest's own output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from utils.config import Config

OLD_KEYS = {
    "dataname": "raw",
    "img_dim": 8,
    "noise_vect_len": 5,
    "nlayers": 2,
    "convkern": 5,
    "convstride": 2,
    "nconvfilters": [3, 4],
    "ndeconvfilters": [3, 1],
    "label_flip": 0.01,
    "batchsize": 6,
    "print_batch": 2,
    "checkpt_batch": 3,
    "cscale": "lin",
    "datascale": 4,
    "learn_rate": [0.0002, 0.0002],
    "DG_update_ratio": 2,
    "Nepochs": 1,
    "datafmt": "channels_first",
    "multichannel": True,
}


@pytest.fixture
def tiny_config() -> Config:
    """The nineteen old keys, on networks small enough for a NumPy twin."""
    return Config(tag="tiny", **OLD_KEYS)
