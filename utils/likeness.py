"""Who resembles whom among generated and real slices: the scores that compare slices with slices, not curves.

Diversity (MS-SSIM of pairs), repetition (nearest neighbour within a set) and memorisation (nearest neighbour in the
training set). Neighbouring slices of a universe resemble each other. A generated set whose slices are independent has
to be as real slices of different universes are, and one that is real universes as all real slices are: diversity and
repetition allow for both. Generated slices have no universes; they are dealt at random into as many groups as there are
real universes, so that they can be resampled. Pure NumPy.
"""

from dataclasses import dataclass

import numpy as np

from utils.similarity import coarse, ms_ssim, nearest_neighbours, number_of_scales
from utils.stacks import checked
from utils.statistics import ks_distance
from utils.summaries import Curve
from utils.transforms import transform

DEFINITIONS = {
    "diversity": (
        "|m_gen - m_real|, m the mean MS-SSIM (Wang et al. 2003) of s of random pairs of slices, real ones of any"
        " universe or of different ones, whichever is nearer; m_gen > m_real: less diverse than the real set (mode"
        " collapse)"
    ),
    "repetition": (
        "distance of each slice to the nearest other one of its set: how far the cumulative distribution of the"
        " generated set is above that of the real one (slices repeat), or below that of the real one with neighbours in"
        " other universes only; 0 in between; neighbours in any of the eight orientations"
    ),
    "memorisation": (
        "Kolmogorov-Smirnov distance of the distances from generated and from held-back real slices to the nearest"
        " image of the training set, in any of the eight orientations and, where its slices tile whole planes, at any"
        " shift"
    ),
}
"""One line on each score; neighbours are found by rms difference of s averaged over blocks of pixels."""

COPY = 0.5  # nearer than this fraction of the smallest real distance: a copy
_PAIRS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Likeness:
    """Likeness of n slices, generated and real, in G groups."""

    generated: np.ndarray
    """(G,) bool, whether a group is of generated slices."""
    group: np.ndarray
    """(n,) int64, group of each slice."""
    pairs: np.ndarray
    """(p, 2) int64, groups of the two different slices of every pair that was drawn."""
    similarity: np.ndarray
    """(p,) float64, MS-SSIM of s of these pairs; empty for images too small for it."""
    share: np.ndarray
    """(p,) float64, weight of each pair: less where more were drawn, so that all pairs of slices count the same."""
    nearest: np.ndarray
    """(n, G) float32, distance to the nearest other slice of each group in any of the eight orientations; infinite
    without any, or if not looked for."""
    training: np.ndarray
    """(n,) float32, distance to the nearest image of the training set; NaN where it was not looked for."""


