"""Which processes train together: from `TF_CONFIG`, or from the variables that Slurm sets. Knows no TensorFlow."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from utils.cli import UserError

# Jobs of a TF_CONFIG cluster that train, in the order of their ranks.
_TRAINING_JOBS = ("chief", "worker")


@dataclass(frozen=True)
class Cluster:
    """The workers of one training, one process each, and which of them this process is."""

    source: str
    """Where it was read: ``TF_CONFIG`` or ``Slurm``."""
    size: int
    rank: int
    addresses: tuple[str, ...] = ()
    """host:port by rank; empty where they are only known later."""

    def name(self, rank: int) -> str:
        """A worker in a user's words."""
        return f"worker {rank}" + (f" ({self.addresses[rank]})" if self.addresses else "")


def find_cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment describes; None for a process that trains alone.

    Raises
    ------
    UserError
        If `TF_CONFIG` cannot be understood, or describes something else than workers that train together.
    """
    if environment.get("TF_CONFIG", "").strip():
        cluster = _from_tf_config(environment["TF_CONFIG"])
    elif {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys():
        # Only srun sets these: a script that sbatch runs is one process, however many tasks the job may have.
        cluster = Cluster("Slurm", int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_PROCID"]))
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
        return Cluster("TF_CONFIG", 1, 0)
    if own not in ranks:
        raise UserError(f"TF_CONFIG: the task {own[0]} {own[1]} is none of its cluster's {len(ranks)}; {wanted}")
    if len(set(addresses)) < len(addresses) or not all(re.fullmatch(r".+:\d+", address) for address in addresses):
        raise UserError(f"TF_CONFIG: the addresses {', '.join(addresses)} must be different, each host:port; {wanted}")
    return Cluster("TF_CONFIG", len(addresses), ranks.index(own), addresses)
