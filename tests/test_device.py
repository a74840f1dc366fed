"""What TensorFlow computes with once `networks.device` has started it."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CONVOLUTION = """
from networks.device import start_tensorflow
start_tensorflow()
import tensorflow as tf
with tf.device("CPU:0"):
    images, kernel = tf.ones((1, 8, 8, 16)), tf.ones((3, 3, 16, 16))
    tf.function(tf.nn.conv2d)(images, kernel, 1, "SAME")
"""


@pytest.mark.parametrize(("setting", "used"), [({}, True), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, False)])
def test_convolutions_are_computed_by_onednn_unless_switched_off(setting, used):
    """Also on processors where TensorFlow by itself would not; oneDNN says what it computes."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {"ONEDNN_VERBOSE": "1"} | setting
    process = subprocess.run(
        [sys.executable, "-c", CONVOLUTION], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ("exec,cpu,convolution" in process.stdout) is used, process.stdout
