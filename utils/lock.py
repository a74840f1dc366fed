"""One writer per run folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from utils.cli import UserError

# How often a running process touches its lock, and when the silence of another host's means that it is dead [s].
HEARTBEAT = 15.0
SILENCE = 60.0
# What file systems without locks say: there the heartbeat has to do.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def single_writer(path: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a run while the block runs.

    The lock is the kernel's (flock), which ends with the process, however it dies: what a dead process of this host
    left behind is free at once. Since not every shared file system carries such locks from host to host, the file also
    names its holder, and its time of change is the holder's heartbeat.

    Parameters
    ----------
    path : path
        The lock file, made when missing; it stays, empty, when the lock is given back.

    Raises
    ------
    UserError
        If another process holds the lock; the message names host and process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(descriptor, Path(path))
        stopped = threading.Event()
        heart = threading.Thread(target=_beat, args=(descriptor, stopped), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            stopped.set()
            heart.join()
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path) -> None:
    holder = _read(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(path, holder) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if holder.get("host") == socket.gethostname() and _is_alive(holder["process"]):
            raise _in_use(path, holder) from None
    # The time of the file system, not of this host: their clocks may differ.
    age = _now(path) - os.fstat(descriptor).st_mtime
    if holder and holder["host"] != socket.gethostname() and age < SILENCE:
        raise _in_use(path, holder | {"seconds since its last heartbeat": round(age)})
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)


def _in_use(path: Path, holder: dict) -> UserError:
    who = ", ".join(f"{key} {value}" for key, value in holder.items()) or "unknown"
    return UserError(
        f"{path.parent} is in use by another process ({who}); wait for it, stop it, or choose another RUN "
        f"(a dead process of another host is recognised {SILENCE:.0f} s after its last heartbeat)"
    )


def _read(descriptor: int) -> dict:
    """Who holds the lock; empty if nobody does, or if they are only just writing it down."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and "host" in holder else {}


def _now(path: Path) -> float:
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _beat(descriptor: int, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT):
        # A network file system may be out of reach for a moment; the next beat counts.
        with contextlib.suppress(OSError):
            os.utime(descriptor)


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """Wait until no other process is in a block of the same lock file, on file systems that have locks.

    Parameters
    ----------
    path : path
        The lock file, made when missing; it stays.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
