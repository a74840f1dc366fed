"""Training on several devices: the same as on one."""

import json

import numpy as np
import pytest

from tests.conftest import OLD_KEYS, ROOT, run_script
from utils.cli import UserError
from utils.cluster import find_cluster

# Everything that mixes samples of a batch, or draws random numbers for them.
OPTIONS = {
    "augment": True,
    "dequantise": True,
    "spectral_weight": 0.1,
    "match_histogram": True,
    "critic_weight": 0.2,
    "r1_weight": 0.5,
    "r1_coordinate": "log_density",
    "r1_interval": 2,
    "ema_decay": 0.9,
}

# Logical devices have to be made before TensorFlow starts: in a process of its own.
SCRIPT = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from networks.device import start_tensorflow
from utils.config import Config

config, devices, steps = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
machine = start_tensorflow("mirrored" if devices > 1 else "single", devices=devices)
from networks.gan import GAN
from networks.losses import TrainingSet
from networks.matching import Tail

powers, spectra = (np.full(4, 30.0), np.full(4, 300.0)), (np.ones(10), np.full(10, 3.0))
training_set = TrainingSet(*powers, *spectra, tail=Tail(np.arange(1, 19), 10**6 // 2 ** np.arange(1, 19), 10**6))
gan = GAN(Config(**config), total_steps=50, training_set=training_set, strategy=machine.strategy)
rng = np.random.default_rng(1)
losses = []
for step in range(steps):
    densities = rng.poisson(rng.lognormal(-0.5, 1.0, (12, 8, 8))).astype(np.int16)
    losses.append({{name: float(loss) for name, loss in gan.train_on_densities(densities).items()}})
gan.match_histogram()
np.savez(sys.argv[3], **{{name: variable.numpy() for name, variable in gan.state().items()}})
print(json.dumps([machine.description["replicas"], losses]))
"""


def train(devices, folder, steps, **options):
    """Gives the losses of every step, and the state at the end."""
    path = folder / f"state{devices}.npz"
    keys = json.dumps({"tag": "tiny"} | OLD_KEYS | {"batchsize": 12, "datafmt": "channels_last"} | options)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    process = run_script(script, keys, devices, path, steps, cwd=folder)
    assert process.returncode == 0, process.stderr
    replicas, losses = json.loads(process.stdout.splitlines()[-1])
    assert replicas == devices
    with np.load(path) as file:
        return losses, dict(file)


def test_two_devices_train_as_one_with_synchronised_batch_norm(tmp_path):
    (losses, state), (own_losses, own_state) = (train(n, tmp_path, 50, sync_batchnorm=True, **OPTIONS) for n in (1, 2))
    for one, other in zip(losses, own_losses, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)
    for name, array in state.items():
        np.testing.assert_allclose(own_state[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def test_densities_are_rounded_alike_on_two_devices(tmp_path):
    """Only for a few steps: a last digit may decide whether a pixel is rounded up, and a pixel is no rounding error."""
    options = {"steps": 4, "sync_batchnorm": True, "count_noise": True}
    (losses, _), (own_losses, _) = (train(n, tmp_path, **options) for n in (1, 2))
    for one, other in zip(losses, own_losses, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_float16_on_two_devices_skips_what_overflows_on_either(tmp_path):
    """The first steps overflow, until the scale of the losses is low enough. On how many that takes one more or fewer,
    for a device's share of the batch is smaller and its samples weigh more; but no weight may catch what overflowed."""
    options = {"steps": 8, "sync_batchnorm": True, "precision": "mixed_float16"}
    options |= {"spectral_weight": 0.1, "r1_weight": 50.0, "r1_interval": 2}  # one for each network to overflow by
    (losses, _), (own_losses, own_state) = (train(n, tmp_path, **options) for n in (1, 2))
    for one, other in zip(losses, own_losses, strict=True):
        assert other == pytest.approx(one, rel=0.02, abs=2e-3)
    for network in ("generator", "discriminator"):
        assert own_state[f"{network}_optimizer/003"] < 2**15  # the scale of its losses, which begins there
    for name, array in own_state.items():
        assert np.isfinite(array).all(), name


def test_clusters_are_found_in_the_environment():
    alone = json.dumps({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}})
    assert find_cluster({}) is None
    assert find_cluster({"TF_CONFIG": alone}) is None
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    found = find_cluster({"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": "worker", "index": 1}})})
    assert (found.size, found.rank, found.addresses) == (3, 2, ("a:1", "b:1", "c:1"))
    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "n[1-4]"}
    assert (find_cluster(slurm).size, find_cluster(slurm).rank) == (4, 3)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "cannot be understood"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "only chief and worker"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "none of its cluster's 2"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 1}}', "must be different"),
    ],
)
def test_what_is_no_cluster_is_refused(text, word):
    with pytest.raises(UserError, match=word):
        find_cluster({"TF_CONFIG": text})
