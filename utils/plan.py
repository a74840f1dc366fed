"""How long a run is, and what it does after which of its steps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.cli import UserError
from utils.config import Config

# Weights are kept after every so many epochs, whatever their scores.
EPOCHS_BETWEEN_WEIGHTS = 10


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    checkpoint: bool
    weights: bool
    match: bool
    save: bool
    end: bool


@dataclass(frozen=True)
class RunPlan:
    """A run of a configuration on so many training slices; the same for all workers.

    Steps count from 1 here: step n is the one after which n steps are done.
    """

    config: Config
    slices: int

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch, of whole batches."""
        return self.slices // self.config.batchsize

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.config.Nepochs * self.epoch_steps

    def due(self, step: int, first_step: int) -> Due:
        """All that happens every so many steps.

        Parameters
        ----------
        step : int
        first_step : int
            Steps that were done before this process began: its first one is logged.
        """
        config, end = self.config, step == self.total_steps
        checkpoint = step == 1 or step % config.checkpt_batch == 0 or end
        weights = step % (EPOCHS_BETWEEN_WEIGHTS * self.epoch_steps) == 0
        return Due(
            log=step == first_step + 1 or step % config.print_batch == 0,
            checkpoint=checkpoint,
            weights=weights,
            # Before weights are scored or kept.
            match=config.match_histogram and (checkpoint or weights),
            save=step % config.save_steps == 0 or end,
            end=end,
        )

    def before(self, changes: dict[str, tuple], meta: dict) -> "RunPlan":
        """How long the run was to be when its state was saved: with the epochs, and the training slices, of then.

        Parameters
        ----------
        changes : dict of str to (old value, new value)
            Keys of the configuration that have changed since.
        meta : dict
            Of the state; empty where there is none.
        """
        epochs, _ = changes.get("Nepochs", (self.config.Nepochs, None))
        return RunPlan(dataclasses.replace(self.config, Nepochs=epochs), meta.get("slices", self.slices))

    def check_length(self, before: "RunPlan", done: int, folder: Path) -> None:
        """Refuse (`UserError`) to shorten a run below the steps done, and to lengthen one that is over unasked."""
        # What a run does at its end, a longer one has not done at this step.
        if done > self.total_steps or (done == self.total_steps and self.total_steps != before.total_steps):
            raise UserError(
                f"{folder} is at step {done} already, {self.config.Nepochs} epochs end at step {self.total_steps}: ask "
                f"for more Nepochs"
            )
        if done == before.total_steps < self.total_steps and self.config.Nepochs == before.config.Nepochs:
            raise UserError(
                f"{folder} has ended, on {before.slices} training slices, and now there are {self.slices}: train on "
                f"them in another RUN, with --init-from {folder} if you like, or ask for more Nepochs"
            )
