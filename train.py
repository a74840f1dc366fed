#!/usr/bin/env python
"""Train a GAN on slices of simulated universes.

python train.py base 0              a new run in expts/base/run0
python train.py base 0 --resume     go on with it, or begin it when there is nothing to go on with
tensorboard --logdir expts          watch it

On several GPUs of a machine it uses all of them; started once per node, by srun or with TF_CONFIG set, the nodes train
together. SIGTERM, SIGUSR1 and Ctrl-C stop after the current step (of several processes: within print_batch steps) and
save everything; a second Ctrl-C stops at once. Exit codes: 0 done, 2 something you can mend, 3 training diverged, 75
stopped on request, to be resumed.
"""

import argparse
import contextlib
import dataclasses
import json
import shlex
import sys

import numpy as np
from tqdm import tqdm

from networks.device import (
    STRATEGIES,
    Machine,
    avoid_failing_fusion,
    is_out_of_memory,
    log_missing_bfloat16,
    start_tensorflow,
)
from utils.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint, saved_steps
from utils.cli import EXIT_DIVERGED, ArgumentParser, CleanExit, UserError, describe, is_mendable, run
from utils.cluster import find_cluster
from utils.config import Config, load_config
from utils.crew import Crew
from utils.crops import PeriodicCrops
from utils.files import HDF5_OVERHEAD, atomic_path
from utils.lock import single_writer
from utils.logs import log, start_log
from utils.messages import describe_machine, describe_slices, duration, progress_line, score_line
from utils.plan import Due, RunPlan
from utils.provenance import differences, run_record, used_xla
from utils.runs import RunFolder, check_weights, find_weights, stamp_weights
from utils.signals import Stopped, StopRequest, listen
from utils.slices import SliceSet, open_slices
from utils.timing import Stopwatch, pace
from utils.version import VERSION


class Diverged(CleanExit):
    """Training has produced something that is no longer a finite number; `where` the last good state is."""

    exit_code = EXIT_DIVERGED
    label = "error: "

    def __init__(self, what: str, where):
        super().__init__(
            f"training diverged: {what}; the last good state is in {where}; go on from it with --resume "
            f"--set learn_rate=[1e-4,1e-4] or the like"
        )


def parse_arguments():
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag", metavar="TAG", help="which configuration: a tag of the configuration file")
    parser.add_argument("run", metavar="RUN", help="number of the run, whose folder is expts/TAG/runRUN")
    parser.add_argument("--resume", action="store_true", help="go on with the run, or begin it if there is none")
    parser.add_argument("--init-from", metavar="FOLDER", help="begin with the last weights of another run's folder")
    parser.add_argument("--config", default="config.yaml", metavar="FILE", help="default: config.yaml")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key (repeatable)"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="auto",
        help="how to spread a step: single device, mirrored on several of this machine, multiworker; default: auto, by "
        "what is there",
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="use N GPUs, or on a CPU N logical devices; default: all GPUs, or one"
    )
    parser.add_argument(
        "--xla",
        action=argparse.BooleanOptionalAction,
        help="compile the step with XLA, or do not: it takes a minute, and makes steps several times faster on a GPU, "
        "slower on a CPU; default: a new run with XLA on a single GPU, without elsewhere, a resumed one as it was last "
        "started; never on several devices",
    )
    parser.add_argument(
        "--profile", action="store_true", help="say where the time of a step goes; the trace is kept in profile/"
    )
    arguments = parser.parse_args()
    if arguments.devices is not None and arguments.devices < 1:
        parser.error(f"--devices is {arguments.devices}, it must be at least 1")
    return arguments


def main():
    """Train, alone or with other workers."""
    stop = listen()
    arguments = parse_arguments()
    cluster = find_cluster() if arguments.strategy in ("auto", "multiworker") else None
    with Crew(cluster, stop) as crew:
        check_and_train(arguments, crew, stop)


