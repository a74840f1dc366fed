"""The log of a run: everything into train.log, what a person wants to see on the terminal too."""

import logging
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("exagan")


class _AboveProgressBar(logging.Handler):
    """Prints above a progress bar, where there is one, instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record))


def start_log(path: str | Path) -> None:
    """Send the log to a file (all of it, appended) and to standard output (from level INFO on)."""
    log.setLevel(logging.DEBUG)
    log.propagate = False
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    to_terminal = _AboveProgressBar(logging.INFO)
    to_terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers = [to_file, to_terminal]
