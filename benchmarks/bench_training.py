"""What a training step and a TensorBoard checkpoint cost, beside the rate of a matrix product on the same machine.

python -m benchmarks.bench_training [--tag base] [--steps 5] [--step-only] [--no-xla] [--set precision=float32]

The operations of a step are counted from the networks: a (transposed) convolution costs kernel² · channels in ·
channels out multiply-adds at every pixel of its smaller side, a dense layer the size of its kernel. A forward pass
costs that once, its backward pass twice (with respect to weights and to inputs) or once (inputs alone). One
multiply-add counts as two operations; batch norm, activations and optimisers are left out.

A GPU works while the next operations are being queued, and waiting for one result at a time would be measured instead:
there, twenty products or steps are timed together and what they took is divided by twenty, steps with an R1 penalty
included. On a CPU the median leaves those out, where R1 is not in every second step.
"""

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from networks.device import Machine, avoid_failing_fusion, start_tensorflow
from utils.cli import ArgumentParser, run
from utils.config import Config, load_config
from utils.runs import RunFolder
from utils.slices import open_slices


def multiply_adds(network) -> int:
    """Multiply-adds of one forward pass of one image."""
    total = 0
    for layer in network.layers:
        kernel = next((w for w in layer.weights if w.name == "kernel"), None)
        if kernel is None:
            continue
        pixels = 1
        if len(kernel.shape) == 4:
            # The side that is not strided over: the output of a convolution, the input of a transposed one.
            sides = [tensor.shape for tensor in (layer.input, layer.output)]
            pixels = min(shape[1] * shape[2] for shape in sides)
        total += int(np.prod(kernel.shape)) * pixels
    return total


def operations_per_step(gan, config: Config) -> float:
    """Floating-point operations of one training step without penalties."""
    generator, discriminator = (multiply_adds(network) for network in (gan.generator, gan.discriminator))
    # The generator runs forward and backward once; the discriminator DG_update_ratio times, and once more for the
    # generator's update, there backward to its input alone.
    return 2 * config.batchsize * (3 * generator + (3 * config.DG_update_ratio + 2) * discriminator)


def matrix_product_rate(dtype: str, in_a_row: int = 1, side: int = 4096, repeats: int = 3) -> float:
    """Floating-point operations per second of a matrix product."""
    import tensorflow as tf

    matrix = tf.cast(tf.random.stateless_normal((side, side), (1, 2)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.cast(matrix @ matrix, tf.float32)))
    return 2 * side**3 / median_seconds(product, repeats, in_a_row)


