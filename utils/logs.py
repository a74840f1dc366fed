"""The log of a run: everything into train.log, what a person wants to see on the terminal too."""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils.cli import throw_away

log = logging.getLogger("exagan")


class _AboveProgressBar(logging.Handler):
    """Prints above a progress bar, where there is one, instead of through it."""

    def emit(self, record):
        try:
            tqdm.write(self.format(record))
            sys.stdout.flush()  # a file, as Slurm makes of it, would show nothing for a thousand steps
        except OSError:
            # Whoever read our output has gone, as after `| head` or Ctrl-C in a pipe: training goes on, into the file.
            log.removeHandler(self)
            throw_away(sys.stdout)


class _LogFile(logging.FileHandler):
    """A log file whose failure, on a full disk say, is the program's: not a traceback beside it."""

    def handleError(self, record):
        raise  # the error that logging has caught


def start_log(path: str | Path) -> None:
    """Send the log to a file (all of it, appended) and to standard output (from level INFO on)."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    to_file = _LogFile(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    to_terminal = _AboveProgressBar(logging.INFO)
    to_terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [to_file, to_terminal]
