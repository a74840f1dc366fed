"""Figures: labels and units, what is drawn, no global state, files."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import Normalize, PowerNorm

from utils import plots
from utils.cli import UserError
from utils.summaries import summarise

RNG_SEED = 0


@pytest.fixture(scope="module")
def images():
    return np.rint(np.exp(1.5 * np.random.default_rng(RNG_SEED).normal(size=(40, 16, 16))))


@pytest.fixture(scope="module")
def pair(images):
    """Summaries of a generated and a real set."""
    return summarise(images[:20] * 1.5, 4, 2.0), summarise(images, 4, 2.0, universe=np.arange(40) // 10)


def test_sample_grid_lin(images):
    figure = plots.sample_grid(images, "lin", 4, 2.0, title="base, step 150", real=images[:9])
    generated, real, bar = figure.axes[:3]
    assert (generated.get_title(), real.get_title()) == ("Generated", "Validation")
    assert figure.get_suptitle() == "base, step 150"
    for ax in (generated, real):
        norm = ax.images[0].norm
        assert isinstance(norm, Normalize)
        assert (norm.vmin, norm.vmax) == (-1, 1)
    assert "s = 2x/(x + a) - 1" in bar.get_ylabel()
    assert any("32 Mpc/$h$" in text.get_text() for text in generated.texts)
    # Nine real slices: three by three on both sides, so that neither looks richer.
    drawn = generated.images[0].get_array()
    assert drawn.shape == (3 * 16 + 2 * 4,) * 2
    np.testing.assert_allclose(drawn[20:36, 40:56], (images[5] - 4) / (images[5] + 4), rtol=1e-6)
    assert np.ma.getmaskarray(drawn)[16:20].all() or np.isnan(drawn[16:20]).all()


def test_sample_grid_pwr(images):
    figure = plots.sample_grid(images[:3], "pwr", 4, 2.0)
    image = figure.axes[0].images[0]
    assert isinstance(image.norm, PowerNorm)
    np.testing.assert_array_equal(image.get_array(), images[0])
    assert "particles per voxel" in figure.axes[1].get_ylabel()


def test_sample_grid_refuses(images):
    with pytest.raises(ValueError, match="cscale"):
        plots.sample_grid(images, "log", 4, 1.0)
    with pytest.raises(ValueError, match="stack"):
        plots.sample_grid(images[0], "lin", 4, 1.0)
    with pytest.raises(ValueError, match="stack"):
        plots.sample_grid(images, "lin", 4, 1.0, real=images[:0])


def test_power_spectrum_figure(pair):
    generated, real = pair
    figure = plots.power_spectrum_figure(generated, real, title="base", real_label="test")
    main, lower = figure.axes
    assert (main.get_xscale(), main.get_yscale()) == ("log", "log")
    assert "Mpc/$h$" in main.get_ylabel()
    assert "$h$/Mpc" in lower.get_xlabel()
    assert "%" in lower.get_ylabel()
    assert main.get_title() == "base"
    lines = {line.get_label(): line for line in main.lines}
    np.testing.assert_allclose(lines["Test"].get_ydata(), real.curve("power").mean)
    np.testing.assert_allclose(lines["Generated"].get_ydata(), generated.curve("power").mean)
    np.testing.assert_allclose(lines["Generated"].get_xdata(), real.k)
    residual = 100 * (generated.curve("power").mean / real.curve("power").mean - 1)
    np.testing.assert_allclose(lower.lines[0].get_ydata(), residual)
    assert [text.get_text() for text in main.texts] == ["Nyquist"]
    assert {text.get_text() for text in main.get_legend().get_texts()} >= {"Test", "Generated", "68 % of test slices"}
    assert "universes" in lower.get_legend().get_texts()[0].get_text()


def test_pixel_histogram_figure(pair):
    generated, real = pair
    edges = plots.histogram_edges(generated, real)
    main, lower = plots.pixel_histogram_figure(generated, real).axes
    assert main.get_yscale() == "log"
    assert "Fraction" in main.get_ylabel()
    assert "particles per voxel" in lower.get_xlabel()
    steps = {patch.get_label(): patch.get_data() for patch in main.patches}
    np.testing.assert_allclose(steps["Validation"].values, real.histogram_curve(edges).mean)
    np.testing.assert_allclose(steps["Generated"].values, generated.histogram_curve(edges).mean)
    np.testing.assert_allclose(steps["Validation"].edges, edges)
    found, expected = generated.histogram_curve(edges).mean, real.histogram_curve(edges).mean
    residual = 100 * np.divide(found - expected, expected, out=np.full_like(expected, np.nan), where=expected > 0)
    drawn = [patch.get_data().values for patch in lower.patches if not patch.get_fill()]
    np.testing.assert_allclose(drawn[0], residual)


def test_the_histogram_holds_every_pixel_of_both_sets(images):
    bright = images.copy()
    bright[0, 0, 0] = 50 * images.max()
    for generated, real in ((bright, images), (images, bright)):
        found = summarise(generated, 4)
        edges = plots.histogram_edges(found, summarise(real, 4))
        np.testing.assert_array_equal(edges[:3], [-0.5, 0.5, 1.5])
        assert edges[-1] > bright.max()
        assert np.nansum(found.histogram_curve(edges).mean * np.diff(edges)) == pytest.approx(1)


def test_pixels_brighter_than_any_real_one_are_marked(images):
    bright = images.copy()
    bright[0, 0, 0] = 50 * images.max()
    real, found = summarise(images, 4), summarise(bright, 4)
    lower = plots.pixel_histogram_figure(found, real).axes[1]
    (above, *_) = (marks.get_offsets()[:, 0] for marks in lower.collections if len(marks.get_offsets()))
    assert lower.get_xlim()[1] > bright.max()
    assert above[-1] > images.max()


def test_off_scale_residuals_are_marked(images):
    real = summarise(images, 4)
    lower = plots.power_spectrum_figure(summarise(images * 9, 4, mean=1.0), real).axes[1]
    assert lower.get_ylim() == (-100, 100)
    assert sum(len(marks.get_offsets()) for marks in lower.collections[2:]) == len(real.k)


@pytest.mark.parametrize("generated", [np.zeros((2, 16, 16)), np.full((2, 16, 16), 1e8), np.full((1, 16, 16), 3)])
def test_hopeless_generators_are_drawn_all_the_same(images, generated):
    """Early in training, and against a real set of one slice; without warnings, which the log would fill up with."""
    found, real = summarise(generated, 4), summarise(images[:1], 4)
    with np.errstate(all="raise", under="ignore"):
        figures = [
            plots.sample_grid(generated, "lin", 4, 1.0, real=images),
            plots.sample_grid(generated, "pwr", 4, 1.0, real=images),
            plots.pixel_histogram_figure(found, real),
            plots.power_spectrum_figure(found, real),
        ]
    for figure in figures:
        assert plots.to_rgb_array(figure).std() > 0


def test_rgb_array(pair):
    array = plots.to_rgb_array(plots.power_spectrum_figure(*pair))
    assert array.dtype == np.uint8
    assert array.shape == (600, 640, 3)
    assert array.max() == 255
    np.testing.assert_array_equal(array, plots.to_rgb_array(plots.power_spectrum_figure(*pair)))


def test_save_writes_a_png_and_leaves_nothing_else(pair, tmp_path):
    plots.save(plots.power_spectrum_figure(*pair), tmp_path / "power_spectrum.png", dpi=50)
    assert [path.name for path in tmp_path.iterdir()] == ["power_spectrum.png"]
    assert matplotlib.image.imread(tmp_path / "power_spectrum.png").shape[:2] == (300, 320)


def test_figures_need_no_pyplot():
    """Drawing must not touch pyplot, which would keep figures alive and look for a display."""
    code = (
        "import sys, numpy as np; from utils import plots\n"
        "from utils.summaries import summarise\n"
        "images = np.ones((4, 8, 8)); images[:, 2, 2] = 5; found = summarise(images, 4)\n"
        "plots.to_rgb_array(plots.sample_grid(images, 'lin', 4, 1.0))\n"
        "plots.to_rgb_array(plots.power_spectrum_figure(found, found))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_display_to_show_on_is_told(monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.get_backend", lambda: "agg")
    with pytest.raises(UserError, match="no display"):
        plots.check_display()


def test_show_hands_every_figure_to_pyplot(pair, monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "figure", shown.append)
    monkeypatch.setattr(plt, "show", lambda: shown.append("shown"))
    figures = [plots.power_spectrum_figure(*pair), plots.pixel_histogram_figure(*pair)]
    plots.show(figures)
    assert shown == [*figures, "shown"]
