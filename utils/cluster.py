"""Which processes train together: from `TF_CONFIG`, or from the variables that Slurm sets. Knows no TensorFlow."""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from utils.cli import UserError

# Jobs of a TF_CONFIG cluster that train, in the order of their ranks.
_TRAINING_JOBS = ("chief", "worker")
# Slurm gives no ports away; jobs that share a node should not meet, nor meet those that the system gives to clients.
_FIRST_PORT, _PORTS = 12_000, 18_000


@dataclass(frozen=True)
class Cluster:
    """The workers of one training, one process each, and which of them this process is."""

    source: str
    """Where it was read: ``TF_CONFIG`` or ``Slurm``."""
    size: int
    rank: int
    addresses: tuple[str, ...]
    """host:port by rank."""

    def name(self, rank: int) -> str:
        """A worker in a user's words."""
        return f"worker {rank} ({self.addresses[rank]})"


def find_cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment describes; None for a process that trains alone.

    Raises
    ------
    UserError
        If `TF_CONFIG` cannot be understood, or describes something else than workers that train together; if Slurm's
        lists of nodes and tasks cannot be understood, or are not of as many tasks as there are.
    """
    if environment.get("TF_CONFIG", "").strip():
        cluster = _from_tf_config(environment["TF_CONFIG"])
    elif {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        # Only srun sets these: a script that sbatch runs is one process, however many tasks the job may have.
        cluster = _from_slurm(environment)
    else:
        return None
    return cluster if cluster.size > 1 else None


def _from_tf_config(text: str) -> Cluster:
    wanted = (
        'expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}; mend it, or '
        "unset it to train in one process"
    )
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        unknown = set(jobs) - set(_TRAINING_JOBS)
        ranks = [(job, index) for job in _TRAINING_JOBS for index in range(len(jobs.get(job, ())))]
        addresses = tuple(str(jobs[job][index]) for job, index in ranks)
        own = (task.get("type"), int(task.get("index", -1)))
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise UserError(f"TF_CONFIG = '{text}' cannot be understood ({error}); {wanted}") from None
    if unknown:
        raise UserError(f"TF_CONFIG has the jobs {', '.join(sorted(unknown))}, only chief and worker train; {wanted}")
    if not addresses:
        return Cluster("TF_CONFIG", 1, 0, ())
    if own not in ranks:
        raise UserError(f"TF_CONFIG: the task {own[0]} {own[1]} is none of its cluster's {len(ranks)}; {wanted}")
    if len(set(addresses)) < len(addresses) or not all(re.fullmatch(r".+:\d+", address) for address in addresses):
        raise UserError(f"TF_CONFIG: the addresses {', '.join(addresses)} must be different, each host:port; {wanted}")
    return Cluster("TF_CONFIG", len(addresses), ranks.index(own), addresses)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """Ranks are counted node by node; the tasks of a node have successive ports."""
    size, rank = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_PROCID"])
    nodes, tasks = environment["SLURM_STEP_NODELIST"], environment.get("SLURM_STEP_TASKS_PER_NODE", f"1(x{size})")
    port = _FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % _PORTS
    try:
        numbers = zip(_node_names(nodes), _tasks_of_nodes(tasks), strict=True)
        addresses = tuple(f"{node}:{port + task}" for node, number in numbers for task in range(number))
    except ValueError as error:
        raise UserError(
            f"SLURM_STEP_NODELIST = '{nodes}' with SLURM_STEP_TASKS_PER_NODE = '{tasks}' cannot be understood "
            f"({error}); set TF_CONFIG in every task instead"
        ) from None
    if len(addresses) != size:
        raise UserError(
            f"SLURM_STEP_NODELIST = '{nodes}' with SLURM_STEP_TASKS_PER_NODE = '{tasks}' has {len(addresses)} tasks, "
            f"SLURM_STEP_NUM_TASKS = {size}: start training with srun"
        )
    own = int(addresses[rank].rpartition(":")[2]) - port
    if (number := int(environment.get("SLURM_LOCALID", own))) != own:
        raise UserError(
            f"task {rank} is number {number} of its node, and would be number {own} if Slurm filled one node after the "
            "other: start training with srun --distribution=block, or set TF_CONFIG in every task"
        )
    return Cluster("Slurm", size, rank, addresses)


def _node_names(text: str) -> Iterator[str]:
    """The nodes of Slurm's list, such as ``n[1-3,07],m5``."""
    for name in re.findall(r"(?:\[[^]]*\]|[^,[])+", text):
        # What stands in brackets is every second part.
        parts = re.split(r"[][]", name)
        choices = [list(_numbers(part)) if place % 2 else [part] for place, part in enumerate(parts)]
        yield from map("".join, itertools.product(*choices))


def _numbers(text: str) -> Iterator[str]:
    """``1-3,07`` one by one, with the zeros that they are padded with."""
    for span in text.split(","):
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))


def _tasks_of_nodes(text: str) -> Iterator[int]:
    """The number of tasks on each node, from Slurm's list such as ``4(x2),3``."""
    for part in text.split(","):
        number, _, repeats = part.rstrip(")").partition("(x")
        yield from itertools.repeat(int(number), int(repeats or 1))
