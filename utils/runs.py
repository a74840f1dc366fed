"""A run's folder: what lies where, whether it may be used, and its metrics file."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import h5py

from utils.checkpoints import Checkpoint, saved_steps
from utils.cli import UserError
from utils.config import DEFAULTS, REMOVED_KEYS, Config, load_config, read_tags
from utils.files import HDF5_DAMAGE, check_writable, keep_copy, write_text
from utils.version import VERSION

# A resumed run may change these and still be the run it was; any other key would make it another experiment.
MAY_CHANGE = ("Nepochs", "print_batch", "checkpt_batch", "learn_rate", "save_steps", "save_keep")


class RunFolder:
    """The folder ``<expts>/<tag>/run<id>``. Nothing is written before `create`.

    Parameters
    ----------
    tag, run : str
        Name of the configuration, and the run's number (or name).
    expts : path
        Folder of all experiments.

    Raises
    ------
    UserError
        If `run` cannot be part of a folder's name.
    """

    def __init__(self, tag: str, run: str, expts: str | Path = "expts"):
        if not re.fullmatch(r"[\w.-]+", run):
            raise UserError(f"RUN = '{run}' is not allowed: it names a folder; use letters, digits and _ . - only")
        self.path = Path(expts) / tag / f"run{run}"
        self.config = self.path / "config.yaml"
        self.log = self.path / "train.log"
        self.record = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.models = self.path / "models"
        self.analysis = self.path / "analysis"
        self.profile = self.path / "profile"

    def check(self, config: Config, resume: bool) -> dict[str, tuple]:
        """Make sure that a run may begin or go on here, without writing anything.

        Returns
        -------
        dict of str to (old value, new value)
            Keys of the configuration that differ from those of the run that is resumed.

        Raises
        ------
        UserError
            If there is a run and it is not to be resumed, if a key has changed that may not, or if the folder cannot
            be written.
        """
        check_writable(self.path)
        if not self._has_begun():
            return {}
        if not resume:
            raise UserError(
                f"{self.path} already exists; continue that run with --resume, or choose another RUN for a new one"
            )
        # A state is saved before the first record: records without one are of another program, or robbed of it.
        if not saved_steps(self.checkpoints) and (self.metrics.exists() or any(self.path.glob("models/*.h5"))):
            raise UserError(
                f"{self.path} has records or weights but no checkpoint to go on from; nothing was changed; bring "
                f"checkpoints back, or start another RUN, with --init-from if {self.models} has its last weights"
            )
        if not self.config.is_file():
            if not saved_steps(self.checkpoints):
                return {}
            raise UserError(
                f"{self.config} is missing, and with it what the run was trained with; bring it back ({self.log} has "
                f"it, near its beginning), or start another RUN"
            )
        before, now = load_config(self.config, config.tag).as_dict(), config.as_dict()
        changes = {key: (before[key], now[key]) for key in now if before[key] != now[key]}
        refused = {key: values for key, values in changes.items() if key not in MAY_CHANGE}
        if refused:
            listed = "; ".join(f"{key} was {old!r}, is now {new!r}" for key, (old, new) in refused.items())
            raise UserError(
                f"{self.path} cannot be resumed with another configuration: {listed}; only {', '.join(MAY_CHANGE)} "
                f"may change. Give the old values, or start another RUN"
            )
        return changes

    def _has_begun(self) -> bool:
        """Whether there is more than a run leaves that was refused, or that died before it had begun."""
        return any(path.is_file() and path.name not in ("lock", self.log.name) for path in self.path.rglob("*"))

    def discard(self) -> None:
        """Remove folders and log if the run has not begun; its lock stays. A run that has begun is left alone."""
        if not self._has_begun():
            for folder in (self.events, self.checkpoints, self.models):
                shutil.rmtree(folder, ignore_errors=True)
            self.log.unlink(missing_ok=True)

    def settled(self, config: Config) -> Config:
        """The configuration with what it leaves open, `precision: auto`, as the run that is there has settled it."""
        if config.precision != "auto" or not self.config.is_file():
            return config
        return dataclasses.replace(config, precision=load_config(self.config, config.tag).precision)

    def create(self) -> None:
        """Make the folder and what it always holds."""
        for folder in (self.events, self.checkpoints, self.models):
            folder.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: Config) -> None:
        """Keep the resolved configuration."""
        write_text(self.config, config.to_yaml())

    def read_record(self) -> dict:
        """How the run was last started (`utils.provenance`); empty if that is not known."""
        try:
            record = json.loads(self.record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, record: dict) -> None:
        """Keep how the run was started."""
        write_text(self.record, json.dumps(record, indent=2) + "\n")

    def append_metrics(self, record: dict) -> None:
        """Add one line to metrics.jsonl and bring it to the disk."""
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            with open(self.metrics, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno), str(self.metrics)) from error

    def record_sizes(self) -> dict[str, int]:
        """Length in bytes of metrics.jsonl and of every event file, by their path in the folder."""
        records = [self.metrics, *sorted(self.events.glob("events.out.tfevents.*"))]
        return {str(path.relative_to(self.path)): path.stat().st_size for path in records if path.exists()}

    def best_weights(self) -> list[Path]:
        """The files of the best weights so far, of both networks."""
        return sorted(self.models.glob("[gd]_cosmo_best*.weights.h5"))

    def cut_back(self, checkpoint: Checkpoint | None) -> list[str]:
        """Bring records and weights back to where they were at a checkpoint, or to nothing.

        So no step stands in the records twice, and no weights are the best of a course that was not taken. What a
        killed process was in the middle of writing goes too.

        Returns
        -------
        list of str
            What could not be brought back, in words: records that are shorter than they were, best weights whose copies
            are gone.
        """
        for folder in (self.path, self.models, self.checkpoints):
            for leftover in folder.glob(".partial*"):
                leftover.unlink()
        sizes, now = checkpoint.meta["records"] if checkpoint else {}, self.record_sizes()
        for name, size in now.items():
            if name not in sizes:
                (self.path / name).unlink()
            elif size > sizes[name]:
                with open(self.path / name, "rb+") as file:
                    file.truncate(sizes[name])
        if not checkpoint:
            return []
        for path in self.models.iterdir():
            # A copy under another name, which somebody has put aside, bears our stamp too.
            if _OUR_WEIGHTS.fullmatch(path.name) and _step_of_weights(path) > checkpoint.meta["step"]:
                path.unlink()
        copies = checkpoint.weights()
        for name, copy in copies.items():
            if copy.is_file():
                keep_copy(copy, self.models / name)
        return [
            *(f"{name} has lost its end, or is gone" for name, size in sizes.items() if now.get(name, 0) < size),
            *(
                f"{name}, which was among the best, is lost; it comes back when a better one is found"
                for name in copies
                if not (self.models / name).is_file()
            ),
        ]

    def rename_last_weights(self) -> None:
        """Name the last weights of a run that goes on, if it has any, as those of other epochs are: before its new
        configuration is written, for the old one has the number of its epochs.

        Epochs count from 0 in names, as they did in the old suite.
        """
        for last in self.models.glob("[gd]_cosmo_last.weights.h5"):
            epochs = load_run_config(self.path).Nepochs
            last.replace(last.with_name(last.name.replace("_last", f"{epochs - 1:04d}")))


_OUR_WEIGHTS = re.compile(r"[gd]_cosmo(_last|_best|_best_pspect|\d{4,})\.weights\.h5")


def _step_of_weights(path: Path) -> int:
    """The step that weights are of; -1 where a file does not say, which is then not ours to judge."""
    try:
        with h5py.File(path) as file:
            return int(file.attrs.get("step", -1))
    except HDF5_DAMAGE:
        return -1


def load_run_config(run_folder: str | Path) -> Config:
    """The resolved configuration that a run left in its folder. Raises `UserError` if there is none."""
    path = Path(run_folder) / "config.yaml"
    if not path.is_file():
        there = sorted(str(found.parent) for found in Path(run_folder).parent.parent.glob("*/run*/config.yaml"))
        runs = f"runs there: {', '.join(there)}" if there else "no runs there yet"
        raise UserError(f"no run in {run_folder}: its config.yaml is missing; {runs}; train with train.py TAG RUN")
    tags = list(read_tags(path))
    if len(tags) != 1:
        raise UserError(f"{path}: a run has one tag, this file has {len(tags)}: {', '.join(map(str, tags))}")
    return load_config(path, tags[0])


def find_weights(run_folder: str | Path, weights: str | Path, network: str = "g") -> Path:
    """The file of a network's weights.

    Parameters
    ----------
    run_folder : path
    weights : str or path
        ``best``, ``best_pspect``, ``last``, the number of an epoch, or the path of a ``*.weights.h5`` file.
    network : str
        ``g``, the generator, or ``d``, the discriminator.

    Raises
    ------
    UserError
        If there is no such file; the message names those that there are.
    """
    models = Path(run_folder) / "models"
    if str(weights).endswith(".h5"):
        path = Path(weights)
    elif str(weights).isdigit():
        path = models / f"{network}_cosmo{int(weights):04d}.weights.h5"
    else:
        path = models / f"{network}_cosmo_{weights}.weights.h5"
    if not path.is_file():
        names = sorted(found.name for found in models.glob(f"{network}_cosmo*.weights.h5"))
        raise UserError(f"no weights {path}; there are: {', '.join(names) if names else f'none in {models}'}")
    return path


# Keys that decide which weights fit which networks.
_ARCHITECTURE = (
    "img_dim",
    "noise_vect_len",
    "nlayers",
    "convkern",
    "convstride",
    "datascale",
    "nconvfilters",
    "ndeconvfilters",
    "multichannel",
    "generator_norm",
    "full_size_filters",
    "discriminator_norm",
    "match_histogram",
)


def stamp_weights(path: str | Path, config: Config, step: int, scores: dict[str, float] | None) -> None:
    """Add to a weights file what it belongs to: tag, step, version, architecture, and the scores it was kept for."""
    values = config.as_dict()
    architecture = {key: values[key] for key in _ARCHITECTURE}
    with h5py.File(path, "r+") as file:
        file.attrs.update({"tag": config.tag, "step": step, "version": VERSION})
        file.attrs["architecture"] = json.dumps(architecture)
        file.attrs["scores"] = json.dumps(scores or {})


def check_weights(path: str | Path, config: Config) -> dict:
    """Make sure that a weights file fits a configuration.

    Returns
    -------
    dict
        Its attributes `tag`, `step`, `version` and `scores`; empty for a file without them.

    Raises
    ------
    UserError
        If the file is damaged, or of another architecture; the message names the keys that differ.
    """
    try:
        with h5py.File(path) as file:
            stamp = dict(file.attrs)
    except HDF5_DAMAGE as error:
        raise UserError(f"weights {path} are damaged or no weights file: {error}") from None
    if "architecture" not in stamp:
        return {}
    values, saved = config.as_dict(), json.loads(stamp["architecture"])
    # Weights from before a key was there are of its default, or where it has none not known to differ.
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in DEFAULTS.items()}
    saved = values | defaults | saved
    differ = [f"{key} is {values[key]}, was {saved[key]}" for key in _ARCHITECTURE if values[key] != saved[key]]
    gone = {key: saved[key] for key, off in REMOVED_KEYS.items() if saved.get(key, off) != off}
    differ += [f"{key}, which is no longer there, was {value}" for key, value in gone.items()]
    if differ:
        raise UserError(f"weights {path} do not fit the configuration of tag '{config.tag}': {'; '.join(differ)}")
    return {key: stamp[key] for key in ("tag", "version")} | {
        "step": int(stamp["step"]),
        "scores": json.loads(stamp["scores"]),
    }
