"""The complete state of a run on disk: one file per checkpoint, whole or absent, checked when it is read.

Beside it lie the weights that were the best when it was written, as ``state_<step>.<name>``: should the run go on from
here, later ones do not belong to it.
"""

import json
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.cli import UserError
from utils.files import atomic_path, keep_copy

FORMAT_VERSION = 1
_META = "meta"
# What reading a damaged file raises: a flipped bit can make an archive look encrypted, compressed, or of another kind.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, EOFError, OSError),
    *(LookupError, ValueError, NotImplementedError, RuntimeError),
)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: arrays by name, and whatever is not an array as plain JSON values."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict

    def weights(self) -> dict[str, Path]:
        """The weights that were saved with it: where their copies are, by the names of the files that were copied."""
        return {name: _companion(self.path, name) for name in self.meta.get("weights", [])}


def checkpoint_path(folder: str | os.PathLike, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(folder) / f"state_{step:09d}.npz"


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """Steps of which there are checkpoints, ascending."""
    names = (re.fullmatch(r"state_(\d+)\.npz", path.name) for path in Path(folder).glob("state_*.npz"))
    return sorted(int(name[1]) for name in names if name)


def _companion(checkpoint: Path, name: str) -> Path:
    return checkpoint.with_suffix(f".{name}")


def save_checkpoint(
    folder: str | os.PathLike,
    step: int,
    arrays: dict[str, np.ndarray],
    meta: dict,
    keep: int,
    weights: Sequence[Path] = (),
) -> Path:
    """Write a checkpoint beside the older ones, read it back, and only then delete all but the newest `keep`.

    Parameters
    ----------
    folder : path
        Must exist.
    step : int
    arrays : dict of str to ndarray
    meta : dict
        JSON values.
    keep : int
        At least 1.
    weights : sequence of Path
        Files to be kept with it.

    Returns
    -------
    Path
        Of the new file.

    Notes
    -----
    The file is NumPy's npz: a zip archive, uncompressed, in which every member carries its CRC-32, and no pickles.
    """
    path = checkpoint_path(folder, step)
    manifest = {name: _fingerprint(array) for name, array in arrays.items()}
    names = {"weights": [file.name for file in weights]}
    text = json.dumps(meta | names | {"step": step, "format_version": FORMAT_VERSION, "manifest": manifest})
    for file in weights:
        keep_copy(file, _companion(path, file.name))
    with atomic_path(path) as temporary:
        np.savez(temporary, **{_META: np.frombuffer(text.encode(), np.uint8)}, **arrays)
        _drop_from_memory(temporary)
        try:
            load_checkpoint(temporary)
        except ValueError as error:
            raise UserError(f"checkpoint {path} does not read back as written: {error}; is the disk failing?") from None
    # What is later is not of this course, and does not count.
    for old in [saved for saved in saved_steps(folder) if saved <= step][:-keep]:
        checkpoint_path(folder, old).unlink(missing_ok=True)
    kept = {checkpoint_path(folder, saved).stem for saved in saved_steps(folder)}
    for file in Path(folder).glob("state_*.weights.h5"):
        if file.name.partition(".")[0] not in kept:
            file.unlink(missing_ok=True)
    return path


def _fingerprint(array: np.ndarray) -> list:
    """Shape, type and CRC-32 of an array, as JSON keeps them."""
    return [list(array.shape), str(array.dtype), zlib.crc32(np.ascontiguousarray(array).tobytes())]


def _drop_from_memory(path: Path) -> None:
    """Bring a file to the disk and forget it, so that reading it back reads the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def newest_checkpoint(folder: str | os.PathLike) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest good checkpoint in a folder, None where there is none, and newer damaged ones with their damage.

    Raises
    ------
    UserError
        If there are checkpoints but all of them are damaged, or if one is of a newer version of the suite.
    """
    damaged = {}
    for step in reversed(saved_steps(folder)):
        path = checkpoint_path(folder, step)
        try:
            return load_checkpoint(path), damaged
        except ValueError as error:
            damaged[path] = str(error)
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} is good ({'; '.join(damaged.values())}); nothing was changed; bring a copy "
            f"back, or start another RUN, with --init-from if models/ has its last weights"
        )
    return None, {}


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read and check a checkpoint file.

    Raises
    ------
    ValueError
        If the file is truncated, damaged, or not of this format; the message says how.
    UserError
        If it is of a newer version of the suite.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop(_META).tobytes())
        version = meta["format_version"]
        whole = {name: _fingerprint(array) for name, array in arrays.items()} == meta.pop("manifest")
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    except MemoryError as error:
        # A flipped bit can also make an array look enormous; whoever is really out of memory has a sound file.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is None:
                raise
        raise ValueError(f"{path} is damaged: {error}") from error
    if version > FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: update this program")
    if not whole:
        raise ValueError(f"{path} is damaged: its arrays are not those that were written")
    return Checkpoint(path, arrays, meta)