def check_and_train(arguments, crew: Crew, stop: StopRequest) -> None:
    """Check everything, then train; of several workers, the first is the only one that writes."""
    # Check configuration, data and folder. Until all of them are in order, nothing is written.
    config = load_config(arguments.config, arguments.tag, arguments.overrides)
    check_devices(arguments, crew.cluster)
    check_batch(config, replicas=1)
    training = open_slices(config.dataname, "train", config.img_dim)
    validation = open_slices(config.dataname, "val", config.img_dim)
    check_slices(config, training, validation)
    crew.card = {"version": VERSION, "configuration": config.as_dict(), "training slices": describe_slices(training)}
    if not crew.is_first:
        with memory_permitting(config):
            follow(arguments, config, training, crew, stop)
        return
    folder = RunFolder(config.tag, arguments.run)
    config = folder.settled(config)
    folder.check(config, arguments.resume)
    if arguments.init_from is not None and not saved_steps(folder.checkpoints):
        for network in ("g", "d"):
            check_weights(find_weights(arguments.init_from, "last", network), config)

    folder.path.mkdir(parents=True, exist_ok=True)
    with single_writer(folder.path / "lock"):
        try:
            with memory_permitting(config):
                train(arguments, config, training, validation, folder, crew, stop)
        except OSError as error:
            if not is_mendable(error):
                raise
            raise UserError(
                f"{describe(error)}; what was saved in {folder.checkpoints} is intact: mend it and go on with --resume"
            ) from error
        finally:
            folder.discard()


@contextlib.contextmanager
def memory_permitting(config: Config):
    """Turn what is raised where memory does not suffice into an error that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory to train on batches of {config.batchsize} images of {config.img_dim} x "
            f"{config.img_dim} with these networks; start another RUN with a smaller batchsize or narrower networks, "
            f"or go on with --resume on more devices, or on one with more memory"
        ) from error


def train(
    arguments,
    config: Config,
    training: SliceSet,
    validation: SliceSet,
    folder: RunFolder,
    crew: Crew,
    stop: StopRequest,
) -> None:
    """Build everything and train: from top to bottom."""
    plan = RunPlan(config, len(training))
    checkpoint = begin_records(plan, folder)
    log.info("training slices: %s", describe_slices(training))
    log.info("validation slices: %s", describe_slices(validation))
    gan, monitor = set_up(arguments, plan, training, validation, folder, crew, checkpoint)
    from networks.profile import StepProfile

    log.info("training: %d epochs of %d steps, %d steps in all", config.Nepochs, plan.epoch_steps, plan.total_steps)
    gan.share_state()
    watch, first_step = Stopwatch(), gan.step
    batches = open_stream(plan, training, gan.step, crew)
    bar = tqdm(total=plan.total_steps, initial=gan.step, desc="train", unit="step", disable=None, dynamic_ncols=True)
    profile = StepProfile(folder.profile, first_step) if arguments.profile else None
    with batches, bar, profile or contextlib.nullcontext():
        for densities in batches:
            with watch.measure("compiling") if gan.next_step_compiles else contextlib.nullcontext():
                losses = gan.train_on_densities(densities)
            step = gan.step
            if profile:
                profile.after_step(step, losses)
            due = plan.due(step, first_step)
            stopping = asked_to_stop(gan, crew, stop, due)
            bar.update()
            if any(due) or stopping:
                check_finite(gan, folder.checkpoints)

            if due.match:
                with watch.measure("matching"), slices_finite(gan, folder.checkpoints):
                    gan.match_histogram()
            if due.log:
                log.info(progress_line(step, plan, losses, pace(watch, step - first_step, config.batchsize)))
            if due.checkpoint:
                timing = pace(watch, step - first_step, config.batchsize) | {"wait_share": batches.waited / watch.total}
                with watch.measure("monitor"), slices_finite(gan, folder.checkpoints):
                    evaluate(gan, monitor, folder, step / plan.epoch_steps, timing)
            if due.weights:
                # Epochs count from 0 in the names, as they did in the old suite.
                save_weights(gan, folder, f"{step // plan.epoch_steps - 1:04d}")
            if due.end:
                save_weights(gan, folder, "_last")
            if due.save or stopping:
                with watch.measure("saving"):
                    save_state(gan, monitor, folder, plan)
            if stopping and not due.end:
                raise Stopped(f"stopped by {stopping} after step {step}, everything is saved; go on with: {again()}")

    shares = watch.shares() | {"waiting for data": batches.waited / watch.total}
    log.info("time: %s in all; of it %s", duration(watch.total), ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    log.info("DONE; score the result with: python analyze_output.py %s %s", config.tag, arguments.run)


def begin_records(plan: RunPlan, folder: RunFolder) -> Checkpoint | None:
    """Make the run's folder ready to go on from its newest state, and begin the log. Gives that state, if any."""
    config = plan.config
    changes = folder.check(config, resume=True)
    checkpoint, damaged = newest_checkpoint(folder.checkpoints)
    meta = checkpoint.meta if checkpoint else {}
    done, before = meta.get("step", 0), plan.before(changes, meta)
    plan.check_length(before, done, folder.path)
    folder.create()
    complaints = folder.cut_back(checkpoint)
    start_log(folder.log)
    log.info("run %s", folder.path)
    log.debug("configuration\n%s", config.to_yaml())
    for path, complaint in damaged.items():
        path.rename(path.with_name(f"{path.name}.damaged"))
        log.warning("%s; the one before is used", complaint)
    for complaint in complaints:
        log.warning("%s", complaint)
    for key, (old, new) in changes.items():
        log.warning("%s was %s, is %s from here on", key, old, new)
    if plan.epoch_steps != before.epoch_steps:
        log.warning(
            "there were %d training slices, now there are %d: an epoch had %d steps, has %d from here on, and weights "
            "that are named by their epoch replace those of the same name",
            *(before.slices, plan.slices, before.epoch_steps, plan.epoch_steps),
        )
    by_part = config.lr_schedule != "constant" or config.r1_growth != 1 or config.match_histogram
    if plan.total_steps != before.total_steps and by_part:
        log.warning(
            "lr_schedule, r1_growth and match_histogram go by the part of the run that is done: another one now"
        )
    return checkpoint


