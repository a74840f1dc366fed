"""What all command lines share: one-line errors, exit codes, help that shows defaults."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 75

# Conditions of the machine that the user can mend; any other OSError is a programming error and keeps its traceback.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """Something the user can mend. The message says what, where, what is allowed and what to do."""

    exit_code = EXIT_USER_ERROR


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

    `UserError` and its subclasses end in one line on stderr and their own exit code, as do a full disk and a
    missing permission. Ctrl-C ends quietly. Any other exception is a programming error and keeps its traceback.
    """
    script = os.path.basename(sys.argv[0])
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{script}: error: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        where = error.filename or error.filename2 or "output"
        reason = " ".join(str(error.strerror).split())
        print(f"{script}: error: cannot write or read {where}: {reason}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    sys.exit(0)
