"""Reading what a run left, for comparing runs."""

import json

import h5py
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def metrics(run):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


def events(run):
    """(tag, step, value) of everything TensorBoard has, images as bytes."""
    accumulator = EventAccumulator(str(run / "logs"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return [
        (tag, event.step, event.tensor_proto.SerializeToString())
        for tag in accumulator.Tags()["tensors"]
        for event in accumulator.Tensors(tag)
    ]


def weights(run, name):
    with h5py.File(run / "models" / f"{name}.weights.h5") as file:
        found = {}
        file.visititems(lambda path, node: found.update({path: node[...]}) if isinstance(node, h5py.Dataset) else None)
    return found


def assert_same_run(one, other):
    assert metrics(one) == metrics(other)
    seen, expected = events(one), events(other)
    assert [event[:2] for event in seen] == [event[:2] for event in expected]
    assert [event[:2] for event, wanted in zip(seen, expected, strict=True) if event != wanted] == []
    names = sorted(path.name for path in (one / "models").iterdir())
    assert names == sorted(path.name for path in (other / "models").iterdir())
    for name in names:
        first, second = (weights(run, name.removesuffix(".weights.h5")) for run in (one, other))
        assert first.keys() == second.keys()
        for path in first:
            np.testing.assert_array_equal(first[path], second[path])