def compare_slices(generated, real, a, universe, generated_universe=None, training_distance=None, pairs=1000,
                   cross=False, seed=0) -> Likeness:  # fmt: skip
    """Compare generated and real slices with each other.

    Parameters
    ----------
    generated, real : (n, N, N) and (m, N, N) arrays
        Densities [particles per voxel], of about equal number: more slices find nearer neighbours.
    a : float
        Density that maps to s = 0 (`datascale`).
    universe : (m,) integers
        Universe (or other group) of each real slice.
    generated_universe : (n,) integers, optional
        By default the generated slices are independent.
    training_distance : (n + m,) array, optional
        How far each slice, generated ones first, is from the training set (`utils.training_search`), NaN where that is
        not known.
    pairs : int
        Pairs of generated slices drawn for MS-SSIM; of real ones, which a noise floor resamples, four times as many.
    cross : bool
        Compare generated with real slices too, as permutations need; doubles the work.
    seed : int
        Of the random pairs and groups.

    Raises
    ------
    ValueError
        Empty stacks, images or labels of a wrong or unequal shape or type, NaN or infinite pixels.
    """
    generated, real = checked(generated), checked(real)
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"slices must be of one shape, not {generated.shape[1:]} and {real.shape[1:]}")
    rng = np.random.default_rng(seed)
    _, real_group = np.unique(universe, return_inverse=True)
    if generated_universe is None:
        generated_universe = rng.permutation(np.arange(len(generated)) % (real_group.max() + 1))
    _, generated_group = np.unique(generated_universe, return_inverse=True)
    number = generated_group.max() + 1
    group = np.concatenate([generated_group, real_group + number])
    if len(group) != len(generated) + len(real):
        raise ValueError(f"{len(group)} universe labels for {len(generated)} generated and {len(real)} real slices")
    is_generated = np.arange(group.max() + 1) < number

    fields = np.concatenate([coarse(transform(part, a)) for stack in (generated, real) for part in _parts(stack)])
    comparable = cross | (is_generated[:, np.newaxis] == is_generated)
    nearest = _nearest_in_groups(fields, group, comparable)
    distance = np.full(len(group), np.nan) if training_distance is None else training_distance
    first, second, share = _random_pairs(rng, group, is_generated, pairs, cross)
    if not number_of_scales(real.shape[-1]):
        first, second, share = first[:0], second[:0], share[:0]
    similarity = _pair_similarities(generated, real, a, first, second)
    pair_groups = np.stack([group[first], group[second]], axis=1)
    return Likeness(is_generated, group, pair_groups, similarity, share, nearest, np.float32(distance))


def likeness_scores(likeness: Likeness, generated, real, candidates=None) -> dict[str, float]:
    """Score one set of groups against another.

    Parameters
    ----------
    likeness : Likeness
    generated, real : (G,) arrays
        How often each group is in each of the two sets: the groups as they are, resampled, or permuted.
    candidates : (G,) bool array, optional
        Groups in which a slice may have its nearest neighbour; by default those of its own set. For sets resampled
        from one, that one: with fewer different groups, neighbours would be further away.

    Returns
    -------
    dict of str to float
        By the names in `DEFINITIONS`; NaN where a set has too few slices or groups to compare, images are too small for
        MS-SSIM, or none was looked for in the training set.
    """
    sides = [np.asarray(weights, dtype=np.float64) for weights in (generated, real)]
    similarity, of_real = (mean_similarity(likeness, weights) for weights in sides)
    apart, of_real_apart = (mean_similarity(likeness, weights, apart=True) for weights in sides)
    diversity = abs(similarity - of_real)
    # Two sets of one group each, as are drawn from three universes, have no pairs of different groups to compare.
    if not np.isnan([apart, of_real_apart]).all():
        diversity = np.minimum(diversity, abs(similarity - of_real_apart))
    own, real_own, real_apart = (
        _distribution(likeness, "repetition", side, candidates, apart)
        for side, apart in ((sides[0], False), (sides[1], False), (sides[1], True))
    )
    return {
        # NumPy's minimum and maximum hand NaN on.
        "diversity": float(diversity),
        "repetition": float(np.maximum(_ks(own, real_own, one_sided=True), _ks(real_apart, own, one_sided=True))),
        "memorisation": _ks(*(_distribution(likeness, "memorisation", side) for side in sides)),
    }


def mean_similarity(likeness: Likeness, weights, apart=False) -> float:
    """Mean MS-SSIM over the pairs of slices in a set (G,), or over those of two groups (`apart`); NaN without any."""
    weights = _pair_weights(likeness, weights, apart)
    return float(weights @ likeness.similarity / weights.sum()) if weights.sum() > 0 else float("nan")


def _pair_weights(likeness: Likeness, weights, apart=False) -> np.ndarray:
    """(p,) weight of each pair in a set whose groups are taken `weights` (G,) times."""
    first, second = np.asarray(weights, dtype=np.float64)[likeness.pairs].T
    within = likeness.pairs[:, 0] == likeness.pairs[:, 1]
    # A group that is taken twice has its own pairs twice; those of a slice with its double do not count.
    return likeness.share * np.where(within, 0.0 if apart else first, first * second)


