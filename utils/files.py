"""Files that are either complete or not there: written beside, then renamed."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.cli import UserError

# What an HDF5 file holds besides the data, generously [bytes].
HDF5_OVERHEAD = 200_000
# What h5py raises where a file is damaged, depending on where.
HDF5_DAMAGE = (OSError, ValueError, TypeError, LookupError, RuntimeError)
_PARTIAL = ".partial"
# Nobody writes one file for a day: what is older was left behind by a process that was killed [s].
_LEFT_BEHIND = 86400


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, size: int = 0) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, delete it otherwise.

    The temporary name carries the process number and something random, so that no two processes of any host share one,
    and ends as the final one, since several libraries choose the format by the suffix. The data reach the disk (fsync)
    before the rename: after a power failure there is the old file or the new one, never a torn one.

    Parameters
    ----------
    path : path
        The file to be written; its folder must exist.
    size : int
        Bytes that the file may need. Whether the disk has as many is tried first: a full disk then raises an error
        here, where HDF5, which many files are written with, may crash the process. Nothing is kept free afterwards,
        since HDF5 empties the file when it opens it; `utils.slice_writer` is for files that take long to write.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OSError
        If the disk is full or the file cannot be written; it names `path`.
    """
    path = Path(path)
    temporary = partial_path(path)
    try:
        if size:
            _try_room(temporary, path, size)
        yield temporary
        publish(temporary, path)
    except OSError as error:
        if error.errno is None or (error.filename is not None and str(error.filename) != str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process uses, on any host; hidden, and with the same suffix."""
    return path.with_name(f"{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}.{path.name}")


def clear_left_behind(paths: Iterable[Path]) -> None:
    """Delete, among these, what processes that were killed a day ago or more have not finished."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process may be clearing, too; or they are somebody else's
            if path.name.startswith(_PARTIAL) and path.stat().st_mtime < time.time() - _LEFT_BEHIND:
                path.unlink()


def publish(temporary: Path, path: Path) -> None:
    """Give a file that is complete its final name, durably."""
    with open(temporary, "rb+") as written:
        os.fsync(written.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _try_room(temporary: Path, path: Path, size: int) -> None:
    with open(temporary, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_copy(path: Path, copy: Path) -> None:
    """Make `copy` hold what `path` holds now, also when another file takes the place of `path` later.

    A hard link, which costs neither time nor room; a true copy on file systems without them. Only for files that are
    replaced, never written to. Atomic. Raises `OSError` if the disk is full.
    """
    with atomic_path(copy) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def check_writable(path: Path) -> None:
    """Refuse a folder that could not be made or written, by looking at the nearest one that exists."""
    existing = path
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"cannot make the folder {path}: {existing} is no folder; move it out of the way")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {existing}, where {path} belongs; change its permissions")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the folder's own entry has to reach the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
