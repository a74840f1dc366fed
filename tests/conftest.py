"""What several test files need."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Before TensorFlow is imported: its start-up notes would bury pytest's own output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import yaml

from networks.device import use_onednn
from utils.config import Config

# As the scripts do, before TensorFlow is imported.
use_onednn()

# A shell starts what runs in its background with Ctrl-C ignored, and so would be the scripts that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
    "checkpt_batch": 5,
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


ROOT = Path(__file__).resolve().parent.parent

# A minute and more each; begun last, one of them would keep a single worker busy at the end.
LONGEST_FILES = (
    "test_recovery", "test_train", "test_workers", "test_distribution", "test_scorecard", "test_analyze", "test_gan",
    "test_slurm",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest; within and between the others nothing moves."""
    rank = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def run_script(script, *arguments, cwd, timeout=300, **environment):
    """Run one of the suite's scripts as a user would; gives the finished process with its output as text."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_refused(process, *words):
    """The script ended with one line on stderr that holds the words, and exit code 2."""
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.splitlines()) == 1, process.stderr
    for word in words:
        assert word in process.stderr


def write_config(folder, **changes):
    """A config.yaml whose tag `tiny` has the nineteen old keys, with changes."""
    (folder / "config.yaml").write_text(yaml.safe_dump({"tiny": OLD_KEYS | changes}))


@pytest.fixture(scope="session")
def universes(tmp_path_factory) -> Path:
    """A folder with six universes of 16³ voxels, made by the simulator."""
    folder = tmp_path_factory.mktemp("universes")
    process = run_script(
        "data/simulate_universes.py", "--num", 6, "--grid", 16, "--box", 32, "--out", folder, cwd=folder
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="session")
def sliced(universes, tmp_path_factory) -> Path:
    """A folder to work in: data/raw_{train,val,test}.h5 of 8 x 8 pixels, and config.yaml with the tag `tiny`."""
    folder = tmp_path_factory.mktemp("sliced")
    (folder / "data").mkdir()
    arguments = ("--img-dim", 8, "--stride", 4, "--val-fraction", 0.3, "--test-fraction", 0.3, "--out", "data/raw")
    process = run_script("data/slice_universes.py", universes, *arguments, cwd=folder)
    assert process.returncode == 0, process.stderr
    write_config(folder)
    return folder


@pytest.fixture
def workplace(sliced, tmp_path) -> Path:
    """A fresh folder with the same slices and configuration."""
    (tmp_path / "data").symlink_to(sliced / "data")
    write_config(tmp_path)
    return tmp_path
