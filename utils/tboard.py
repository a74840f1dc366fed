"""TensorBoard events, written past TensorFlow: its own writer keeps silent about a disk that is full."""

import io
import os
import platform
import time
from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto


class EventLog:
    """The TensorBoard events of a run, in `folder`; every process that writes begins a file of its own.

    Parameters
    ----------
    folder : path
        Must exist.
    """

    def __init__(self, folder: str | Path):
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}.v2"
        self.path = Path(folder) / name
        self._file = None

    def write(self, step: int, scalars: dict[str, float], images: dict[str, np.ndarray]) -> None:
        """Write one checkpoint's scalars and images (H, W, 3 or 4), uint8, and bring them to the disk.

        Raises `OSError` if the disk is full.
        """
        summaries = [scalar_pb(tag, value) for tag, value in scalars.items()]
        summaries += [_image_summary(tag, image) for tag, image in images.items()]
        try:
            if self._file is None:
                self._begin()
            for summary in summaries:
                self._write(Event(wall_time=time.time(), step=step, summary=summary))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno), str(self.path)) from error

    def _begin(self) -> None:
        self._file = open(self.path, "xb")  # noqa: SIM115 - stays open until the process ends
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def _image_summary(tag: str, image: np.ndarray) -> Summary:
    """A summary of one image, as TensorBoard's image plugin wants it: width, height and PNG."""
    png = io.BytesIO()
    imsave(png, image, format="png", pil_kwargs={"compress_level": 1})  # twice as fast, and no larger
    height, width = image.shape[:2]
    content = make_tensor_proto([str(width).encode(), str(height).encode(), png.getvalue()])
    metadata = create_summary_metadata(display_name=None, description=None)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=content)])
