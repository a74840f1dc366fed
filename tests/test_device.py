"""What TensorFlow computes with once `networks.device` has started it."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from networks import device
from tests.conftest import ROOT
from utils.cluster import Cluster

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


THREADS = """
import os
os.sched_getaffinity = lambda process: {0, 1}
from networks.device import start_tensorflow
print(start_tensorflow(batch_pixels=64).description["threads"])
"""


@pytest.mark.parametrize(("setting", "threads"), [({}, "1"), ({"TF_NUM_INTRAOP_THREADS": "3"}, "3")])
def test_threads_of_small_batches_on_two_cores(setting, threads):
    environment = {name: value for name, value in os.environ.items() if name != "TF_NUM_INTRAOP_THREADS"} | setting
    process = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == threads


@pytest.mark.parametrize(
    ("cores", "pixels", "chosen"), [(2, 2**15, [1]), (2, 2**15 + 1, []), (4, 2**15, []), (1, 2**15, []), (2, None, [])]
)
def test_threads_are_left_to_tensorflow_elsewhere(monkeypatch, cores, pixels, chosen):
    calls = []
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", calls.append)
    device._choose_threads(tf, pixels)
    assert calls == chosen


@pytest.mark.parametrize("gpus", [0, 3])
def test_a_worker_joins_under_its_rank_with_all_its_gpus(monkeypatch, gpus):
    class Joined(Exception):
        pass

    def join(resolver):
        raise Joined(resolver)

    devices = [tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU") for number in range(gpus)]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: devices)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", join)
    met = []
    cluster = Cluster("Slurm", 3, 1, ("n9:12000", "n9:12001", "n10:12000"))
    with pytest.raises(Joined) as caught:
        device._join(tf, cluster, lambda: met.append(True))
    (resolver,) = caught.value.args
    assert met == [True]
    assert resolver.cluster_spec().as_dict() == {"worker": ["n9:12000", "n9:12001", "n10:12000"]}
    assert (resolver.task_type, resolver.task_id, resolver.rpc_layer) == ("worker", 1, "grpc")
    assert resolver.num_accelerators() == {"GPU": gpus}