def set_up(
    arguments,
    plan: RunPlan,
    training: SliceSet,
    validation: SliceSet,
    folder: RunFolder,
    crew: Crew,
    checkpoint: Checkpoint | None,
):
    """Start TensorFlow and build what trains and what watches: the GAN, at the state to go on from, and its monitor.

    TensorFlow takes seconds to import: whoever mistyped a key has heard of it by now.
    """
    if crew.size > 1:
        log.info("%s: waiting for %d other workers", crew.cluster.source, crew.size - 1)
    record_before = folder.read_record() if checkpoint else {}
    machine = open_devices(arguments, plan.config, crew, used_xla(record_before))
    log.info("computing on %s", describe_machine(machine.description))
    plan = settle_precision(plan, machine)
    log.info("precision: %s", plan.config.precision)
    from utils.monitor import Monitor

    record = run_record(plan.config, {"train": training, "val": validation}, machine.description, record_before)
    for difference in differences(record_before, record) if checkpoint else []:
        log.warning("from here on the run may no longer be bit for bit the uninterrupted one: %s", difference)
    log.debug("record\n%s", json.dumps(record, indent=2))
    gan = build_gan(plan, training, machine)
    monitor = Monitor(plan.config, validation, training.mean, folder)
    set_weights(gan, monitor, folder, checkpoint, arguments.init_from)
    if gan.step < plan.total_steps:
        folder.rename_last_weights()
        folder.write_record(record)
    folder.write_config(plan.config)
    if not checkpoint:
        # From here on there is always a state to go on from.
        save_state(gan, monitor, folder, plan)
    return gan, monitor


def open_devices(arguments, config: Config, crew: Crew, xla_before: bool | None = None) -> Machine:
    """Start TensorFlow on what the arguments name; `xla_before` as `start_tensorflow` takes it."""
    return start_tensorflow(
        arguments.strategy,
        arguments.devices,
        crew.cluster,
        crew.meet,
        arguments.xla,
        xla_before,
        batch_pixels=config.batch_pixels,
    )


