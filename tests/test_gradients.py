"""Derivatives by `networks.gradients`, and that in a training step nothing depends on which thread is done first."""

import dataclasses
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from networks.gan import GAN
from networks.gradients import pairwise_gradients
from networks.losses import TrainingSet

RECIPE = {
    "discriminator_norm": "none",
    "r1_weight": 0.5,
    "r1_interval": 2,
    "r1_coordinate": "log_density",
    "critic_weight": 0.5,
    "spectral_weight": 0.1,
    "count_noise": True,
    "ema_decay": 0.9,
}


def graph_of(function, *arguments) -> dict:
    """What TensorFlow makes of a function before it first runs it: operations by name."""
    context.enable_run_metadata()
    try:
        function(*arguments)
        graphs = context.export_run_metadata().partition_graphs
    finally:
        context.disable_run_metadata()
    # Beside it are those of single operations, such as the conversion of the batch.
    return {node.name: node for node in max(graphs, key=lambda graph: len(graph.node)).node}


def source(edge: str) -> str:
    """The operation that an input comes from, or that is to be waited for."""
    return edge.lstrip("^").split(":")[0]


def without_order(graph: dict) -> list[tuple]:
    """Writing operations, each with another one on the same variable that it neither waits for nor precedes."""
    followers, users = defaultdict(list), defaultdict(list)
    for node in graph.values():
        for edge in node.input:
            followers[source(edge)].append(node.name)
        if node.op in ("ReadVariableOp", "ResourceApplyAdam") or node.op.startswith("Assign"):
            for edge in node.input[: 3 if node.op == "ResourceApplyAdam" else 1]:
                users[source(edge)].append(node.name)

    @cache
    def later(name):
        found, waiting = set(), [name]
        while waiting:
            new = set(followers[waiting.pop()]) - found
            found |= new
            waiting += new
        return found

    pairs = [
        (write, other)
        for names in users.values()
        for write in names
        for other in names
        if graph[write].op != "ReadVariableOp" and other != write
    ]
    assert pairs
    return [(write, other) for write, other in pairs if other not in later(write) and write not in later(other)]


def terms(node) -> int:
    return sum(not edge.startswith("^") for edge in node.input)


def test_known_derivatives_of_several_paths():
    """Of (x + 2x + x³) y: (3 + 3x²) y by x, 3x + x³ by y, and 6xy by x twice."""

    @tf.function
    def derivatives(x, y):
        total = (x + 2.0 * x + x**3) * y
        by_x, by_y = pairwise_gradients(total, [x, y])
        return by_x, by_y, *pairwise_gradients(by_x, [x])

    values = derivatives(tf.constant(2.0), tf.constant(5.0))
    np.testing.assert_allclose(values, [75.0, 14.0, 60.0])


@pytest.mark.parametrize(
    "options",
    [
        {"dequantise": True, "DG_update_ratio": 4},
        RECIPE | {"r1_coordinate": "images", "precision": "mixed_bfloat16"},
        RECIPE,
    ],
    ids=["old keys", "R1 by images, bfloat16", "recipe"],
)
def test_a_step_leaves_nothing_to_the_order_of_threads(tiny_config, options):
    """It adds in pairs, and reads every variable before or after it is written."""
    config = dataclasses.replace(tiny_config, **options)
    spectra = {"spectra_mean": np.zeros(10), "spectra_sigma": np.ones(10)}
    gan = GAN(config, 5, TrainingSet(power_s=np.ones(4), power=np.ones(4), **spectra))
    densities = np.random.default_rng(2).poisson(3.0, (6, 8, 8)).astype(np.int16)
    while gan.next_step_compiles:  # with and without R1 penalty
        graph = graph_of(gan.train_on_densities, densities)
        sums = [node for node in graph.values() if node.op == "AddN"]
        assert {terms(node) for node in sums} == {2}
        assert not without_order(graph)