def within_distances(likeness: Likeness, candidates, apart=False) -> np.ndarray:
    """(n,) distance of each slice to the nearest other one of the groups (G,) bool, or of other groups (`apart`)."""
    allowed = np.broadcast_to(candidates, likeness.nearest.shape)
    if apart:
        allowed = allowed & (likeness.group[:, np.newaxis] != np.arange(len(likeness.generated)))
    return np.where(allowed, likeness.nearest, np.inf).min(axis=1)


def likeness_curve(likeness: Likeness, name: str, generated: bool, points, repeats=200, apart=False) -> Curve:
    """Cumulative distribution behind a score, with its bootstrap band over groups.

    Parameters
    ----------
    likeness : Likeness
    name : str
        Of `DEFINITIONS`.
    generated : bool
        Of the generated or of the real slices.
    points : (npoints,) array
        MS-SSIM or distances at which to give the fraction at or below.
    repeats : int
        Resampled sets behind the band.
    apart : bool
        For diversity and repetition: pairs of, or neighbours in, other groups only.

    Returns
    -------
    Curve
        NaN where the distribution is unknown.
    """
    members = np.flatnonzero(likeness.generated == generated)

    def fractions(weights):
        values, shares = _distribution(likeness, name, weights, likeness.generated == generated, apart)
        used = shares > 0
        if not used.any() or not np.isfinite(values[used]).all():
            return np.full(len(points), np.nan)
        order = np.argsort(values[used])
        below = np.concatenate([[0.0], np.cumsum(shares[used][order])])
        return below[np.searchsorted(values[used][order], points, side="right")] / below[-1]

    rng, number = np.random.default_rng(0), len(members)
    draws = np.zeros((repeats, len(likeness.generated)))
    draws[:, members] = rng.multinomial(max(number - 1, 1), np.full(number, 1 / number), size=repeats)
    mean = fractions((likeness.generated == generated).astype(float))
    resampled = np.stack([fractions(draw) for draw in draws])
    known = ~np.isnan(resampled).any(axis=1)
    low, high = np.percentile(resampled[known], (16, 84), axis=0) if known.any() else np.full((2, len(points)), np.nan)
    return Curve(mean, np.full_like(mean, np.nan), low, high, "groups")


def likeness_range(likeness: Likeness, name: str, number=200) -> np.ndarray:
    """(number,) points that span the distribution behind a score, of both sets."""
    sides = [_distribution(likeness, name, side) for side in (likeness.generated, ~likeness.generated)]
    values = np.concatenate([values[shares > 0] for values, shares in sides])
    values = values[np.isfinite(values)]
    return np.linspace(values.min(), values.max(), number) if len(values) else np.zeros(0)


def _distribution(likeness: Likeness, name: str, weights, candidates=None, apart=False):
    """Values behind a score in a set (G,), and the weight of each."""
    weights = np.asarray(weights, dtype=np.float64)
    if name == "diversity":
        return likeness.similarity, _pair_weights(likeness, weights, apart)
    if name == "memorisation":
        return likeness.training, weights[likeness.group] * np.isfinite(likeness.training)
    candidates = weights > 0 if candidates is None else candidates
    return within_distances(likeness, candidates, apart), weights[likeness.group]


