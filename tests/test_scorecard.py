"""The whole scorecard on small universes: real ones split in two, sets spoiled on purpose, p-values, tables."""

import json

import numpy as np
import pytest
import scipy.ndimage

from tests.log_normal import distances, slices
from utils.likeness import compare_slices
from utils.noise import noise_floor, p_values
from utils.scorecard import alarm_lines, caveat_lines, filament_lines, markdown, ranking, scorecard, table
from utils.scores import DEFINITIONS, FAMILIES, figure_of_merit
from utils.summaries import blocks_within, summarise

A = 4.0
BLOCKS = 32


@pytest.fixture(scope="module")
def real():
    return slices(range(10))


@pytest.fixture(scope="module")
def other():
    return slices(range(50, 60))


@pytest.fixture(scope="module")
def train():
    return slices(range(90, 96))[0]


def card_of(generated, real, train, labels=None, p=False):
    """The scorecard of a generated set, whose slices are independent unless they have labels."""
    images, universe = real
    block = np.arange(len(generated)) * BLOCKS // len(generated) if labels is None else None
    summaries = (
        summarise(generated, A, mean=3.0, universe=labels, block=block),
        summarise(images, A, mean=3.0, universe=universe),
    )
    known = distances(train, generated, images)
    group = universe if summaries[1].groups()[1] == "universes" else 8 * universe + blocks_within(universe)
    likeness = compare_slices(generated, images, A, group, labels, known, pairs=300, cross=p)
    found = p_values(*summaries, likeness, repeats=99) if p else None
    return scorecard(*summaries, noise_floor(summaries[1], likeness, repeats=100), likeness, found)


def ratios(card):
    return {name: score["ratio"] for name, score in card["scores"].items()}


def scrambled(images):
    """The same amplitudes with the phases of noise."""
    waves = np.fft.rfft2(images)
    phases = np.fft.rfft2(np.random.default_rng(0).normal(size=images.shape))
    phases /= np.abs(phases)
    phases[:, 0, 0] = 1.0  # the mean stays
    return np.clip(np.fft.irfft2(np.abs(waves) * phases, s=images.shape[1:]), 0.0, None)


def test_real_universes_split_in_two_stand_at_one(train):
    """A single split says little: what is one number scatters like a normal deviate, and most scores hang together."""
    cards = []
    for trial in range(1, 8):
        one, other = (slices(range(start, start + 10), step=8) for start in (100 * trial, 100 * trial + 50))
        # With and without saying which universe a slice is of: a generator could not.
        cards.append(card_of(one[0], other, train, one[1] if trial % 2 else None))
    for name in DEFINITIONS:
        found = [card["scores"][name]["ratio"] or np.nan for card in cards]  # some have no pixels above 100
        assert 0.4 < np.nanmedian(found) < 2.0, (name, found)
        assert np.nanmax(found) < 6.0, (name, found)
    for card in cards:
        assert 1.0 <= card["figure_of_merit"]["value"] < 2.5
        assert card["alarms"]["repeated_fraction"] == card["alarms"]["copied_fraction"] == 0
    assert np.median([card["figure_of_merit"]["value"] for card in cards]) < 1.7
    assert sum(card["alarms"]["mode_collapse"] for card in cards) <= 1


