"""How sure a score is: its noise floor from other real universes, and p-values by permuting universes. Pure NumPy."""

from dataclasses import dataclass

import numpy as np

from utils import likeness as slicewise
from utils.likeness import Likeness, likeness_scores
from utils.scores import DEFINITIONS, Means, means, score_means, scores, sums_of
from utils.summaries import Summary

PERMUTED_UNIVERSES = 16  # with fewer, the smallest possible p-values would decide nothing

LOW, HIGH = 16, 84  # percentiles of the interval around a noise floor


@dataclass(frozen=True)
class NoiseFloor:
    """The scores of real universes against other real universes; NaN where it cannot be known."""

    mean: dict[str, float]
    low: dict[str, float]
    """16th percentile."""
    high: dict[str, float]
    """84th percentile."""
    basis: str
    """In words: what was resampled, and what that means for the numbers."""
    reliable: bool
    """Whether whole universes were resampled."""
    universes: int
    """Of the real slices, as far as they are told apart."""
    slices: int
    """Number of slices that `chisq` counts."""
    repeats: int
    seed: int


def noise_floor(real: Summary, likeness: Likeness | None = None, repeats=200, seed=0) -> NoiseFloor:
    """Score real universes against other real universes.

    From the U universes at hand two sets are drawn with replacement, independently of each other, and scored as if
    one were generated; this is repeated, and the floor is the mean score. Each set has U − 2 draws. The mean of U − 1
    draws from U universes scatters with variance s²/U, s² the unbiased variance between universes, exactly as the mean
    of U fresh universes does; but s itself is known from U universes only, so that a ratio to it scatters more widely
    (Student's t instead of a normal deviate), and is larger on average. One draw less, a floor higher by
    √((U − 1)/(U − 2)), makes up for most of that. So the floor is the score of U *other* real universes against
    these U, and a generator at ratio 1 is as far away as they are on average; a generator without any error and with
    endless samples comes to about 1/√2, since then only the real set is noisy.

    No floor of the mean density is below the shot noise of as many particles, 1/√particles. Whole boxes all have the
    same mass, to the last particle; a floor of 0 would leave the ratio of a generator that is too bright unknown.

    The mean, not the median: where a score is a single number (the mean density), its distribution is that of the
    modulus of a normal deviate, which is beyond three times its median in one of 23 cases.

    Slices of one universe share its structures, hence whole universes are drawn. With fewer than three universes
    blocks of slices within them are drawn instead, which is an indication only, and the result says so: what blocks
    have in common makes the floor too low; that they share a fixed mass, so that one has what the other lacks, makes
    it too high (in boxes of 128 Mpc/h up to 2.5 times). With fewer than three blocks every number is NaN.

    Parameters
    ----------
    real : Summary
        Held-back slices, with the universe of each.
    likeness : Likeness, optional
        Of generated and these real slices; only its real ones play a part.
    repeats : int
        Pairs of sets to draw.
    seed : int
        The same seed gives the same floor.

    Returns
    -------
    NoiseFloor
    """
    universes = len(np.unique(real.universe))
    groups, kind = real.groups()
    number = len(groups.slices)
    slices = int(real.slices.sum())
    names = [name for name in DEFINITIONS if likeness is not None or name not in slicewise.DEFINITIONS]
    if number < 3:
        basis = f"unknown: {universes} universe(s) in {number} block(s) are too few to see any scatter"
        table = {name: np.full(1, np.nan) for name in names}
    else:
        basis = f"{universes} whole universes resampled with replacement, {number - 2} at a time"
        if kind == "blocks":
            told = "are not told apart by universe" if universes == 1 else f"are of {universes} universes"
            basis = (
                f"{number} blocks of slices, which {told}, resampled with replacement: an indication"
                " only, for blocks of a universe share its structures (too low) and its fixed mass (too high)"
            )
        rng = np.random.default_rng(seed)
        rows = [
            score_means(*(means(groups, groups.counts.shape[1], weights) for weights in pair), real.settings, slices)
            for pair in _draws(rng, number, repeats)
        ]
        if likeness is not None:
            real_groups = np.flatnonzero(~likeness.generated)
            for row, pair in zip(rows, _draws(rng, len(real_groups), repeats), strict=True):
                weights = np.zeros((2, len(likeness.generated)))
                weights[:, real_groups] = pair
                row |= likeness_scores(likeness, *weights, candidates=~likeness.generated)
        table = {name: np.array([row[name] for row in rows]) for name in names}
        table["mean_density"] = np.maximum(table["mean_density"], _shot_noise(real))
    return NoiseFloor(
        mean={name: _mean(column) for name, column in table.items()},
        low={name: _percentile(column, LOW) for name, column in table.items()},
        high={name: _percentile(column, HIGH) for name, column in table.items()},
        basis=basis,
        reliable=kind == "universes",
        universes=universes,
        slices=slices,
        repeats=repeats,
        seed=seed,
    )


