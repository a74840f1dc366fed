"""What a run was made with: enough to repeat it, and to notice when a resumed run no longer is the same."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

from utils.config import Config
from utils.slices import SliceSet
from utils.version import VERSION

_PACKAGES = ("tensorflow", "keras", "numpy", "scipy", "h5py", "tensorboard")
_MEGABYTE = 2**20
# Environment variables that change how TensorFlow rounds.
_SETTINGS = ("TF_XLA_FLAGS", "XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_DEFAULT_FPMATH_MODE", "OMP_NUM_THREADS")
_SETTINGS += ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NVIDIA_TF32_OVERRIDE")


def run_record(config: Config, slices: dict[str, SliceSet], device: dict, before: dict) -> dict:
    """Describe this start of a run.

    Parameters
    ----------
    config : Config
    slices : dict of str to SliceSet
        The slice files by split.
    device : dict
        The description of the `Machine` that `networks.device.start_tensorflow` returns.
    before : dict
        The record of the last start, empty for a new run.

    Returns
    -------
    dict
        JSON values: `version`, `commit`, `started`, `host`, `seed`, `data` and `numerics`; `data_before`: other `data`
        that the run has been trained on, earliest first.
    """
    data = {split: _fingerprint(opened.path) for split, opened in slices.items()}
    data_before = _before(before)
    if before.get("data") and _other_slices(before["data"], data):
        data_before = [*data_before, before["data"]]
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    return {
        "version": VERSION,
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "seed": config.seed,
        "data": data,
        "data_before": data_before,
        "numerics": {
            "python": platform.python_version(),
            "packages": packages,
            "processor": _processor(),
            "device": device,
            "precision": config.precision,
            "settings": settings,
        },
    }


def trained_on(record: dict, path: Path) -> bool | None:
    """Whether a run has been trained on the slices of this file, wherever it lies, and on no others; None if its record
    does not say."""
    recorded = record.get("data", {}).get("train")
    if recorded is None:
        return None
    now = {"train": _fingerprint(path)}
    return not any(_other_slices({"train": data.get("train")}, now) for data in (record["data"], *_before(record)))


def _before(record: dict) -> list[dict]:
    return record.get("data_before", [])


def _other_slices(before: dict, now: dict) -> list[str]:
    """The splits whose files have changed, not only moved."""
    contents = [{split: dict(file or {}, path=None) for split, file in data.items()} for data in (before, now)]
    return [split for split, file in contents[1].items() if file != contents[0].get(split)]


def used_xla(record: dict) -> bool | None:
    """Whether steps were compiled by XLA, which draws other random numbers, at the start that the record is of; None if
    that is not known."""
    xla = record.get("numerics", {}).get("device", {}).get("xla")
    return None if xla is None else xla == "step"


def differences(before: dict, now: dict) -> list[str]:
    """What may end bit-exactness between two starts of a run: one line on each difference; `before` may be empty."""
    if not before:
        return ["how it was started before is not known"]
    flat_before, flat_now = (dict(_leaves({key: record.get(key) for key in _EXACT})) for record in (before, now))
    names = sorted(flat_before.keys() | flat_now.keys())
    pairs = ((name, flat_before.get(name, "absent"), flat_now.get(name, "absent")) for name in names)
    slices = [
        f"{now['data'][split]['path']} has other slices than before, perhaps of universes that were held back then"
        for split in _other_slices(before.get("data", {}), now["data"])
    ]
    return slices + [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


_EXACT = ("version", "commit", "seed", "numerics")


def _leaves(tree, path=""):
    """(path, value) of every value in nested dictionaries."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{path}.{key}" if path else key)


def _fingerprint(path: Path) -> dict:
    """Size of a file, and the SHA-256 of its first and of its last megabyte: a gigabyte need not be read to know it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(_MEGABYTE)
        file.seek(max(0, size - _MEGABYTE))
        last = file.read(_MEGABYTE)
    digests = {"sha256_first": hashlib.sha256(first).hexdigest(), "sha256_last": hashlib.sha256(last).hexdigest()}
    return {"path": str(path), "bytes": size} | digests


def _commit() -> str:
    """The commit of the suite, with a mark when the tree differs from it; `unknown` outside a repository."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """The processor's model: float32 rounding differs between instruction sets."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
