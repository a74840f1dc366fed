"""Figures of the scorecard: what is drawn, labels and units, and hopeless generators."""

import itertools

import matplotlib.image
import numpy as np
import pytest

from tests.log_normal import distances, slices
from utils import plots, plots_scorecard
from utils.likeness import compare_slices
from utils.noise import noise_floor
from utils.plots_scorecard import (
    bispectrum_figure,
    interpolation_figure,
    likeness_figure,
    minkowski_figure,
    pairs_figure,
    peaks_figure,
    scores_figure,
    summary_figure,
)
from utils.scorecard import scorecard
from utils.summaries import MINKOWSKI_THRESHOLDS, summarise
from utils.transforms import transform

A = 4.0


@pytest.fixture(scope="module")
def real_slices():
    return slices(range(4), step=8)


@pytest.fixture(scope="module")
def everything(real_slices):
    """Summaries of a generated and a real set, their likeness and scorecard, and the slices."""
    images, universe = real_slices
    generated = slices(range(10, 14), step=8)[0] * 1.2
    return everything_of(generated, images, universe, images[::5])


def everything_of(generated, images, universe, training):
    found, real = summarise(generated, A, 2.0, 3.0), summarise(images, A, 2.0, 3.0, universe=universe)
    known = distances(training, generated, images)
    likeness = compare_slices(generated, images, A, universe, training_distance=known, pairs=100)
    card = scorecard(found, real, noise_floor(real, likeness, repeats=20), likeness)
    return found, real, likeness, card, generated, images


def labelled(ax):
    return {line.get_label(): line for line in ax.lines}


def test_bispectrum(everything):
    generated, real = everything[:2]
    main, lower = bispectrum_figure(generated, real, "base", "test").axes
    lines = labelled(main)
    np.testing.assert_allclose(lines["Test"].get_ydata(), real.curve("bispectrum").mean)
    np.testing.assert_allclose(lines["Generated"].get_ydata(), generated.curve("bispectrum").mean)
    np.testing.assert_allclose(lines["Test"].get_xdata(), real.k[:10])
    assert "(Mpc/$h$)$^4$" in main.get_ylabel()
    assert "$h$/Mpc" in lower.get_xlabel()
    assert "%" in lower.get_ylabel()
    assert main.get_title() == "base"
    assert "bootstrap" in main.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize("pixels", [8, 32])
def test_wave_numbers_are_written_apart(everything, pixels):
    """Small slices span little more than a decade."""
    summaries = (summarise(images[:, :pixels, :pixels], A, 1.0, 3.0) for images in everything[4:])
    figure = bispectrum_figure(*summaries)
    figure.draw_without_rendering()
    axis = figure.axes[1].xaxis
    texts = [label for label in axis.get_ticklabels(which="both") if label.get_text()]
    inside = [
        text for text in texts if axis.get_view_interval()[0] < text.get_position()[0] < axis.get_view_interval()[1]
    ]
    boxes = sorted((text.get_window_extent() for text in inside), key=lambda box: box.x0)
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_bands_hold_their_curves_where_they_reach_below_zero(real_slices):
    """On a logarithmic axis, which has no place for their lower ends."""
    images, universe = real_slices
    real = summarise(images, A, 1.0, 3.0, universe=universe)
    rng = np.random.default_rng(0)
    found = summarise(np.where(rng.random((8, 1, 1)) < 0.2, 40, 1) * rng.poisson(0.3, (8, 32, 32)), A, 1.0, 3.0)
    curve = found.curve("bispectrum")
    assert (curve.low <= 0).any()
    band = bispectrum_figure(found, real).axes[0].collections[1].get_paths()[0].vertices
    assert band[:, 1].min() > 0
    np.testing.assert_allclose(band[:, 1].max(), curve.high.max())


def test_minkowski(everything):
    generated, real = everything[:2]
    figure = minkowski_figure(generated, real, "base")
    for row in range(3):
        main, lower = figure.axes[2 * row : 2 * row + 2]
        np.testing.assert_allclose(labelled(main)["Generated"].get_ydata(), generated.curve("minkowski").mean[row])
        np.testing.assert_array_equal(labelled(main)["Validation"].get_xdata(), MINKOWSKI_THRESHOLDS)
        assert "particles per voxel" in lower.get_xlabel()
    assert figure.get_suptitle() == "base"


def test_peaks(everything):
    generated, real = everything[:2]
    main, lower = peaks_figure(generated, real).axes
    steps = {patch.get_label(): patch.get_data() for patch in main.patches}
    np.testing.assert_allclose(steps["Generated"].values, generated.curve("peaks").mean)
    np.testing.assert_allclose(steps["Validation"].values, real.curve("peaks").mean)
    assert "per slice" in main.get_ylabel()
    assert "%" in lower.get_ylabel()


