"""What it costs to train together: several processes, or logical devices, over as many that have nothing to do with
each other.

python -m benchmarks.bench_scaling [--tag base] [--steps 4] [--batch 64]

Two processes of one thread each run at the same time, first each for itself, then coupled by
MultiWorkerMirroredStrategy over loopback; then one process with two logical devices. Each has --batch images per step.
All of them share one machine's caches and memory, so that what is missing of 100 % is the cost of exchanging gradients,
and of waiting for each other. Beside it the bytes that are averaged in a step, counted from the networks.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np

from benchmarks.bench_training import made_up_training_set, start
from tests.test_workers import free_addresses
from utils.cli import ArgumentParser, UserError, run
from utils.cluster import find_cluster
from utils.config import Config

FLOAT32 = 4  # bytes


def bytes_per_step(gan, config: Config) -> int:
    """Bytes of gradients, moving statistics and losses that are averaged over replicas in a training step."""
    sizes = [
        sum(int(np.prod(weight.shape)) for weight in weights)
        for weights in (
            gan.generator.trainable_variables,
            gan.judging_variables,
            gan.generator.non_trainable_variables + gan.discriminator.non_trainable_variables,
        )
    ]
    generator, discriminator, statistics = sizes
    return FLOAT32 * (generator + config.DG_update_ratio * discriminator + statistics + len(gan.loss_names))


def work(arguments) -> None:
    """Be one process: train on noise, print images/s and the bytes of a step."""
    machine, config = start(arguments.tag, [], choice="auto", devices=arguments.devices, cluster=find_cluster())
    from networks.gan import GAN

    local = arguments.batch * (arguments.devices or 1)
    config = dataclasses.replace(config, batchsize=arguments.batch * machine.description["replicas"])
    gan = GAN(config, total_steps=1000, training_set=made_up_training_set(config), strategy=machine.strategy)
    densities = np.random.default_rng(1).poisson(1.0, (local, config.img_dim, config.img_dim)).astype(np.int16)
    for step in range(-2, arguments.steps):
        if step == 0:
            begun = time.perf_counter()
        float(gan.train_on_densities(densities)["g_loss"])
    seconds = time.perf_counter() - begun
    print(json.dumps({"rate": local * arguments.steps / seconds, "bytes": bytes_per_step(gan, config)}))


def measure(arguments, processes: int, coupled: bool = False, devices: int = 1) -> tuple[float, int]:
    """Images/s of all processes together, and the bytes of a step."""
    addresses, started = free_addresses(processes), []
    for rank in range(processes):
        environment = os.environ | {f"TF_NUM_{kind}OP_THREADS": str(devices) for kind in ("INTRA", "INTER")}
        if coupled:
            task = {"type": "worker", "index": rank}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = [sys.executable, "-m", "benchmarks.bench_scaling", "--worker", "--tag", arguments.tag]
        command += ["--steps", str(arguments.steps), "--batch", str(arguments.batch), "--devices", str(devices)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    results = []
    for process in started:
        output, error = process.communicate()
        if process.returncode:
            raise UserError(f"a process of the benchmark failed: {error.strip().splitlines()[-1:]}")
        results.append(json.loads(output.splitlines()[-1]))
    return sum(result["rate"] for result in results), results[0]["bytes"]


def main():
    """Measure and print, or be one of the processes that are measured."""
    parser = ArgumentParser(description="Images/s of coupled processes and devices over those of uncoupled ones.")
    parser.add_argument("--tag", default="base", help="tag of config.yaml")
    parser.add_argument("--steps", type=int, default=4, help="training steps to time")
    parser.add_argument("--batch", type=int, default=64, help="images per process or device and step")
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    print(f"training '{arguments.tag}' together, {arguments.batch} images per process or device, one thread each")
    apart, _ = measure(arguments, processes=2)
    print(f"  2 processes, each for itself      {apart:9.2f} images/s")
    for name, kind in (("2 processes, coupled", {"processes": 2, "coupled": True}),
                       ("2 logical devices of one", {"processes": 1, "devices": 2})):  # fmt: skip
        together, exchanged = measure(arguments, **kind)
        print(f"  {name:34}{together:9.2f} images/s, {together / apart:.1%} of that")
    print(f"  averaged over replicas in a step  {exchanged / 1e6:9.1f} MB")


if __name__ == "__main__":
    run(main)
