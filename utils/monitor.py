"""TensorBoard checkpoints: how good the generator is now, in numbers and pictures, beside the validation set."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils import plots
from utils.cli import UserError
from utils.config import Config
from utils.logs import log
from utils.noise import noise_floor
from utils.runs import RunFolder
from utils.scores import figure_of_merit, ratio_to_floor, scores
from utils.slices import SliceSet
from utils.summaries import Summary, natural_resolution, summarise
from utils.tboard import EventLog

_GRID = 16  # slices in the picture of samples
BUDGET = 0.05  # of the training time


def best_scores(config: Config) -> dict[str, str]:
    """Scores that a training run is judged by, and the names under which the best weights are kept."""
    return {config.best_metric: "best", "chisq_pspect": "best_pspect"}


@dataclass(frozen=True)
class Evaluation:
    """What one TensorBoard checkpoint found."""

    scores: dict[str, float]
    improved: list[str]
    """Names of the best weights that these now are: values of `best_scores`."""


class Monitor:
    """Watches a run: scores, figures, TensorBoard events, metrics.jsonl, and the best scores so far.

    Parameters
    ----------
    config : Config
    validation : SliceSet
    mean : float
        Mean density of the training set [particles per voxel].
    run : RunFolder

    Attributes
    ----------
    best : dict of str to float
        The best value so far of each score in `best_scores`.
    """

    def __init__(self, config: Config, validation: SliceSet, mean: float, run: RunFolder):
        self.config = config
        self.run = run
        self._names = best_scores(config)
        self.best = dict.fromkeys(self._names, math.inf)
        self.events = EventLog(run.events)
        self._mean = mean
        self._pixel_size = validation.pixel_size
        rows = validation.rows_spread(config.checkpt_samples)
        universe = None if validation.universe is None else validation.universe[rows]
        images = validation.read(rows)
        self._resolution = natural_resolution(images)
        self._real = self._summarise(images, universe)
        self._floor = noise_floor(self._real).mean
        if config.best_metric == "figure_of_merit" and not np.isfinite(list(self._floor.values())).any():
            raise UserError(
                f"best_metric = figure_of_merit needs a noise floor, and {len(images)} validation slice(s) are too few"
                " for one; slice more universes, or configure best_metric: chisq"
            )
        self._real_images = images[np.linspace(0, len(images) - 1, min(_GRID, len(images))).astype(int)]
        self._checkpoints = 0  # of this process
        self._warned = False

    def checkpoint(
        self, step: int, epoch: float, losses: dict[str, float], sample: Callable[[int, int], np.ndarray], timing: dict
    ) -> Evaluation:
        """Score the generator and write down what there is to see.

        Parameters
        ----------
        step : int
            Training steps done.
        epoch : float
            Passes over the training set done.
        losses : dict of str to float
            Averages since the previous checkpoint.
        sample : callable
            (number, seed) -> generated densities (number, N, N).
        timing : dict
            Everything that depends on the clock. Where its `monitor_share` and `matching_share` are above the budget,
            together 5 %, or 10 % where the map of densities is fitted, the log says once what to configure; nothing is
            changed, for the results of a run must not depend on the clock.

        Returns
        -------
        Evaluation
        """
        self._checkpoints += 1
        self._warn_if_costly(timing.get("monitor_share", 0.0) + timing.get("matching_share", 0.0))
        # The step is in the seed: with the same slices of noise each time, best weights would be tuned to them.
        generated = sample(self._real.slices.sum(), self.config.seed + step)
        summary = self._summarise(generated, None)
        found = self._scores(summary)
        better = [name for name in self._names if found[name] < self.best[name]]
        self.best |= {name: found[name] for name in better}
        self.events.write(step, losses | found, self._pictures(generated, summary))
        record = {"step": step, "epoch": round(epoch, 6)} | losses | found
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self.run.append_metrics(finite | {"timing": timing})
        return Evaluation(found, [self._names[name] for name in better])

    def _warn_if_costly(self, share: float) -> None:
        """Say once that checkpoints take too much of the time, when two whole intervals between them are over."""
        budget = 2 * BUDGET if self.config.match_histogram else BUDGET
        if self._warned or self._checkpoints < 3 or share <= budget:
            return
        self._warned = True
        # What takes the share of an interval of n steps takes the budget of one of n times the ratio of both odds.
        enough = math.ceil(self.config.checkpt_batch * share / (1.0 - share) * (1.0 - budget) / budget)
        log.warning(
            "TensorBoard checkpoints take %.1f %% of the time, more than %.0f %%; checkpt_batch of %d or more (now %d)"
            " would mend it, or fewer checkpt_samples (now %d)",
            *(100.0 * share, 100.0 * budget, enough, self.config.checkpt_batch, self.config.checkpt_samples),
        )

    def _scores(self, summary: Summary) -> dict[str, float]:
        """The scores of curves and distributions, and the figure of merit of these alone."""
        found = scores(summary, self._real)
        del found["bispectrum"]  # left out of the summaries: it would double their time
        ratios = {name: ratio_to_floor(name, value, self._floor[name]) for name, value in found.items()}
        return found | {"figure_of_merit": figure_of_merit(ratios)}

    def _summarise(self, images: np.ndarray, universe: np.ndarray | None) -> Summary:
        return summarise(
            images,
            self.config.datascale,
            self._pixel_size,
            self._mean,
            universe,
            resolution=self._resolution,
            bispectrum=False,
        )

    def _pictures(self, generated: np.ndarray, summary: Summary) -> dict[str, np.ndarray]:
        """The three pictures under the old suite's names, (H, W, 3) uint8."""
        figures = {
            "genimg": plots.sample_grid(
                generated[:_GRID], self.config.cscale, self.config.datascale, self._pixel_size, real=self._real_images
            ),
            "pixhist": plots.pixel_histogram_figure(summary, self._real),
            "pspect": plots.power_spectrum_figure(summary, self._real),
        }
        return {name: plots.to_rgb_array(figure) for name, figure in figures.items()}