def median_seconds(call, repeats: int, in_a_row: int = 1) -> float:
    """Median time of a call after one that is not counted; its result, if it is a tensor, is waited for after so many
    calls."""

    def finish(result):
        if result is not None:
            result.numpy()

    finish(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(in_a_row):
            result = call()
        finish(result)
        seconds.append((time.perf_counter() - start) / in_a_row)
    return float(np.median(seconds))


def step_parser(description: str, tag: str, steps: int) -> ArgumentParser:
    """The options of a benchmark of a tag's step, with their defaults."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--tag", default=tag, help="tag of config.yaml")
    parser.add_argument(
        "--steps", type=int, default=steps, help="training steps to time (on a GPU, twenty times as many)"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key (repeatable)"
    )
    return parser


def start(tag: str, overrides: list[str], **devices) -> tuple[Machine, Config]:
    """Start TensorFlow on devices that `start_tensorflow` is told of, and resolve a tag's configuration on them."""
    config = load_config("config.yaml", tag, overrides)
    machine = start_tensorflow(**devices, batch_pixels=config.batch_pixels)
    from networks.precision import choose_precision

    avoid_failing_fusion(config.discriminator_norm)
    return machine, dataclasses.replace(config, precision=choose_precision(config.precision, machine.strategy))


def calls_in_a_row(machine: Machine) -> int:
    """How many calls to time together."""
    return 20 if machine.description["kind"] == "GPU" else 1


def forget_peak(machine: Machine) -> None:
    """Begin a new period of `peak_memory`, where that can be done: on a GPU."""
    if machine.description["kind"] == "GPU":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")


def peak_memory(machine: Machine) -> float:
    """Most memory in use so far [GiB]: TensorFlow's own on a GPU, else all of this process's."""
    if machine.description["kind"] == "GPU":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def made_up_training_set(config: Config):
    """What a training set would be measured for, in numbers that cost a step as much as real ones."""
    from networks.losses import TrainingSet
    from networks.matching import measure_tail

    power, spectra = np.ones(config.img_dim // 2), np.ones(config.img_dim + 2)
    tail = measure_tail([np.random.default_rng(2).lognormal(-1.0, 1.5, 2**22)], False, config)
    return TrainingSet(power, power, spectra, spectra, tail)


def checkpoint_seconds(gan, config: Config, rng) -> float:
    """Median time of a TensorBoard checkpoint, the histogram matched as it is until the last quarter of a run."""
    from utils.monitor import Monitor

    with tempfile.TemporaryDirectory() as folder:
        images = rng.poisson(1.0, (config.checkpt_samples, config.img_dim, config.img_dim, 1)).astype(np.int16)
        for split in ("train", "val"):
            np.save(Path(folder) / f"raw_{split}.npy", images)
        with open_slices("raw", "val", config.img_dim, folder) as validation:
            run_folder = RunFolder(config.tag, "0", folder)
            run_folder.create()
            monitor = Monitor(config, validation, 1.0, run_folder)
            losses = gan.mean_losses()

            def checkpoint():
                gan.match_histogram()
                monitor.checkpoint(gan.step, 0.0, losses, gan.sample, {})

            return median_seconds(checkpoint, 3)


def divergence_check_seconds(gan, densities, repeats: int) -> tuple[float, float]:
    """Mean difference between steps with and without the look for numbers that are not finite, and its error.

    Both kinds of step are of the same networks (two networks differ by a per cent, from where they lie in memory). They
    take turns, and differences are between neighbours, so that a busy machine weighs on both alike; the largest and
    smallest tenth of the differences are left out.
    """
    import tensorflow as tf

    def step(note_divergence):
        gan._note_divergence = note_divergence  # in the place of the method, until the step is compiled
        update = tf.function(lambda *arguments: gan._on_all_replicas(gan._draw_and_update, (densities,), *arguments))

        def seconds(with_r1: bool) -> float:
            gan._note_divergence = note_divergence
            start = time.perf_counter()
            float(update(tf.constant(gan.step, tf.int64), with_r1)["g_loss"])
            return time.perf_counter() - start

        return seconds

    watched, unwatched = step(gan._note_divergence), step(lambda *_: None)
    differences = []
    for with_r1 in {False, gan.config.r1_weight > 0}:
        for compiled in (watched, unwatched):
            compiled(with_r1)
    for repeat in range(repeats):
        with_r1 = gan.config.r1_weight > 0 and repeat // 2 % gan.config.r1_interval == 0
        seconds = {run: run(with_r1) for run in ((watched, unwatched) if repeat % 2 else (unwatched, watched))}
        differences.append(seconds[watched] - seconds[unwatched])
    del gan._note_divergence
    kept = np.sort(differences)[repeats // 10 : repeats - repeats // 10]
    return float(np.mean(kept)), float(np.std(kept) / len(kept) ** 0.5)


def drawing_seconds(gan, number: int = 2048) -> float:
    """Median time of drawing a slice, in a set of so many."""

    def draw():
        gan.sample(number, seed=0)

    return median_seconds(draw, 3) / number


def saving_seconds(gan) -> float:
    """Median time of saving the complete state, read back included."""
    from utils.checkpoints import save_checkpoint

    with tempfile.TemporaryDirectory() as folder:

        def save():
            arrays = {name: variable.numpy() for name, variable in gan.state().items()}
            save_checkpoint(folder, gan.step, arrays, {}, keep=2)

        return median_seconds(save, 3)


def main():
    """Measure and print."""
    description = "Time the training step and the TensorBoard checkpoint of a tag."
    parser = step_parser(description, tag="base", steps=5)
    parser.add_argument(
        "--xla", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help="default: on a single GPU"
    )
    parser.add_argument("--step-only", action="store_true", help="leave out what is around the step")
    arguments = parser.parse_args()
    machine, config = start(arguments.tag, arguments.overrides, xla=getattr(arguments, "xla", None))
    from networks.gan import GAN

    print(f"training step of '{config.tag}', {config.precision}, on {machine.description}")
    dtype = config.precision.removeprefix("mixed_")
    in_a_row = calls_in_a_row(machine)
    rate = matrix_product_rate(dtype, in_a_row)
    forget_peak(machine)
    rng = np.random.default_rng(1)
    gan = GAN(config, total_steps=10**6, training_set=made_up_training_set(config), xla=machine.xla)
    densities = rng.poisson(1.0, (config.batchsize, config.img_dim, config.img_dim)).astype(np.int16)
    step = median_seconds(lambda: gan.train_on_densities(densities)["g_loss"], arguments.steps, in_a_row)
    operations = operations_per_step(gan, config)
    print(f"  4096² matrix product, {dtype:12}{rate / 1e9:9.1f} GFLOP/s")
    print(
        f"  step of {config.batchsize:3d} images                {step:9.3f} s, {config.batchsize / step:.1f} images/s"
    )
    print(f"  operations in a step              {operations / 1e9:9.1f} GFLOP")
    print(f"  rate of the step / matrix product {operations / step / rate:9.1%}")
    print(f"  peak memory of the steps          {peak_memory(machine):9.2f} GiB")
    if not arguments.step_only:
        print_around_the_step(gan, config, step, rng)
        if machine.description["kind"] == "CPU":  # step by step, a GPU's wait for the processor would be measured
            check, error = divergence_check_seconds(gan, densities, repeats=max(10, int(40 / step)))
            share = f"{check / step:.2%} +- {error / step:.2%} of a step"
            print(f"  divergence check                  {check:9.4f} s, {share}")


def print_around_the_step(gan, config: Config, step: float, rng) -> None:
    """Measure and print what a run does beside its steps, of so many seconds each."""
    checkpoint = checkpoint_seconds(gan, config, rng)
    between = step * config.checkpt_batch
    saving = saving_seconds(gan)
    print(f"  checkpoint of {config.checkpt_samples} samples         {checkpoint:9.2f} s")
    print(f"  its share of {config.checkpt_batch} steps            {checkpoint / (between + checkpoint):9.2%}")
    print(
        f"  saving the complete state         {saving:9.2f} s, {saving / (step * config.save_steps):.2%} of save_steps"
    )
    drawing = drawing_seconds(gan)
    print(f"  drawing a slice                   {1e3 * drawing:9.3f} ms, {1 / drawing:.0f} slices/s")
    around = checkpoint / config.checkpt_batch + saving / config.save_steps
    print(f"  both, of the time of a run        {around / (step + around):9.2%}")


if __name__ == "__main__":
    run(main)