def set_weights(gan, monitor, folder: RunFolder, checkpoint: Checkpoint | None, init_from: str | None) -> None:
    """Go on from a state, or begin with another run's weights, or with those that the networks were made with."""
    for network in filter(None, (gan.generator, gan.discriminator, gan.critic)):
        network.summary(print_fn=log.debug, line_length=100)
        log.info("%s: %s weights", network.name, f"{network.count_params():,}")
    if checkpoint:
        try:
            gan.load_state(checkpoint.arrays, checkpoint.meta["step"])
        except ValueError as error:
            raise UserError(
                f"{checkpoint.path} is of another version of this program ({error}); go on with that version (see "
                f"{folder.record}), or start another RUN, with --init-from if {folder.models} has its last weights"
            ) from error
        checkpoint.arrays.clear()
        monitor.best |= checkpoint.meta["best"]
        log.info("resumed at step %d from %s", gan.step, checkpoint.path)
        if init_from is not None:
            log.warning("--init-from %s is ignored: the run has weights of its own", init_from)
    elif init_from is not None:
        gan.load_weights(init_from)
        log.info("weights from %s", init_from)


def evaluate(gan, monitor, folder: RunFolder, epoch: float, timing: dict) -> None:
    """Make a TensorBoard checkpoint, and keep the weights where they are the best so far."""
    evaluation = monitor.checkpoint(gan.step, epoch, gan.mean_losses(), gan.sample, timing)
    gan.reset_losses()
    for name in evaluation.improved:
        save_weights(gan, folder, f"_{name}", evaluation.scores)
    log.info(score_line(gan.step, evaluation, gan.config.best_metric))


def follow(arguments, config: Config, training: SliceSet, crew: Crew, stop: StopRequest) -> None:
    """Train as a worker that is not the first: compute its share of every batch, and write nothing."""
    machine = open_devices(arguments, config, crew)
    plan = settle_precision(RunPlan(config, len(training)), machine)
    print(f"{crew.cluster.name(crew.rank)} of {crew.size} computes its share; the first one writes log and results")
    gan = build_gan(plan, training, machine)
    gan.share_state()
    first_step, where = gan.step, "the first worker's run folder"
    with open_stream(plan, training, gan.step, crew) as batches:
        for densities in batches:
            gan.train_on_densities(densities)
            due = plan.due(gan.step, first_step)
            stopping = asked_to_stop(gan, crew, stop, due)
            if any(due) or stopping:
                check_finite(gan, where)
            if due.match:
                with slices_finite(gan, where):
                    gan.match_histogram()
            if stopping and not due.end:
                raise Stopped(f"stopped by {stopping} after step {gan.step}; the first worker has saved everything")


def asked_to_stop(gan, crew: Crew, stop: StopRequest, due: Due) -> str | None:
    """How somebody has asked to stop, if so. Several workers have to stop after the same step: they ask each other
    where they wait for the device anyway."""
    if crew.size == 1:
        return stop.signal_name
    if due.log and gan.any_worker(stop.signal_name is not None):
        return stop.signal_name or "a signal to another worker"
    return None


def settle_precision(plan: RunPlan, machine) -> RunPlan:
    """The plan with the precision that `auto` stands for on these devices; the same for all workers."""
    from networks.precision import choose_precision, has_bfloat16

    precision = choose_precision(plan.config.precision, machine.strategy)
    if precision == "mixed_bfloat16" and not has_bfloat16():
        log_missing_bfloat16()
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, precision=precision))


def build_gan(plan: RunPlan, training: SliceSet, machine):
    """Both networks, on the devices of a machine."""
    config = plan.config
    check_batch(config, machine.strategy.num_replicas_in_sync)
    from networks.gan import GAN
    from networks.losses import measure_training_set

    avoid_failing_fusion(config.discriminator_norm)
    return GAN(config, plan.total_steps, measure_training_set(config, training), machine.strategy, machine.xla)


def open_stream(plan: RunPlan, training: SliceSet, step: int, crew: Crew):
    """This worker's share of the batches that are still to come."""
    from utils.streaming import BatchStream

    config, share = plan.config, (crew.rank, crew.size)
    return BatchStream(training, config.batchsize, config.seed, step, plan.total_steps, *share, config.random_crops)


