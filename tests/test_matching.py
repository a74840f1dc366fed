"""Histogram matching against distributions whose map is known."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from networks.gan import GAN
from networks.losses import TrainingSet, measure_training_set
from networks.matching import HistogramMatching, Tail, fit_shifts, measure_tail
from utils.slices import open_slices

# A fifth of all pixels reach a density of 2, and so on.
TAIL = Tail(2.0 * np.sqrt(2.0) ** np.arange(9), (2e5 * 0.7 ** np.arange(9)).astype(int), 10**6)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def layer_with(knots, shifts):
    layer = HistogramMatching()
    layer.build((None, 8, 8, 1))
    layer.shift(knots, shifts)
    return layer


def mapped(u, knots, shifts):
    return layer_with(knots, shifts)(u.astype(np.float32)[:, None, None, None]).numpy().ravel()


def test_layer_interpolates_between_its_knots_and_is_off_in_training(rng):
    knots, shifts = np.sort(rng.uniform(-2.0, 5.0, 23)), rng.normal(size=23)
    u = rng.uniform(-3.0, 6.0, 500)
    inside = u < knots[-1]
    expected = u + np.interp(u, knots, shifts)
    np.testing.assert_allclose(mapped(u, knots, shifts)[inside], expected[inside], atol=5e-5)
    images = tf.constant(u.astype(np.float32))
    np.testing.assert_array_equal(layer_with(knots, shifts)(images, training=True), images)
    fresh = HistogramMatching()
    np.testing.assert_array_equal(fresh(images), images)


def test_nothing_becomes_twice_as_bright_as_the_brightest_training_pixel():
    """Beyond the last knot, which becomes the density of that pixel, order is kept."""
    brightest, datascale = 1000.0, 4.0
    knots, shifts = np.linspace(-0.5, 2.0, 23), np.linspace(0.0, 0.5 * np.log(brightest / datascale) - 2.0, 23)
    u = np.array([1.9, 2.0, 2.01, 2.1, 2.5, 3.0, 20.0])
    density = datascale * np.exp(2.0 * mapped(u, knots, shifts).astype(np.float64))
    assert density[1] == pytest.approx(brightest, rel=1e-5)
    # No kink: close to the knot it goes on as before.
    assert density[2] == pytest.approx(brightest * np.exp(0.02), rel=2e-3)
    assert (np.diff(density) > 0).all()
    assert density[-1] == pytest.approx(2.0 * brightest, rel=1e-5)
    # Without a fit, and with one to too faint a set, there is no end.
    for nothing in (np.zeros(23), np.full(23, -0.4)):
        np.testing.assert_array_equal(mapped(u, nothing, np.zeros(23)), u.astype(np.float32))


def test_bounds(tiny_config):
    def bounds(whole, **options):
        densities = np.full(100, 5000)
        return measure_tail([densities], whole, dataclasses.replace(tiny_config, **options)).bounds

    np.testing.assert_allclose(bounds(False)[[0, 2, 20, 21]], [2.0, 4.0, 2048.0, 5000.0])
    assert bounds(True)[-1] == 4999.5
    # From half a particle less on a density is rounded to these; or from them on, where it is rounded down.
    np.testing.assert_array_equal(bounds(True)[:6], [1.5, 2.5, 3.5, 5.5, 7.5, 10.5])
    np.testing.assert_array_equal(bounds(True, count_noise=True)[:6], [1.5, 2.5, 3.5, 5.5, 7.5, 10.5])
    np.testing.assert_array_equal(bounds(True, dequantise=True)[:6], [2, 3, 4, 6, 8, 11])
    # Where particles are few, several would round to the same.
    few = bounds(True, datascale=0.1)
    assert few[0] == 0.5
    assert np.all(np.diff(few) > 0)


def test_counting(tiny_config, rng):
    batches = rng.poisson(rng.lognormal(0.0, 1.5, (3, 4, 50, 50)))
    batches[0, 0, 0, 0] = 10_000
    tail = measure_tail(batches, True, tiny_config)
    np.testing.assert_array_equal(tail.counts, [(batches > bound).sum() for bound in tail.bounds])
    assert tail.counts[-1] == 1
    assert tail.counts[-2] >= 16
    assert tail.pixels == batches.size
    # A density that hardly any pixel reaches is not known well enough.
    assert tail.bounds[-2] < np.sort(batches, axis=None)[-16]


def test_a_set_without_bright_pixels_has_no_tail(tiny_config):
    for batches in ([np.zeros((2, 8, 8), int)], []):
        tail = measure_tail(batches, True, tiny_config)
        assert len(tail.bounds) == len(tail.counts) == 0
        _, shifts = fit_shifts(np.zeros(10), tail, 4.0)
        np.testing.assert_array_equal(shifts, np.zeros(23))


@pytest.mark.parametrize("rounding", ["continuous", "nearest", "count_noise", "dequantise"])
def test_fit_recovers_a_known_map(tiny_config, rng, rounding):
    """Fields whose logarithm is another linear function of the same Gaussian: the map is that function."""
    options = {rounding: True} if rounding in ("count_noise", "dequantise") else {}
    config = dataclasses.replace(tiny_config, **options)
    gaussian = rng.normal(size=2_000_000)
    real, generated = np.exp(-1.0 + 1.6 * gaussian), np.exp(-1.1 + 1.4 * gaussian)

    def rounded(densities):
        """As generated densities are, by the time that they are scored."""
        if rounding == "continuous":
            return densities
        noise = {"nearest": 0.5, "dequantise": 0.0}
        return np.floor(densities + noise.get(rounding, rng.uniform(size=densities.shape)))

    def counted(densities):
        if rounding == "continuous":
            return [densities]
        # Simulations count particles; the mean of a count is the density.
        return [rng.poisson(densities)]

    tail = measure_tail(counted(real), rounding != "continuous", config)
    u = 0.5 * np.log(generated / config.datascale)
    after = config.datascale * np.exp(2.0 * mapped(u, *fit_shifts(u, tail, config.datascale)))
    inside = (real > 10.0) & (real < 300.0)
    np.testing.assert_allclose(after[inside], real[inside], rtol=0.12)
    known = tail.counts > 1000
    assert np.count_nonzero(known) > 9

    def reached(densities):
        return np.array([np.count_nonzero(densities >= bound) for bound in tail.bounds[known]])

    np.testing.assert_allclose(reached(rounded(after)), tail.counts[known], rtol=0.04)
    assert np.abs(reached(rounded(generated)) / tail.counts[known] - 1.0).max() > 0.5
    assert after.max() == pytest.approx(tail.bounds[-1], rel=1e-3)


@pytest.mark.parametrize("generated", [3_000, 30_000, 300_000])
def test_brightest_pixels_stay_where_they_are_right(tiny_config, rng, generated):
    """Of sets of any size: the brightest of few pixels is fainter than that of many, and no worse for it."""
    tops = []
    for _ in range(64):
        # Densities above 2 with a tail as steep as that of the simulations, reached by 5 % of the pixels.
        real, made = (2.0 * (0.05 / rng.uniform(size=number)) ** 0.25 for number in (30_000, generated))
        tail = measure_tail([real], False, tiny_config)
        _, shifts = fit_shifts(0.5 * np.log(made / tiny_config.datascale), tail, tiny_config.datascale)
        tops.append(shifts[-1])
    assert abs(np.mean(tops)) < 0.07


@pytest.mark.parametrize("level", [-9.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 1.0])
def test_map_rises_whatever_the_generator_makes(tiny_config, rng, level, sigma):
    table = fit_shifts(rng.normal(level, sigma, 10_000), TAIL, tiny_config.datascale)
    u = np.linspace(-10.0, 10.0, 3001)
    assert np.all(np.diff(mapped(u, *table)) > -1e-5)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_does_not_notice(tiny_config, rng, ema_decay):
    """Weights are bit for bit those of a run without, and so is the order of pixels in brightness."""
    config = dataclasses.replace(tiny_config, ema_decay=ema_decay, match_histogram=True)
    without = dataclasses.replace(config, match_histogram=False)
    gans = GAN(config, training_set=TrainingSet(tail=TAIL)), GAN(without)
    for _ in range(3):
        densities = rng.poisson(rng.lognormal(-0.5, 1.0, (6, 8, 8)))
        for gan in gans:
            gan.train_on_densities(densities)
            gan.match_histogram()
    for network in ("generator", "discriminator"):
        pair = (getattr(gan, network).trainable_variables for gan in gans)
        for weight, expected in zip(*pair, strict=True):
            np.testing.assert_array_equal(weight, expected)
    matched, plain = (gan.sample(16, seed=5).ravel() for gan in gans)
    # To rounding, which a map as steep as at first makes larger.
    assert np.all(np.diff(np.log(matched[np.argsort(plain)])) > -1e-2)
    assert matched.max() > 3.0 * plain.max()


@pytest.mark.parametrize(("total_steps", "rtol"), [(None, 0.06), (2, 0.06), (1, 0.025)])
def test_samples_have_the_training_histogram(tiny_config, rng, total_steps, rtol):
    """More nearly so late in a run."""
    config = dataclasses.replace(tiny_config, match_histogram=True, ema_decay=0.5)
    gan = GAN(config, total_steps, TrainingSet(tail=TAIL))
    gan.train_on_densities(rng.poisson(1.0, (6, 8, 8)))
    for weight in gan.average_generator.trainable_variables:
        weight.assign(0.4 * rng.normal(size=weight.shape))
    gan.match_histogram()
    densities = gan.sample(65536, seed=9)
    found = [np.mean(densities >= bound * (1 - 1e-5)) for bound in TAIL.bounds]
    np.testing.assert_allclose(found, TAIL.counts / TAIL.pixels, rtol=rtol)


def test_tail_of_a_training_set(tiny_config, rng, tmp_path):
    counts = rng.poisson(rng.lognormal(0.0, 1.5, (300, 8, 8))).astype(np.int16)
    for split in ("train", "val"):
        np.save(tmp_path / f"raw_{split}.npy", counts[..., None])
    config = dataclasses.replace(tiny_config, match_histogram=True, count_noise=True)
    with open_slices("raw", "train", 8, tmp_path) as slices:
        measured = measure_training_set(config, slices)
    expected = measure_tail([counts], True, config)
    for found, value in zip(measured.tail, expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert measured.power is None


def test_a_training_set_too_faint_to_map_is_told(tiny_config, tmp_path, caplog):
    for split in ("train", "val"):
        np.save(tmp_path / f"raw_{split}.npy", np.ones((20, 8, 8, 1), np.int16))
    with open_slices("raw", "train", 8, tmp_path) as slices:
        measure_training_set(dataclasses.replace(tiny_config, match_histogram=True), slices)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "match_histogram changes nothing" in message
