"""What TensorBoard shows."""

import errno
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

# TensorFlow's names for what the operating system says of a full disk, a limit to files, and missing permissions.
_SYSTEM_ERRORS = {
    tf.errors.ResourceExhaustedError: errno.ENOSPC,
    tf.errors.OutOfRangeError: errno.EFBIG,
    tf.errors.PermissionDeniedError: errno.EACCES,
}


class EventLog:
    """The TensorBoard events of a run, in `folder`; a new file is begun whenever a process begins to write.

    Parameters
    ----------
    folder : path
        Made when missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = tf.summary.create_file_writer(str(self.folder))

    def write(self, step: int, scalars: dict[str, float], images: dict[str, np.ndarray]) -> None:
        """Write one checkpoint's scalars and images (H, W, 3 or 4), uint8, and bring them to the disk.

        Raises `OSError` if the disk is full.
        """
        try:
            with self._writer.as_default(step=step):
                for tag, value in scalars.items():
                    tf.summary.scalar(tag, value)
                for tag, image in images.items():
                    tf.summary.image(tag, image[None])  # (H, W, C) -> (1, H, W, C)
            self._writer.flush()
        except tuple(_SYSTEM_ERRORS) as error:
            number = _SYSTEM_ERRORS[type(error)]
            raise OSError(number, os.strerror(number), f"{self.folder}/events.out.tfevents.*") from error

    def close(self) -> None:
        """Close the current file."""
        self._writer.close()