@pytest.mark.parametrize(
    ("spoil", "by"),
    [
        (lambda x, _: scipy.ndimage.gaussian_filter(x.astype(float), (0, 1, 1)), {"pspect_rms", "minkowski_euler"}),
        (lambda x, _: scrambled(x), {"bispectrum", "minkowski_area", "minkowski_euler", "ks"}),
        (lambda x, _: 1.05 * x, {"mean_density"}),
        (lambda x, _: np.repeat(x[::2], 2, axis=0), {"repetition"}),
        (lambda x, _: np.tile(x[: len(x) // 8], (8, 1, 1)), {"repetition"}),
        (lambda x, train: np.resize(train, x.shape), {"memorisation"}),
        (lambda x, train: np.resize(np.rot90(train, axes=(1, 2)), x.shape), {"memorisation"}),
    ],
    ids=["blurred", "phases scrambled", "brighter", "doubled", "repeated eightfold", "copied", "copied and turned"],
)
def test_spoiled_sets_are_caught(real, other, train, spoil, by):
    card = card_of(spoil(other[0], train), real, train)
    found = ratios(card)
    for name in by:
        assert found[name] > 4, found


def test_alarms_are_sounded(real, other, train):
    copied = card_of(np.concatenate([other[0][:-24], train[:24]]), real, train)
    assert copied["alarms"]["copied_fraction"] == pytest.approx(24 / len(other[0]))
    assert any("ALARM: memorisation" in line for line in alarm_lines(copied))
    noise = np.random.default_rng(0).poisson(0.2, other[0].shape)
    collapsed = card_of(other[0][:1] + noise, real, train)
    assert collapsed["alarms"]["mode_collapse"]
    assert any("ALARM: mode collapse" in line for line in alarm_lines(collapsed))
    assert "ALARM" in table(collapsed)


@pytest.mark.parametrize("universes", [1, 2, 3, 4])
def test_few_universes_are_enough_to_see_a_mode_collapse(other, train, universes):
    noise = np.random.default_rng(0).poisson(0.2, other[0].shape)
    few = slices(range(universes))
    collapsed, sound = (card_of(generated, few, train) for generated in (other[0][:1] + noise, other[0]))
    assert collapsed["alarms"]["mode_collapse"] is True
    assert sound["alarms"]["mode_collapse"] is False
    bad, good = (card["figure_of_merit"]["families"]["originality"] for card in (collapsed, sound))
    assert bad > 2 * good


def test_without_a_floor_a_collapse_is_neither_seen_nor_denied(other, train):
    real = other[0][:2], other[1][:2]
    assert card_of(other[0], real, train)["alarms"]["mode_collapse"] is None


@pytest.mark.parametrize(("universes", "words"), [(2, "blocks of slices, an indication only"), (3, "universes")])
def test_what_merit_is_measured_by_is_told(other, train, universes, words):
    assert f"as good as other real {words})" in table(card_of(other[0], slices(range(universes)), train))


def test_caveats(other, real, train):
    card = card_of(other[0], real, train)
    assert caveat_lines(card | {"provenance": {"match_histogram": False, "same_training_set": None}}) == []
    (line,) = caveat_lines(card | {"provenance": {"match_histogram": True, "same_training_set": True}})
    assert "ks" in line
    assert "fitted" in line
    changed = card | {"provenance": {"match_histogram": False, "same_training_set": False}}
    assert "CAUTION: the run has been trained on other slices" in table(changed)
    assert "CAUTION: the run has been trained on other slices" in markdown(changed, "run")


def test_which_way_filaments_differ_is_said(real, other, train):
    """Noise has no direction; stripes have nothing else."""
    clumps = card_of(np.random.default_rng(0).poisson(3.0, other[0].shape), real, train)
    stripes = card_of(np.repeat(other[0][:, :1], other[0].shape[1], axis=1), real, train)
    coherence = {name: card["minkowski"]["generated"]["coherence"] for name, card in (("c", clumps), ("s", stripes))}
    assert coherence["c"] < clumps["minkowski"]["real"]["coherence"] < coherence["s"] == pytest.approx(1.0)
    assert filament_lines(clumps)[0].endswith("more like clumps")
    assert filament_lines(stripes)[0].endswith("more drawn out")
    same = card_of(real[0], real, train)
    assert filament_lines(same)[0].endswith("as drawn out, within the noise floor")
    assert filament_lines(stripes)[0] in table(stripes)
    assert filament_lines(stripes)[0] in markdown(stripes, "stripes")
    empty = card_of(np.full_like(other[0], 3), real, train)
    assert filament_lines(empty) == []


# --- p-values -------------------------------------------------------------------------------------------------------


def test_p_values_need_sixteen_universes(real, other, train):
    card = card_of(other[0], real, train, other[1], p=True)
    assert all(score["p"] is None for score in card["scores"].values())
    assert " -" in table(card)


@pytest.mark.parametrize("labelled", [True, False])
def test_p_values_of_real_universes_and_of_wrong_ones(train, labelled):
    (images, universe), (fresh, labels) = slices(range(16), step=8), slices(range(50, 66), step=8)
    labels = labels if labelled else None
    good = card_of(fresh, (images, universe), train, labels, p=True)["scores"]
    wrong = card_of(1.1 * fresh**1.05, (images, universe), train, labels, p=True)["scores"]
    known = [name for name in good if good[name]["p"] is not None]
    assert set(known) >= set(DEFINITIONS) - {"bright_fraction"}  # there may be no pixels above 100
    assert np.median([good[name]["p"] for name in known]) > 0.1
    for name in ("pspect_rms_s", "wasserstein", "mean_density", "minkowski_area"):
        assert wrong[name]["p"] <= 0.02  # at most one of 99 permutations


def test_p_values_are_uniform_for_equal_universes():
    """Over many trials a p-value below x turns up in a fraction x of them."""
    found = []
    for trial in range(40):
        rng = np.random.default_rng(trial)
        strengths = 1 + 0.1 * rng.normal(size=32)
        images = np.concatenate([rng.exponential(5 * strength, (2, 8, 8)).astype(int) for strength in strengths])
        labels = np.repeat(np.arange(32), 2)
        sides = [
            summarise(images[side], A, mean=5.0, universe=labels[side], bispectrum=False)
            for side in (labels < 16, labels >= 16)
        ]
        found.append(p_values(*sides, repeats=39)["wasserstein"])
    # Standard deviation of the mean of 40 uniform numbers: 0.046.
    assert abs(np.mean(found) - 0.5) < 0.15
    assert np.mean(np.array(found) < 0.2) < 0.4


# --- the figure of merit --------------------------------------------------------------------------------------------


def test_figure_of_merit_is_its_definition():
    names = [name for members in FAMILIES.values() for name in members]
    assert set(names) <= set(DEFINITIONS)
    assert not {"chisq", "chisq_pspect"} & set(names)
    assert figure_of_merit(dict.fromkeys(names, 1.0)) == 1
    assert figure_of_merit(dict.fromkeys(names, 0.01)) == pytest.approx(1)  # luck does not pay
    assert figure_of_merit(dict.fromkeys(names, 5.0)) == pytest.approx(5)
    families = {"pspect_rms": 16.0, "pspect_rms_s": 1.0, "ks": 8.0}  # geometric means 4 and 8
    assert figure_of_merit(families) == pytest.approx(32**0.5)
    assert figure_of_merit(families | {"bispectrum": None, "peaks": float("nan"), "chisq": 1e9}) == pytest.approx(
        32**0.5
    )
    assert np.isnan(figure_of_merit({}))
    assert np.isnan(figure_of_merit({"ks": None}))


# --- tables ---------------------------------------------------------------------------------------------------------


def test_card_is_complete_and_readable(real, other, train):
    card = card_of(other[0], real, train)
    json.dumps(card, allow_nan=False)
    assert set(card) >= {"figure_of_merit", "scores", "alarms", "sets", "noise_floor", "pixels", "minkowski"}
    merit = card["figure_of_merit"]
    assert merit["worst_ratio"] == max(
        ratio for name, ratio in ratios(card).items() if ratio is not None and "chisq" not in name
    )
    assert set(merit["families"]) == set(FAMILIES)
    text, page = table(card), markdown(card, "base run 0")
    for name in DEFINITIONS:
        assert name in text
        assert f"| {name} |" in page
        assert DEFINITIONS[name] in page
    assert "figure of merit" in text
    assert page.startswith("# base run 0\n")
    assert all(len(line) < 160 for line in text.splitlines())


def test_card_says_what_was_fitted(real, other, train):
    card = card_of(other[0], real, train)
    for matched in (False, True):
        card["provenance"] = {"match_histogram": matched}
        assert ("fitted to the training set" in table(card)) == matched
        assert ("fitted to the training set" in markdown(card, "run")) == matched


def test_card_without_likeness_or_floor():
    images = slices([0])[0][:2]
    summary = summarise(images, A)
    card = scorecard(summary, summary, noise_floor(summary))
    assert card["alarms"] is None
    assert card["figure_of_merit"]["value"] is None
    assert card["figure_of_merit"]["worst"] is None
    assert "unknown" in table(card)
    assert "figure of merit: unknown" in markdown(card, "x")


def test_runs_are_ranked_by_merit(real, other, train):
    cards = {
        "base run0": card_of(scrambled(other[0]), real, train),
        "base run1": card_of(other[0], real, train),
        "base run2": card_of(1.05 * other[0], real, train),
    }
    unknown = summarise(real[0][:2], A)
    cards["base run3"] = scorecard(unknown, unknown, noise_floor(unknown))
    lines = ranking(cards).splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    assert header[2:6] == ["base run1", "base run2", "base run0", "base run3"]
    assert len(lines) == 3 + len(DEFINITIONS)
    assert len({len(line) for line in lines}) == 1
    assert "memorisation" in lines[-1]