def p_values(
    generated: Summary, real: Summary, likeness: Likeness | None = None, repeats=499, seed=0
) -> dict[str, float]:
    """How often sets of universes mixed at random score as badly as generated against real ones.

    Whole universes change sides: the groups of both sets are dealt anew into two sets of the same sizes. Generated
    slices, which are independent, are first gathered into as many groups as there are real universes; equally many
    groups keep the test honest though they scatter less than universes do (Romano 1990). With Likeness, it must have
    been made with `cross`.

    Returns
    -------
    dict of str to float
        (1 + permutations that score at least as high) / (1 + repeats) for each score of `scores`; NaN for all with
        fewer than 16 real universes, since then chance alone, or a handful of permutations, decides.
    """
    found = scores(generated, real, likeness)
    pooled = _as_many_groups(generated, real), real.by_universe()
    numbers = [len(side.slices) for side in pooled]
    if min(numbers) < PERMUTED_UNIVERSES:
        return dict.fromkeys(found, float("nan"))
    rng = np.random.default_rng(seed)
    higher = dict.fromkeys(found, 1)
    length = max(side.counts.shape[1] for side in pooled)
    slices = int(min(side.slices.sum() for side in pooled))
    for _ in range(repeats):
        first = rng.permutation(np.arange(sum(numbers)) < numbers[0])
        sides = [
            _mean_of_two(pooled, length, np.split(weights.astype(float), numbers[:1])) for weights in (first, ~first)
        ]
        row = score_means(*sides, real.settings, slices)
        if likeness is not None:
            mixed = rng.permutation(likeness.generated)
            row |= likeness_scores(likeness, mixed, ~mixed)
        for name, value in row.items():
            higher[name] += bool(value >= found[name])
    return {
        name: number / (1 + repeats) if np.isfinite(found[name]) else float("nan") for name, number in higher.items()
    }


def _shot_noise(real: Summary) -> float:
    """Relative standard deviation of the number of particles of a set, were they independent; 0 without particles."""
    particles = real.mass.sum() * real.settings.pixels**2
    return float(1.0 / np.sqrt(particles)) if particles > 0 else 0.0


def _draws(rng, number: int, repeats: int) -> np.ndarray:
    """(repeats, 2, number) how often each group is in each of two sets that are drawn with replacement."""
    return rng.multinomial(number - 2, np.full(number, 1 / number), size=(repeats, 2))


def _mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _percentile(values: np.ndarray, percent: float) -> float:
    """Percentile of what is known; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.percentile(known, percent)) if len(known) else float("nan")


def _as_many_groups(generated: Summary, real: Summary) -> Summary:
    """The generated slices in one row per universe or, where they have none, in as many rows as real universes."""
    if len(np.unique(generated.universe)) > 1:
        return generated.by_universe()
    number = min(len(np.unique(real.universe)), len(generated.slices))
    return generated.regrouped(np.arange(len(generated.slices)) % number)


def _mean_of_two(summaries, length: int, weights) -> Means:
    """Means over the slices of two summaries together."""
    slices = [weight @ summary.slices for summary, weight in zip(summaries, weights, strict=True)]
    parts = [sums_of(*pair, length) for pair in zip(summaries, weights, strict=True)]
    return Means(*((one + other) / sum(slices) for one, other in zip(*parts, strict=True)))
