"""What the settings of TensorFlow that could speed a step up do to it: XLA, threads, layout, oneDNN.

python -m benchmarks.bench_settings [--tag demo] [--steps 40] [--set precision=float32]

Each setting is timed in a process of its own, since TensorFlow reads them once. The first line is what training does
by itself; the others can be had by the environment variables, keys and options that are named, but for the layout: to
let convolutions compute channels_last where TensorFlow, without XLA on a GPU, would rearrange them is tried here only.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks.bench_training import calls_in_a_row, made_up_training_set, median_seconds, start, step_parser
from utils.cli import run

# Name: environment variables, and options of the process that is timed.
SETTINGS = {
    "as train.py runs it": ({}, []),
    "datafmt: channels_last": ({}, ["--set", "datafmt=channels_last"]),
    "TF_NUM_INTRAOP_THREADS=1": ({"TF_NUM_INTRAOP_THREADS": "1"}, []),
    "TF_NUM_INTRAOP_THREADS=2": ({"TF_NUM_INTRAOP_THREADS": "2"}, []),
    "TF_NUM_INTEROP_THREADS=1": ({"TF_NUM_INTEROP_THREADS": "1"}, []),
    "TF_ENABLE_ONEDNN_OPTS=0": ({"TF_ENABLE_ONEDNN_OPTS": "0"}, []),
    "--no-xla, nothing rearranged": ({}, ["--no-xla", "--no-layout-optimizer"]),
    "--xla": ({}, ["--xla"]),
    "--no-xla": ({}, ["--no-xla"]),
}


def time_step(arguments) -> None:
    """Be one process: print the seconds that compiling took, and the median of a step."""
    machine, config = start(arguments.tag, arguments.overrides, xla=arguments.xla)
    import tensorflow as tf

    if arguments.no_layout_optimizer:
        tf.config.optimizer.set_experimental_options({"layout_optimizer": False})

    from networks.gan import GAN

    gan = GAN(config, total_steps=10**6, training_set=made_up_training_set(config), xla=machine.xla)
    shape = (config.batchsize, config.img_dim, config.img_dim)
    densities = tf.constant(np.random.default_rng(1).poisson(1.0, shape).astype(np.int16))
    first = tf.constant(1, tf.int64)

    def step():
        return gan._compiled_step((densities,), first, False)

    begun = time.perf_counter()
    float(step()["g_loss"])
    compiling = time.perf_counter() - begun
    print(compiling, median_seconds(lambda: step()["g_loss"], arguments.steps, calls_in_a_row(machine)))


def main():
    """Measure and print, or be one of the processes that are measured."""
    description = "Time a training step, without R1 penalty, under settings of TensorFlow."
    parser = step_parser(description, tag="demo", steps=40)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-layout-optimizer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        time_step(arguments)
        return
    print(f"a step of '{arguments.tag}' {' '.join(arguments.overrides)}, first and median of {arguments.steps}")
    usual = None
    for name, (environment, options) in SETTINGS.items():
        command = [sys.executable, "-m", "benchmarks.bench_settings", "--worker", "--tag", arguments.tag]
        command += ["--steps", str(arguments.steps), *options]
        command += [f"--set={override}" for override in arguments.overrides]
        done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
        compiling, seconds = map(float, done.stdout.split()[-2:])
        usual = usual or seconds
        print(
            f"  {name:30}{compiling:8.1f} s{seconds:9.4f} s  {seconds / usual:6.2f} times the first line's", flush=True
        )


if __name__ == "__main__":
    run(main)
