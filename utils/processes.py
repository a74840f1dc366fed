"""Work shared by processes, which end with the one that started them, whatever ends it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from utils.cli import CleanExit, UserError

_TERMINATED = 128 + signal.SIGTERM


def map_unordered(function: Callable, items: Sequence, jobs: int) -> Iterator[tuple[object, object]]:
    """Call a function of every item, in `jobs` processes, or in this one if `jobs` is 1.

    Parameters
    ----------
    function : callable
        Of one argument; for several processes it must be possible to pickle it, its arguments and results.
    items : sequence
    jobs : int

    Yields
    ------
    object, object
        An item, and the result or the `CleanExit` or `OSError` that it raised, as soon as they are known.

    Raises
    ------
    UserError
        If a process was killed.
    RuntimeError
        If a process ended by a programming error; its traceback is on stderr by then.
    """
    if jobs == 1:
        for item in items:
            yield item, _attempt(function, item)
        return
    waiting, processes, busy = iter(items), [], {}
    try:
        for item in items[:jobs]:
            connection, process = _start(function)
            processes.append((connection, process))
            connection.send(next(waiting))
            busy[connection] = (process, item)
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                process, item = busy.pop(connection)
                try:
                    result = connection.recv()
                    following = next(waiting, None)
                    if following is not None:
                        connection.send(following)
                        busy[connection] = (process, following)
                except (EOFError, ConnectionError):
                    raise _death(process) from None
                yield item, result
    finally:
        for connection, process in processes:
            process.terminate()
            # A signal may get lost where Python ignores exceptions, in a destructor: then there is nobody to work for.
            connection.close()
        for _, process in processes:
            process.join()


def _start(function: Callable):
    """A process that waits for items; gives its connection and the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(function, there), daemon=True)
    with _undisturbed():
        process.start()
    there.close()
    return here, process


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start processes that never hear Ctrl-C, which reaches all of a terminal: only this one is to act upon it.

    Signals that arrive meanwhile are put off, lest a process starts that nobody knows of.
    """
    # What multiprocessing starts for itself on first use would end the blocking.
    multiprocessing.resource_tracker.ensure_running()
    arrived = []
    handlers = {n: signal.signal(n, lambda number, _: arrived.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what starts
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _serve(function: Callable, connection) -> None:
    """Work until there is nobody to work for."""
    told = []

    def leave(number, _) -> NoReturn:
        """End, undisturbed by another signal while what is unfinished is deleted."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told.append(number)
        sys.exit(_TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                connection.send(_attempt(function, connection.recv()))
    except Exception:
        # HDF5 makes an error of its own of what is raised where it calls Python.
        if told:
            sys.exit(_TERMINATED)
        raise
    # It is on its way out anyway.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _attempt(function: Callable, item):
    try:
        return function(item)
    except (CleanExit, OSError) as error:
        return error


def _death(process) -> Exception:
    process.join()
    if process.exitcode < 0 or process.exitcode == _TERMINATED:
        return UserError("a process was killed, probably for want of memory: use fewer --jobs")
    return RuntimeError(f"a process ended with exit code {process.exitcode}")