def alarms(likeness: Likeness) -> dict[str, float]:
    """What a generator must not do, as plain fractions and means.

    Returns
    -------
    dict of str to float
        `ms_ssim_generated` and `ms_ssim_real`: mean MS-SSIM of pairs. `repeated_fraction`: of the generated slices,
        those whose nearest other generated slice is nearer than half the smallest distance between two real slices.
        `copied_fraction`: of those that were looked for in the training set, the ones that are nearer to it than
        half the smallest distance of any held-back real slice.
    """
    sides = likeness.generated, ~likeness.generated
    is_generated = likeness.generated[likeness.group]
    result = dict(
        zip(("ms_ssim_generated", "ms_ssim_real"), (mean_similarity(likeness, side) for side in sides), strict=True)
    )
    within = within_distances(likeness, sides[0])[is_generated], within_distances(likeness, sides[1])[~is_generated]
    result["repeated_fraction"] = _fraction_below(within[0], COPY * within[1].min())
    looked_for = np.isfinite(likeness.training)
    training = likeness.training[is_generated & looked_for], likeness.training[~is_generated & looked_for]
    result["copied_fraction"] = _fraction_below(training[0], COPY * training[1].min(initial=np.inf))
    return result


def _fraction_below(distances, limit) -> float:
    known = np.isfinite(limit) and np.isfinite(distances).all()
    return float(np.mean(distances < limit)) if known else float("nan")


def _ks(one, other, one_sided=False) -> float:
    """KS distance of two pairs (values, weights); NaN where values that have weight are unknown."""
    (values, weights), (other_values, other_weights) = (
        (values[weights > 0], weights[weights > 0]) for values, weights in (one, other)
    )
    if not (len(values) and len(other_values) and np.isfinite(values).all() and np.isfinite(other_values).all()):
        return float("nan")
    return ks_distance(values, other_values, weights, other_weights, one_sided)


def _nearest_in_groups(fields, group, comparable) -> np.ndarray:
    """(n, G) distance from each slice to the nearest other one of every group that it may be compared with."""
    nearest = np.full((len(group), len(comparable)), np.inf, np.float32)
    for target in range(len(comparable)):
        members, others = group == target, comparable[group, target] & (group != target)
        nearest[members, target] = nearest_neighbours(
            fields[members], fields[members], symmetries=True, excluded=np.arange(np.count_nonzero(members))
        ).distance
        if others.any():
            nearest[others, target] = nearest_neighbours(fields[others], fields[members], symmetries=True).distance
    return nearest


def _random_pairs(rng, group, is_generated, pairs, cross) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices of random pairs in either set and, with `cross`, across them; and each pair's share.

    In a set whose groups are resampled the pairs have very unequal weights, which is as if there were a quarter of
    them: a weight is a product of two Poisson numbers, of mean square 2 each. With four times as many real pairs the
    noise floor has the noise of the pairs that the score itself has, and not twice as much.
    """
    slices = np.arange(len(group))
    sets = slices[is_generated[group]], slices[~is_generated[group]]
    kinds = [(sets[0], sets[0], pairs, 1.0), (sets[1], sets[1], 4 * pairs, 0.25)]
    if cross:
        kinds.append((*sets, 2 * pairs, 1.0))
    drawn = []
    for one, other, number, share in kinds:
        # Twice as many as wanted, of which those of a slice with itself are dropped: all of them, with a single slice.
        candidates = rng.choice(one, 2 * number), rng.choice(other, 2 * number)
        useful = np.flatnonzero(candidates[0] != candidates[1])[:number]
        drawn.append([*(side[useful] for side in candidates), np.full(len(useful), share)])
    first, second, shares = (np.concatenate(side) for side in zip(*drawn, strict=True))
    return first, second, shares


def _pair_similarities(generated, real, a, first, second) -> np.ndarray:
    """MS-SSIM of s of pairs, by numbers that count the generated slices before the real ones."""

    def fields(rows):
        own = rows < len(generated)
        result = np.empty((len(rows), *real.shape[1:]), np.float32)
        result[own] = transform(generated[rows[own]], a)
        result[~own] = transform(real[rows[~own] - len(generated)], a)
        return result

    values = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        values[part] = ms_ssim(fields(first[part]), fields(second[part]))
    return values


def _parts(stack):
    """Consecutive parts of a stack, so that its transform is never held as a whole."""
    return (stack[start : start + _PAIRS_AT_ONCE] for start in range(0, len(stack), _PAIRS_AT_ONCE))
