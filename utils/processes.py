"""Work shared by processes, which end with the one that started them, whatever ends it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from utils.cli import CleanExit, UserError


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
            processes.append(process)
            connection.send(next(waiting))
            busy[connection] = (process, item)
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                process, item = busy.pop(connection)
                try:
                    result = connection.recv()
                except EOFError:
                    raise _death(process) from None
                following = next(waiting, None)
                if following is not None:
                    connection.send(following)
                    busy[connection] = (process, following)
                yield item, result
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _start(function: Callable):
    """A process that waits for items; gives its connection and the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(function, there), daemon=True)
    # Ctrl-C reaches all processes of a terminal; only this one is to act upon it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    there.close()
    return here, process


def _serve(function: Callable, connection) -> None:
    """Work until there is nobody to work for."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_attempt(function, connection.recv()))


def _attempt(function: Callable, item):
    try:
        return function(item)
    except (CleanExit, OSError) as error:
        return error


def _death(process) -> Exception:
    process.join()
    if process.exitcode < 0:
        return UserError("a process was killed, probably for want of memory: use fewer --jobs")
    return RuntimeError(f"a process ended with exit code {process.exitcode}")