def again() -> str:
    """The command that goes on with this run."""
    arguments = [argument for argument in sys.argv if argument != "--resume"]
    return shlex.join(["python", *arguments, "--resume"])


def check_slices(config: Config, training: SliceSet, validation: SliceSet) -> None:
    """Refuse slices that cannot be trained on with this configuration."""
    if len(training) < config.batchsize:
        raise UserError(
            f"{training.path} has {len(training)} slices, fewer than one batch (batchsize {config.batchsize}); "
            f"make more slices or lower batchsize"
        )
    for key in ("dequantise", "count_noise"):
        if getattr(config, key) and training.dtype.kind == "f":
            raise UserError(f"{key} = true needs integer pixels, {training.path} has {training.dtype}; set it to false")
    if config.random_crops:
        PeriodicCrops(training)
    if training.pixel_size != validation.pixel_size:
        raise UserError(
            f"{training.path} has pixels of {training.pixel_size} Mpc/h, {validation.path} of "
            f"{validation.pixel_size} Mpc/h; slice both together"
        )


def check_devices(arguments, cluster) -> None:
    """Refuse a choice of devices that no machine can meet."""
    if arguments.strategy == "multiworker" and cluster is None:
        raise UserError(
            "--strategy multiworker needs other workers: set TF_CONFIG in every process, or start them with srun"
        )
    if arguments.strategy == "single" and arguments.devices and arguments.devices > 1:
        raise UserError(f"--devices {arguments.devices} with --strategy single: on several devices a step is mirrored")


def check_batch(config: Config, replicas: int) -> None:
    """Refuse a batch that cannot be shared out."""
    if config.batchsize % replicas:
        raise UserError(
            f"batchsize = {config.batchsize} cannot be shared equally by {replicas} replicas; choose a multiple of "
            f"their number"
        )
    normalised = "batch" in (config.generator_norm, config.discriminator_norm)
    if normalised and config.batchsize // (1 if config.sync_batchnorm else replicas) < 2:
        # Normalised by its own mean and variance alone, nothing is left of the noise that an image is made from.
        raise UserError(
            f"batchsize = {config.batchsize} gives each of {replicas} replica(s) one image, and batch norm needs two "
            f"at least; choose a larger batchsize{', or sync_batchnorm = true' if config.batchsize > 1 else ''}"
        )


def check_finite(gan, where) -> None:
    """Stop a run that has diverged, before anything of it overwrites something good."""
    divergence = gan.first_divergence()
    if divergence:
        step, tensor = divergence
        raise Diverged(f"{tensor} was not finite in step {step}", where)


@contextlib.contextmanager
def slices_finite(gan, where):
    """The same for what is drawn from the generator, of which losses and gradients were still finite."""
    try:
        yield
    except FloatingPointError as error:
        raise Diverged(f"{error} after step {gan.step}", where) from error


def save_weights(gan, folder: RunFolder, name: str, scores: dict[str, float] | None = None) -> None:
    """Write the weights of both networks, the averaged generator's where averaging is on."""
    for letter, network in (("g", gan.sampling_generator), ("d", gan.discriminator)):
        path = folder.models / f"{letter}_cosmo{name}.weights.h5"
        with atomic_path(path, size=4 * network.count_params() + HDF5_OVERHEAD) as temporary:
            network.save_weights(temporary)
            stamp_weights(temporary, gan.config, gan.step, scores)


def save_state(gan, monitor, folder: RunFolder, plan: RunPlan) -> None:
    """Write the complete state of the run."""
    arrays = {name: variable.numpy() for name, variable in gan.state().items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise Diverged(f"{bad[0]} is not finite after step {gan.step}", folder.checkpoints)
    meta = {"best": monitor.best, "records": folder.record_sizes(), "slices": plan.slices}
    keep, best = monitor.config.save_keep, folder.best_weights()
    path = save_checkpoint(folder.checkpoints, gan.step, arrays, meta, keep, weights=best)
    log.debug("state saved in %s", path)


if __name__ == "__main__":
    run(main)
