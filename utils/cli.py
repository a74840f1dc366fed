"""What all command lines share: one-line errors, exit codes, help that shows defaults."""

import argparse
import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 75

# Conditions of the machine that the user can mend; any other OSError is a programming error and keeps its traceback.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


class CleanExit(Exception):
    """An end without a traceback: one line on stderr and an exit code."""

    exit_code = 0
    label = ""


class UserError(CleanExit):
    """Something the user can mend. The message says what, where, what is allowed and what to do."""

    exit_code = EXIT_USER_ERROR
    label = "error: "


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that shows defaults in its help and reports a mistake in one line."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        # An abbreviated option would change its meaning when a longer one is added.
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function and leave with the exit code that its outcome deserves.

    `CleanExit` and its subclasses end in one line on stderr and their own exit code, as do a full disk, a missing
    permission and too little memory. Ctrl-C ends quietly, and so does SIGTERM unless `main` listens to it, or output
    that nobody reads any more, as after `| head`: unfinished files are deleted first. Any other exception is a
    programming error and keeps its traceback.
    """
    script, told = os.path.basename(sys.argv[0]), []

    def end(number, _) -> NoReturn:
        told.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in a shell's background it is ignored
        signal.signal(signal.SIGINT, end)
    try:
        main()
    except CleanExit as problem:
        message = " ".join(str(problem).split())
        print(f"{script}: {problem.label}{message}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        # HDF5 makes an error of its own of what is raised where it calls Python.
        if told or isinstance(error, KeyboardInterrupt):
            number = told[0] if told else signal.SIGINT
            if number == signal.SIGINT:
                print(f"{script}: interrupted", file=sys.stderr)
            sys.exit(128 + number)
        if isinstance(error, BrokenPipeError) and not _is_read(sys.stdout):
            throw_away(sys.stdout)
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, MemoryError):
            what = "not enough memory; ask for less at a time, or use a larger machine"
        elif isinstance(error, OSError) and is_mendable(error):
            what = describe(error)
        else:
            raise
        print(f"{script}: error: {what}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(0)


def _is_read(stream) -> bool:
    """Whether there still is somebody who reads an output."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def throw_away(stream) -> None:
    """Lose what is still written to an output that nobody reads.

    Python writes what it has kept back when it ends, and would end in an error of its own.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_mendable(error: OSError) -> bool:
    """Whether the user can mend it: a full disk, a quota, a missing permission."""
    return error.errno in _MENDABLE


def describe(error: OSError) -> str:
    """Such an error in one line."""
    where = error.filename or error.filename2 or "output"
    return f"cannot write or read {where}: {' '.join(str(error.strerror).split())}"
