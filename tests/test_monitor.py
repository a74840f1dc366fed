"""What counts as best at a TensorBoard checkpoint."""

import dataclasses
import math

import numpy as np
import pytest

from tests.log_normal import slices
from utils.cli import UserError
from utils.config import Config
from utils.monitor import Monitor, best_scores
from utils.runs import RunFolder
from utils.slices import open_slices


@pytest.fixture
def monitor_of(tmp_path, tiny_config):
    """A monitor of a run that is judged by the given metric."""

    def make(metric, images, **changes) -> Monitor:
        config: Config = dataclasses.replace(tiny_config, img_dim=32, best_metric=metric, **changes)
        for split in ("train", "val"):
            np.save(tmp_path / f"raw_{split}.npy", images[..., np.newaxis])
        folder = RunFolder("tiny", metric, tmp_path)
        folder.create()
        return Monitor(config, open_slices("raw", "val", 32, tmp_path), float(images.mean()), folder)

    return make


def checkpoints(monitor, *sets):
    """The names of the best weights at checkpoints that draw these sets."""
    losses = {"g_loss": 1.0}
    return [
        monitor.checkpoint(step, 0.0, losses, lambda number, seed, images=images: images[:number], {})
        for step, images in enumerate(sets)
    ]


def test_names_of_best_weights(tiny_config):
    assert best_scores(tiny_config) == {"chisq": "best", "chisq_pspect": "best_pspect"}
    config = dataclasses.replace(tiny_config, best_metric="figure_of_merit")
    assert best_scores(config) == {"figure_of_merit": "best", "chisq_pspect": "best_pspect"}
    with pytest.raises(UserError, match=r"best_metric.*chisq or figure_of_merit"):
        dataclasses.replace(tiny_config, best_metric="ks")


@pytest.mark.parametrize("metric", ["chisq", "figure_of_merit"])
def test_best_is_best_by_the_metric(monitor_of, metric):
    images = slices(range(4))[0]
    monitor = monitor_of(metric, images)
    shuffled = np.random.default_rng(0).permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
    sets = slices(range(10, 14))[0] * 1.6, shuffled, slices(range(20, 24))[0]
    found = checkpoints(monitor, *sets)
    values = [evaluation.scores[metric] for evaluation in found]
    best = math.inf
    for value, evaluation in zip(values, found, strict=True):
        assert ("best" in evaluation.improved) == (value < best)
        best = min(best, value)
    assert monitor.best[metric] == best
    # The shuffled pixels have the very histogram of the real slices, and nothing else of them.
    assert np.argmin(values) == (1 if metric == "chisq" else 2)
    assert "bispectrum" not in found[0].scores
    assert found[2].scores["figure_of_merit"] < 4 < found[0].scores["figure_of_merit"]


def test_it_draws_and_compares_with_as_many_slices_as_configured(monitor_of):
    images = slices(range(2))[0]
    drawn = []

    def sample(number, seed):
        drawn.append(number)
        return images[:number]

    monitor = monitor_of("chisq", images, checkpt_samples=7)
    monitor.checkpoint(0, 0.0, {}, sample, {})
    assert drawn == [7]
    # One of each seventh of the set.
    ends = np.arange(1, 8) * len(images) // 7
    places = [int(np.flatnonzero((images == image).all(axis=(1, 2)))[0]) for image in monitor._real_images]
    np.testing.assert_array_equal(np.searchsorted(ends, places, side="right"), range(7))


def test_costly_checkpoints_are_told_once(monitor_of, caplog, monkeypatch):
    monkeypatch.setattr(Monitor, "_pictures", lambda *_: {})  # they take most of the time
    images = slices(range(2))[0]

    def run(shares, **keys):
        monitor = monitor_of("chisq", images, checkpt_batch=3, **keys)
        caplog.clear()
        for step, share in enumerate(shares):
            timing = {"monitor_share": share / 2, "matching_share": share / 2}
            monitor.checkpoint(step, 0.0, {}, lambda number, seed: images[:number], timing)
        return [record.getMessage() for record in caplog.records]

    assert run([0.9, 0.9, 0.05, 0.04]) == []  # the first checkpoint comes after a single step
    (message,) = run([0.0, 0.0, 0.1, 0.1])
    # Of 3 steps between checkpoints, 10 % to 5 %: 0.1/0.9 · 0.95/0.05 = 2.1 times as many.
    assert "10.0 %" in message
    assert "checkpt_batch of 7 or more (now 3)" in message
    assert "checkpt_samples (now 512)" in message
    assert run([0.0, 0.0, 0.09, 0.09], match_histogram=True) == []
    (message,) = run([0.0, 0.0, 0.2, 0.2], match_histogram=True)
    # 20 % to 10 %: 0.2/0.8 · 0.9/0.1 = 2.25 times as many.
    assert "checkpt_batch of 7 or more (now 3)" in message


def test_merit_needs_a_noise_floor(monitor_of):
    images = slices([0])[0][:2]
    with pytest.raises(UserError, match=r"best_metric.*2 validation slice"):
        monitor_of("figure_of_merit", images)
    evaluation = checkpoints(monitor_of("chisq", images), images)[0]
    assert "best" in evaluation.improved
    assert np.isnan(evaluation.scores["figure_of_merit"])