def test_likeness(everything):
    figure = likeness_figure(everything[2], "base")
    assert [ax.get_xlabel() for ax in figure.axes] == list(plots_scorecard._LIKENESS_LABELS.values())
    for ax in figure.axes:
        assert set(labelled(ax)) >= {"Generated", "Validation"}
        assert labelled(ax)["Generated"].get_ydata()[-1] == 1
        assert len(ax.collections) == 2  # the two bootstrap bands


def test_likeness_says_what_real_slices_were_told_apart_by(everything):
    for groups in ("universes", "blocks"):
        (*_, last) = likeness_figure(everything[2], groups=groups).axes[1].lines
        assert last.get_label() == f"Validation, other {groups}"


@pytest.mark.parametrize(("universes", "label"), [(2, "blocks of slices"), (4, "universes")])
def test_scores_say_what_their_floor_is_of(everything, real_slices, universes, label):
    images, universe = real_slices
    few = universe < universes
    card = everything_of(everything[4], images[few], universe[few], images[::5])[3]
    legend = scores_figure(card).axes[0].get_legend()
    assert legend.get_texts()[0].get_text() == f"68 % of other real {label}"


def test_scores(everything):
    card = everything[3]
    (ax,) = scores_figure(card, "base").axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    places = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"}
    for place, name in enumerate(names):
        ratio = card["scores"][name.replace(" ", "_")]["ratio"]
        if ratio is not None:
            assert places[place] == pytest.approx(max(ratio, 0.1))
    assert "chisq" not in names
    assert "noise floor" in ax.get_xlabel()


def test_scores_unknown():
    images = slices([0])[0][:2]
    found = summarise(images, A)
    (ax,) = scores_figure(scorecard(found, found, noise_floor(found))).axes
    assert {text.get_text() for text in ax.texts} == {"unknown"}


def test_pairs(everything):
    images = everything[5]
    labels = [("Generated", "Nearest", "Distance 1"), ("Generated", "Training slice", "Distance 2")]
    pairs = [(images[0], images[1], *labels[0]), (images[2], images[3], *labels[1])]
    figure = pairs_figure(pairs, "pwr", A, "base")
    drawn = [ax for ax in figure.axes if ax.images]
    titles = [ax.get_title() for ax in drawn[:6]]
    assert titles == [*labels[0], *labels[1]]
    assert "Difference in $s$" in [ax.get_ylabel() for ax in figure.axes]
    np.testing.assert_array_equal(drawn[4].images[0].get_array(), images[3])
    np.testing.assert_allclose(
        drawn[5].images[0].get_array(), transform(images[2], A) - transform(images[3], A), rtol=1e-6
    )
    assert drawn[0].images[0].norm is drawn[4].images[0].norm


def test_interpolation(everything):
    images = everything[5][:8].reshape(2, 4, 32, 32)
    figure = interpolation_figure(images, "lin", A, "base")
    np.testing.assert_allclose(figure.axes[5].images[0].get_array(), transform(images[1, 1], A), rtol=1e-6)
    assert (figure.axes[0].get_title(), figure.axes[3].get_title()) == ("$z_1$", "$z_2$")


def test_summary_page(everything):
    generated, real, _, card, images, real_images = everything
    figure = summary_figure(card, generated, real, images, real_images, "lin", "base run 0", "test")
    assert figure.get_suptitle().startswith("base run 0\nfigure of merit")
    labels = {ax.get_ylabel() for ax in figure.axes} | {ax.get_xlabel() for ax in figure.axes}
    for word in ("Fraction of pixels", "Power spectrum", "bispectrum", "Euler", "noise floor"):
        assert any(word in label for label in labels), word
    assert {"Generated", "Test"} <= {ax.get_title() for ax in figure.axes}


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_files(everything, tmp_path, suffix):
    path = tmp_path / f"summary.{suffix}"
    generated, real, _, card, images, real_images = everything
    plots.save(summary_figure(card, generated, real, images, real_images, "pwr"), path, dpi=40)
    assert path.read_bytes()[:4] == (b"\x89PNG" if suffix == "png" else b"%PDF")
    if suffix == "png":
        assert matplotlib.image.imread(path).std() > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("generated", [np.zeros((8, 32, 32)), np.full((8, 32, 32), 1e6), np.full((1, 32, 32), 3)])
def test_hopeless_generators_are_drawn_all_the_same(real_slices, generated):
    images, universe = real_slices
    found, real, likeness, card, *stacks = everything_of(generated, images, universe, images[:4])
    figures = [
        bispectrum_figure(found, real),
        minkowski_figure(found, real),
        peaks_figure(found, real),
        likeness_figure(likeness),
        scores_figure(card),
        summary_figure(card, found, real, *stacks, "lin"),
    ]
    for figure in figures:
        assert plots.to_rgb_array(figure).std() > 0
