"""What TensorBoard shows."""

from pathlib import Path

import numpy as np
import tensorflow as tf


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
        """Write one checkpoint's scalars and images (H, W, 3 or 4), uint8, and bring them to the disk."""
        with self._writer.as_default(step=step):
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value)
            for tag, image in images.items():
                tf.summary.image(tag, image[None])  # (H, W, C) -> (1, H, W, C)
        self._writer.flush()

    def close(self) -> None:
        """Close the current file."""
        self._writer.close()
