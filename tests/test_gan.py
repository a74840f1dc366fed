"""The training step against a NumPy float64 twin, and the invariances that the design promises."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from networks.dcgan import draw_slices
from networks.gan import GAN
from networks.gradients import pairwise_gradients
from networks.images import images_from_density, images_from_s
from networks.layers import BatchNormalization, Conv2D
from networks.losses import TrainingSet, crossentropy, r1_penalty, r1_penalty_of_slices
from networks.optimizers import first_moments
from networks.schedules import average_decay
from tests import numpy_twin
from utils.transforms import invtransform, transform


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def randomise(network, rng, sigma=0.3):
    """Weights large enough that gradients stand far above float32 rounding."""
    for weight in network.trainable_variables:
        weight.assign(rng.normal(0.5 if weight.name == "gamma" else 0.0, sigma, weight.shape))


def twin_of(network, kind, learning_rate):
    return kind(
        [w.numpy() for w in network.trainable_variables],
        [w.numpy() for w in network.non_trainable_variables if "seed" not in w.name],
        learning_rate,
    )


def fakes(gan, u, step=0):
    """Generated slices as the discriminator sees them in a step."""
    return images_from_density(*gan._fake_fields(u, tf.constant(step, tf.int64)), gan.config)


def inputs(config, rng, n=6):
    density = rng.lognormal(-0.5, 1.5, (n, config.img_dim, config.img_dim, 1))
    real = transform(density.astype(np.float32), config.datascale)
    z = rng.normal(size=(n, config.noise_vect_len)).astype(np.float32)
    return real, z, np.arange(n) == 2


@pytest.mark.parametrize("datafmt", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("ratio", "betas", "datascale", "norm"), [(2, (0.5, 0.999), 4.0, "batch"), (4, (0.1, 0.9), 2.5, "none")]
)
def test_steps_match_the_numpy_twin(tiny_config, rng, datafmt, ratio, betas, datascale, norm):
    options = {"DG_update_ratio": ratio, "adam_betas": betas, "datascale": datascale, "discriminator_norm": norm}
    config = dataclasses.replace(tiny_config, datafmt=datafmt, **options)
    gan = GAN(config)
    randomise(gan.generator, rng)
    randomise(gan.discriminator, rng)
    generator = twin_of(gan.generator, numpy_twin.Generator, config.learn_rate[0])
    kind = numpy_twin.Discriminator if norm == "batch" else numpy_twin.PlainDiscriminator
    discriminator = twin_of(gan.discriminator, kind, config.learn_rate[1])
    generator.datascale, generator.betas, discriminator.betas = datascale, betas, betas
    for _ in range(3):
        real, z, flips = inputs(config, rng)
        losses = gan.train_step(real, z, flips)
        expected = numpy_twin.train_step(
            generator, discriminator, real.astype(np.float64), z.astype(np.float64), flips, ratio // 2
        )
        for name, value in expected.items():
            assert float(losses[name]) == pytest.approx(value, rel=2e-4), name
    for network, twin in ((gan.generator, generator), (gan.discriminator, discriminator)):
        for weight, expected in zip(network.trainable_variables, twin.trainable, strict=True):
            # Three Adam steps move a weight by up to 3 learning rates; rounding may cost a hundredth of that.
            np.testing.assert_allclose(weight.numpy(), expected, rtol=0, atol=0.03 * twin.learning_rate)
        for weight, expected in zip(network.non_trainable_variables, twin.moving, strict=True):
            np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_weights_do_not_depend_on_the_data_format(tiny_config, rng):
    first = GAN(dataclasses.replace(tiny_config, datafmt="channels_first"))
    last = GAN(dataclasses.replace(tiny_config, datafmt="channels_last"))
    for a, b in ((first.generator, last.generator), (first.discriminator, last.discriminator)):
        b.set_weights(a.get_weights())
    z = rng.normal(size=(5, tiny_config.noise_vect_len)).astype(np.float32)
    images_first, images_last = first.generator(z).numpy(), last.generator(z).numpy()
    assert images_first.shape == (5, 2, 8, 8)
    assert images_last.shape == (5, 8, 8, 2)
    np.testing.assert_allclose(np.moveaxis(images_first, 1, -1), images_last, atol=1e-6)
    np.testing.assert_allclose(first.discriminator(images_first), last.discriminator(images_last), atol=1e-5)


def test_second_channel_is_of_the_same_density_for_real_and_generated(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, datafmt="channels_last"))
    randomise(gan.generator, rng, sigma=1.0)
    fake = gan.generator(rng.normal(size=(4, tiny_config.noise_vect_len)).astype(np.float32)).numpy().astype(float)
    density = 4 * (1 + fake[..., 0]) / np.maximum(1 - fake[..., 0], 1e-7)
    moderate = density < 1e4
    assert moderate.mean() > 0.5
    np.testing.assert_allclose(fake[..., 1][moderate], np.tanh(density[moderate] / 1000), atol=2e-3)

    counts = rng.integers(0, 4000, (3, 8, 8, 1)).astype(np.float32)
    real = images_from_s(transform(counts, 4.0), gan.config).numpy()
    np.testing.assert_allclose(real[..., 1], np.tanh(counts[..., 0] / 1000), atol=1e-3)


def test_saturated_generator_has_finite_gradients(tiny_config, rng):
    """Where s rounds to 1 the textbook inverse of s(x) divides by zero; ours must not."""
    gan = GAN(tiny_config)
    gan.generator.trainable_variables[-1].assign([50.0])  # the bias of the last pre-activation
    real, z, flips = inputs(tiny_config, rng)
    gan.train_step(real, z, flips)
    assert all(np.isfinite(weight.numpy()).all() for weight in gan.generator.weights)
    assert np.isfinite(gan.generator.sample(3)).all()


def test_generator_update_leaves_the_discriminators_statistics(tiny_config, rng):
    """Over one step the moving statistics move once per discriminator update: twice, not three times."""
    config = dataclasses.replace(tiny_config, learn_rate=(1e-4, 1e-30), datafmt="channels_last")
    gan = GAN(config)
    real, z, flips = inputs(config, rng)
    first = gan.discriminator.layers[1]
    fake = gan.generator(z, training=True)
    batch_means = [
        keras.ops.mean(first(images), axis=(0, 1, 2)).numpy() for images in (images_from_s(real, config), fake)
    ]
    gan.train_step(real, z, flips)
    moving_mean = gan.discriminator.non_trainable_variables[0].numpy()
    np.testing.assert_allclose(moving_mean, 0.9 * 0.1 * batch_means[0] + 0.1 * batch_means[1], rtol=1e-3, atol=1e-6)


def test_a_step_is_a_function_of_seed_and_step(tiny_config, rng):
    config = dataclasses.replace(tiny_config, label_flip=0.3, augment=True)
    counts = rng.integers(0, 50, (2, 6, 8, 8)).astype(np.int16)
    runs = []
    for start in (0, 0, 1):
        gan = GAN(config)
        gan.step = start
        runs.append({name: float(loss) for name, loss in gan.train_on_densities(counts[0]).items()})
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    other = GAN(dataclasses.replace(config, seed=1))
    assert {name: float(loss) for name, loss in other.train_on_densities(counts[0]).items()} != runs[0]


def test_losses_are_averaged_since_the_last_reset(tiny_config, rng):
    gan = GAN(tiny_config)
    steps = [gan.train_step(*inputs(tiny_config, rng)) for _ in range(3)]
    for name, mean in gan.mean_losses().items():
        assert mean == pytest.approx(np.mean([float(losses[name]) for losses in steps]), rel=1e-5)
    gan.reset_losses()
    assert gan.mean_losses() == {}


def test_average_generator_follows_its_definition(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, ema_decay=0.1))
    expected = [weight.numpy().astype(float) for weight in gan.generator.weights]
    for step in range(4):
        gan.train_step(*inputs(tiny_config, rng))
        decay = min(0.1, (1 + step) / (14 + step))
        expected = [decay * e + (1 - decay) * w.numpy() for e, w in zip(expected, gan.generator.weights, strict=True)]
    for weight, value in zip(gan.average_generator.weights, expected, strict=True):
        np.testing.assert_allclose(weight.numpy(), value, rtol=1e-4, atol=1e-6)
    assert gan.sampling_generator is gan.average_generator


@pytest.mark.parametrize(("ema_decay", "steps", "age"), [(0.9999, 4000, 286), (0.99, 4000, 99)])
def test_average_reaches_back_over_a_part_of_the_run_or_a_number_of_steps(tiny_config, ema_decay, steps, age):
    decays = average_decay(tf.range(steps), dataclasses.replace(tiny_config, ema_decay=ema_decay)).numpy()
    # What a step adds to the average is what the later ones leave of it.
    weights = (1.0 - decays) * np.append(np.cumprod(decays[:0:-1].astype(float))[::-1], 1.0)
    assert weights.sum() == pytest.approx(1.0, abs=1e-3)
    assert weights @ np.arange(steps)[::-1] == pytest.approx(age, rel=0.01)


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_cosine_schedule_ends_at_its_floor(tiny_config, rng, floor):
    config = dataclasses.replace(tiny_config, lr_schedule="cosine", lr_floor=floor)
    gan = GAN(config, total_steps=4)
    for step in range(4):
        gan.train_step(*inputs(config, rng))
        factor = floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * step / 4))
        assert float(gan.generator_optimizer.learning_rate.numpy()) == pytest.approx(config.learn_rate[0] * factor)
    with pytest.raises(ValueError, match="total_steps"):
        GAN(config)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_crossentropy_and_its_gradient(label):
    logits = np.array([-200, -30, -1, -1e-3, 0, 1e-3, 1, 30, 200], np.float32)[:, None]
    labels = np.full_like(logits, label)
    gradient = tf.function(lambda logits: tf.gradients(crossentropy(tf.constant(labels), logits), logits)[0])
    loss = float(crossentropy(tf.constant(labels), tf.constant(logits)))
    assert loss == pytest.approx(numpy_twin.crossentropy(labels, logits.astype(float)), rel=1e-6)
    expected = (numpy_twin.sigmoid(logits.astype(float)) - labels) / len(logits)
    np.testing.assert_allclose(gradient(tf.constant(logits)), expected, rtol=1e-5, atol=1e-8)


def test_r1_penalty_of_a_known_discriminator(rng):
    """D(x) = sum(w x²)/2 has gradient w x: the penalty is half the mean of |w x|²."""
    images, w = rng.normal(size=(5, 2, 4, 4)).astype(np.float32), rng.normal(size=(2, 4, 4)).astype(np.float32)

    @tf.function
    def penalty_and_slopes(images, weights):
        penalty = r1_penalty(lambda x: tf.reduce_sum(0.5 * weights * x**2, axis=(1, 2, 3))[:, None], images)
        return penalty, *pairwise_gradients(penalty, [weights])

    penalty, slopes = penalty_and_slopes(tf.constant(images), tf.constant(w))
    squares = np.sum((w * images) ** 2, axis=(1, 2, 3))
    assert float(penalty) == pytest.approx(0.5 * squares.mean(), rel=1e-5)
    np.testing.assert_allclose(slopes, w * (images**2).mean(0), rtol=1e-4)


def assert_gradient_is_of_differences(penalty, gan):
    """With respect to the first two kernels of the discriminator."""
    kernels = [weight for weight in gan.discriminator.trainable_variables if weight.name == "kernel"][:2]
    gradients = tf.function(lambda: pairwise_gradients(penalty(), kernels))()
    compiled, h = tf.function(penalty), 1e-3
    for kernel, gradient in zip(kernels, gradients, strict=True):
        start, slopes = kernel.numpy(), np.empty(kernel.shape)
        # Entry by entry: the error is nearly at right angles to the gradient, and a slope along it would not show it.
        for entry in np.ndindex(*kernel.shape):
            ends = []
            for offset in (h, -h):
                moved = start.copy()
                moved[entry] += offset
                kernel.assign(moved)
                ends.append(float(compiled()))
            slopes[entry] = (ends[0] - ends[1]) / (2 * h)
        kernel.assign(start)
        # The median, since the penalty jumps where a step leads over the kink of a LeakyReLU.
        error = np.median(np.abs(gradient - slopes)) / np.sqrt(np.mean(slopes**2))
        assert error < 0.01, f"{kernel.path}: {error:.1%}"


def test_r1_penalty_through_batch_norm_has_the_gradient_of_finite_differences(tiny_config, rng):
    """A mean taken for a constant inside the variance goes unnoticed with one normalised layer, not with two."""
    gan = GAN(dataclasses.replace(tiny_config, r1_weight=1.0, datafmt="channels_last"))
    randomise(gan.discriminator, rng)
    images = tf.constant(rng.normal(size=(6, 8, 8, 2)).astype(np.float32))
    statistics = gan.discriminator.non_trainable_variables
    assert_gradient_is_of_differences(
        lambda: r1_penalty(lambda seen: gan._discriminate(seen, statistics)[0], images), gan
    )


def test_r1_penalty_by_log_density_has_the_gradient_of_finite_differences(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, discriminator_norm="none", r1_coordinate="log_density"))
    randomise(gan.discriminator, rng)
    real = tf.constant(transform(rng.lognormal(1.0, 2.0, (6, 8, 8, 1)), 4.0).astype(np.float32))
    assert_gradient_is_of_differences(lambda: r1_penalty_of_slices(gan.discriminator, real, gan.config), gan)


def test_r1_penalty_by_log_density_against_finite_differences(tiny_config, rng):
    config = dataclasses.replace(tiny_config, discriminator_norm="none", r1_coordinate="log_density")
    gan = GAN(config)
    randomise(gan.discriminator, rng, sigma=0.05)
    density = np.concatenate([np.zeros((2, 8, 4)), rng.uniform(1.0, 900.0, (2, 8, 4))], axis=2)
    log_density = np.log1p(density / 4.0)

    def logits(log_density):
        s = transform(4.0 * np.expm1(log_density)[..., None], 4.0).astype(np.float32)
        return gan.discriminator(images_from_s(tf.constant(s), config)).numpy()[:, 0].astype(float)

    slopes, h = np.empty(density.shape), 1e-2
    for row, column in np.ndindex(8, 8):
        offset = np.zeros(density.shape)
        # Forwards only: no density is below zero.
        offset[:, row, column] = h
        slopes[:, row, column] = (logits(log_density + offset) - logits(log_density)) / h
    real = tf.constant(transform(density[..., None], 4.0).astype(np.float32))
    penalty = tf.function(r1_penalty_of_slices)(gan.discriminator, real, config)
    assert float(penalty) == pytest.approx(0.5 * np.mean(np.sum(slopes**2, axis=(1, 2))), rel=0.02)


def test_r1_penalty_is_lazy(tiny_config, rng):
    config = dataclasses.replace(tiny_config, r1_weight=10.0, r1_interval=2)
    gan = GAN(config)
    steps = [gan.train_step(*inputs(config, rng)) for _ in range(4)]
    assert ["r1_penalty" in losses for losses in steps] == [True, False, True, False]
    assert gan.mean_losses()["r1_penalty"] == pytest.approx(
        np.mean([float(losses["r1_penalty"]) for losses in steps[::2]]), rel=1e-5
    )


def test_r1_penalty_takes_part_in_the_update(tiny_config, rng):
    """With its weight, times its interval, for it is computed so seldom."""
    config = dataclasses.replace(tiny_config, discriminator_norm="none", learn_rate=(1e-30, 1e-30))
    batch, moments = inputs(config, rng), []
    for options in ({}, {"r1_weight": 3.0, "r1_interval": 2}):
        gan = GAN(dataclasses.replace(config, **options))
        randomise(gan.discriminator, np.random.default_rng(1))
        gan.train_step(*batch)
        moments.append(first_moments(gan.discriminator_optimizer))
    weights = gan.discriminator.trainable_variables[:-1]  # on the last bias no slope depends
    slopes = tf.function(
        lambda: pairwise_gradients(r1_penalty_of_slices(gan.discriminator, tf.constant(batch[0]), config), weights)
    )()
    for without, penalised, slope in zip(*(values[:-1] for values in moments), slopes, strict=True):
        # Adam's first moment is half a gradient, and half of that after the update on generated slices.
        scale = np.max(np.abs(slope))
        np.testing.assert_allclose((penalised - without) / scale, 0.25 * 6.0 * slope / scale, atol=1e-3)


def test_xla_computes_the_same_step(tiny_config, rng):
    """Steps with and without R1 penalty of the recommended recipe, but for what is drawn at random."""
    options = {"discriminator_norm": "none", "r1_coordinate": "log_density", "critic_weight": 0.5, "ema_decay": 0.9}
    options |= {"r1_weight": 0.5, "r1_growth": 3.0, "r1_interval": 2, "lr_schedule": "cosine"}
    config = dataclasses.replace(tiny_config, **options)
    training_set = TrainingSet(spectra_mean=np.zeros(10), spectra_sigma=np.ones(10))
    usual, compiled = (GAN(config, 5, training_set, xla=xla) for xla in (False, True))
    for weight in usual.discriminator.trainable_variables + compiled.discriminator.trainable_variables:
        weight.assign(10.0 * weight)  # so that there is something to penalise
    for _ in range(3):
        batch = inputs(config, rng)
        ours, theirs = (gan.train_step(*batch) for gan in (compiled, usual))
        assert ours.keys() == theirs.keys()
        for name, loss in theirs.items():
            assert float(ours[name]) == pytest.approx(float(loss), rel=1e-4), name
    for (name, variable), other in zip(compiled.state().items(), usual.state().values(), strict=True):
        np.testing.assert_allclose(variable.numpy(), other.numpy(), atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(("step", "weight"), [(0, 1.0), (7, 1.0), (11, 2.0), (14, 3.0), (19, 3.0)])
def test_r1_penalty_grows(tiny_config, rng, step, weight):
    """A step of twenty is that of a constant penalty with the weight of that time."""
    options = {"r1_weight": 1.0, "r1_growth": 3.0}, {"r1_weight": weight}
    growing, constant = (GAN(dataclasses.replace(tiny_config, **values), total_steps=20) for values in options)
    batch = inputs(tiny_config, rng)
    for gan in (growing, constant):
        gan.step = step
        gan.train_step(*batch)
    for own, other in zip(growing.discriminator.weights, constant.discriminator.weights, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)
    with pytest.raises(ValueError, match="total_steps"):
        GAN(growing.config)


@pytest.mark.parametrize("datafmt", ["channels_first", "channels_last"])
@pytest.mark.parametrize("count_noise", [False, True])
def test_image_channels(tiny_config, rng, datafmt, count_noise):
    """Real and generated slices of the same density are the same images, whatever way they come."""
    config = dataclasses.replace(tiny_config, datafmt=datafmt, count_noise=count_noise)
    counts = rng.integers(0, 900, (3, 8, 8)).astype(np.float32)
    expected = np.stack(
        [(counts - 4) / (counts + 4), np.tanh(counts / 1000)], axis=1 if datafmt == "channels_first" else -1
    )
    gan = GAN(config)
    u = tf.constant(0.5 * np.log(np.maximum(counts, 1e-6) / 4).astype(np.float32))
    for images in (images_from_s(transform(counts[..., None], 4.0), config), fakes(gan, u)):
        assert images.shape[1:] == gan.discriminator.input_shape[1:]
        # Densities that are whole but for a rounding error may be rounded down.
        np.testing.assert_allclose(images, expected, atol=0.01 if not count_noise else 0.3)
        assert np.median(np.abs(images - expected)) < 1e-5


def test_spectral_loss_draws_the_generator_to_the_target(tiny_config, rng):
    config = dataclasses.replace(tiny_config, spectral_weight=1.0, learn_rate=(1e-2, 1e-9))
    gan = GAN(config, training_set=TrainingSet(np.full(4, 30.0), np.full(4, 300.0)))
    losses = [float(gan.train_step(*inputs(config, rng, n=16))["spectral_loss"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


def test_spectral_loss_has_its_weight_in_the_generators_gradient(tiny_config, rng):
    """The gradient with respect to the last bias, which is a part of every u."""
    batch, moments = inputs(tiny_config, rng), []
    for weight in (0.5, 1.5):
        config = dataclasses.replace(tiny_config, spectral_weight=weight, learn_rate=(1e-30, 1e-30))
        gan = GAN(config, training_set=TrainingSet(np.full(4, 30.0), np.full(4, 300.0)))
        u = gan._generator_of_u([batch[1]], training=True)
        gan.train_step(*batch)
        moments.append(float(first_moments(gan.generator_optimizer)[-1][0]))
    h = 1e-2
    above, below = (float(gan._spectral_loss(*gan._fake_fields(u + offset, tf.constant(0)))) for offset in (h, -h))
    # Adam's first moment is half a first gradient; the weights differ by one.
    assert moments[1] - moments[0] == pytest.approx(0.5 * (above - below) / (2 * h), rel=1e-2)


def test_spectral_loss_is_of_slices_as_the_discriminator_sees_them(tiny_config, rng):
    """Rounding to whole particles adds the shot noise that the targets have too."""
    config = dataclasses.replace(tiny_config, spectral_weight=1.0, count_noise=True)
    targets = np.full(4, 30.0), np.full(4, 300.0)
    gan = GAN(config, training_set=TrainingSet(*targets))
    u = tf.constant(rng.normal(-0.7, 0.7, (64, 8, 8)).astype(np.float32))
    s, density = gan._fake_fields(u, tf.constant(0))
    fields = density.numpy()[..., 0]
    np.testing.assert_array_equal(fields, np.round(fields))
    rings = np.rint(np.hypot(*np.meshgrid(np.fft.fftfreq(8, 1 / 8), np.fft.fftfreq(8, 1 / 8))))
    terms = []
    for field, target in zip((transform(fields, 4.0), fields), targets, strict=True):
        power = np.mean(np.abs(np.fft.fft2(field)) ** 2, axis=0)
        terms.append(np.mean([np.log(power[rings == ring].mean() / target[0]) ** 2 for ring in range(1, 5)]))
    assert float(gan._spectral_loss(s, density)) == pytest.approx(np.mean(terms), rel=1e-4)


def drawn(config, densities, step=5):
    """What `train_on_densities` makes of raw slices, in place of the update: real slices in s, and label flips."""
    gan = GAN(config)
    gan._update = lambda real, z, flips, step, with_r1: (real.numpy()[..., 0], flips.numpy()[:, 0])
    return gan._draw_and_update(tf.constant(densities), tf.constant(step, tf.int64), False)


def test_options_of_real_slices_reach_the_step(tiny_config, rng):
    counts = rng.poisson(3.0, (512, 8, 8)).astype(np.int16)
    real, flips = drawn(dataclasses.replace(tiny_config, label_flip=0.0), counts)
    np.testing.assert_allclose(real, transform(counts, 4.0), atol=1e-6)
    assert not flips.any()

    real, flips = drawn(dataclasses.replace(tiny_config, label_flip=0.3, augment=True), counts)
    # Five standard deviations of a share of 512.
    assert flips.mean() == pytest.approx(0.3, abs=0.1)
    np.testing.assert_allclose(np.sort(real, axis=None), np.sort(transform(counts, 4.0), axis=None), atol=1e-6)
    kept = [np.array_equal(own, other) for own, other in zip(real, transform(counts, 4.0), strict=True)]
    assert np.mean(kept) == pytest.approx(1 / 8, abs=0.08)

    real, _ = drawn(dataclasses.replace(tiny_config, dequantise=True), counts)
    noise = invtransform(real.astype(float), 4.0) - counts
    assert -1e-4 < noise.min() < 0.01
    assert 0.99 < noise.max() < 1.0001
    assert noise.mean() == pytest.approx(0.5, abs=0.01)


def test_norms_are_those_asked_for(tiny_config):
    for discriminator_norm in ("batch", "none"):
        gan = GAN(dataclasses.replace(tiny_config, discriminator_norm=discriminator_norm))
        norms = [
            [layer for layer in network.layers if isinstance(layer, BatchNormalization)]
            for network in (gan.generator, gan.discriminator)
        ]
        assert len(norms[0]) == 2
        assert len(norms[1]) == (2 if discriminator_norm == "batch" else 0)
        convolutions = [layer for layer in gan.discriminator.layers if isinstance(layer, Conv2D)]
        assert [layer.use_bias for layer in convolutions] == 2 * [discriminator_norm == "none"]


def test_layer_norm_is_of_all_pixels_and_channels_of_a_slice(tiny_config):
    rng = np.random.default_rng(2)
    layers = GAN(dataclasses.replace(tiny_config, generator_norm="layer")).generator.layers
    assert not any(isinstance(layer, BatchNormalization) for layer in layers)
    norms = [layer for layer in layers if isinstance(layer, keras.layers.GroupNormalization)]
    assert [len(layer.input.shape) for layer in norms] == [2, 4]
    for layer in norms:
        gamma, beta = (rng.uniform(0.5, 2.0, layer.input.shape[-1]) for _ in range(2))
        layer.set_weights([gamma, beta])
        x = np.array([rng.normal(mean, 1.5, layer.input.shape[1:]) for mean in range(4)])
        expected = [(each - each.mean()) / np.sqrt(each.var() + 1e-5) * gamma + beta for each in x]
        np.testing.assert_allclose(layer(x.astype(np.float32)), expected, rtol=1e-5, atol=1e-5)


def test_with_layer_norm_what_is_trained_is_what_is_drawn(tiny_config):
    """In a batch and alone, in training and after it, a z gives the same image; with batch norm it does not."""
    z = np.random.default_rng(2).normal(size=(3, tiny_config.noise_vect_len)).astype(np.float32)
    for norm, same in (("layer", True), ("batch", False)):
        generator = GAN(dataclasses.replace(tiny_config, generator_norm=norm)).generator
        alone, drawn = generator(z[:1], training=True)[0], generator(z, training=False)[0]
        assert np.allclose(generator(z, training=True)[0], alone, atol=1e-5) == same
        assert np.allclose(drawn, alone, atol=1e-5) == same


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_layer_at_full_size_makes_each_pixel_of_its_neighbourhood(tiny_config, precision):
    config = dataclasses.replace(tiny_config, full_size_filters=3, precision=precision)
    generator = GAN(config).generator
    assert len([layer for layer in generator.layers if isinstance(layer, BatchNormalization)]) == 3
    last = next(layer for layer in generator.layers if isinstance(layer, Conv2D))
    assert last.compute_dtype == "float32"
    bias = np.array([0.25], np.float32)
    last.bias.assign(bias)
    z = np.random.default_rng(2).normal(size=(4, config.noise_vect_len)).astype(np.float32)
    maps, u = keras.Model(generator.input, [last.input, generator.get_layer("pre_activation").output])(z)
    assert maps.shape[1:] == (8, 8, 3)
    assert np.min(maps) == 0 < np.max(maps)
    padded = np.pad(np.float64(maps), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = last.kernel.numpy()
    around = [padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(u, sum(around) + bias, rtol=1e-4, atol=1e-5)


def test_a_layer_at_full_size_is_trained(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, full_size_filters=3))
    before = [weight.numpy() for weight in gan.generator.trainable_weights]
    gan.train_step(*inputs(tiny_config, rng))
    for weight, old in zip(gan.generator.trainable_weights, before, strict=True):
        assert np.any(weight.numpy() != old), weight.path


def test_with_augment_slices_are_drawn_in_all_eight_symmetries(tiny_config):
    """The same noise, for a generator that was trained with `augment` and for one that was not."""
    configs = (dataclasses.replace(tiny_config, augment=augment) for augment in (False, True))
    plain, turned = (GAN(config).sample(200, seed=3) for config in configs)
    found = np.zeros(8, int)
    for image, original in zip(turned, plain, strict=True):
        symmetries = [np.rot90(flip, turns) for flip in (original, original.T) for turns in range(4)]
        found += [np.array_equal(image, symmetry) for symmetry in symmetries]
    assert found.sum() == 200
    assert found.min() > 8


@pytest.mark.parametrize("path", ["training", "drawing"])
def test_counts_keep_their_distance(tiny_config, path):
    """Half a particle in each pixel: from two Gaussians correlated by r, counts are correlated by 2/pi asin r."""
    gan = GAN(dataclasses.replace(tiny_config, count_noise=True))
    if path == "training":
        u = tf.fill((500, 8, 8), 0.5 * np.log(0.5 / 4).astype(np.float32))
        counts = gan._fake_fields(u, tf.constant(3, tf.int64))[1].numpy()[..., 0]
    else:
        *_, kernel, bias = gan.generator.trainable_variables
        kernel.assign(tf.zeros_like(kernel))
        bias.assign(tf.fill(bias.shape, 0.5 * np.log(0.5 / 4)))
        counts = gan.sample(500, seed=2)
    assert set(np.unique(counts)) == {0.0, 1.0}
    for shift, neighbours in [((0, 1), -0.09), ((1, 0), -0.09), ((1, 1), -0.095), ((0, 4), 0.0)]:
        expected = 2 / np.pi * np.arcsin(neighbours / 1.02)
        found = np.corrcoef(counts.ravel(), np.roll(counts, shift, (1, 2)).ravel())[0, 1]
        # The correlation of n pairs scatters by 1/sqrt(n), here by 0.0056.
        assert found == pytest.approx(expected, abs=0.02)


def test_count_noise_passes_the_gradient_of_the_mean_on(tiny_config, rng):
    """The images are those of whole counts; d s/d u is s'(counts) dx/du with x = a exp(2u)."""
    config = dataclasses.replace(tiny_config, count_noise=True, datafmt="channels_last")
    gan = GAN(config)
    u = tf.Variable(rng.normal(0, 0.7, (3, 8, 8)).astype(np.float32))
    with tf.GradientTape() as tape:
        images = fakes(gan, u, step=4)
        total = tf.reduce_sum(images[..., 0])
    density = 4 * np.exp(2 * u.numpy().astype(float))
    counts = 4 * (1 + images[..., 0].numpy()) / (1 - images[..., 0].numpy())
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    assert np.abs(counts - density).max() < 1.001
    expected = 8 / (np.rint(counts) + 4) ** 2 * 2 * density
    np.testing.assert_allclose(tape.gradient(total, u), expected, rtol=1e-3)


def test_dequantised_and_counted_samples_are_whole(tiny_config):
    for option in ("dequantise", "count_noise"):
        counts = GAN(dataclasses.replace(tiny_config, **{option: True})).sample(3, seed=1)
        np.testing.assert_array_equal(counts, np.floor(counts))


@pytest.mark.parametrize(("side", "batch"), [(64, 128), (128, 128), (256, 32), (2048, 1)])
def test_large_slices_are_drawn_few_at_a_time(side, batch):
    drawn = []

    def draw(number, seed):
        drawn.append((number, *seed.numpy()))
        return tf.zeros((number, 1, 1))

    assert sum(map(len, draw_slices(draw, side, batch + 1, seed=7))) == batch + 1
    assert sorted(drawn) == [(batch, 7, 0), (batch, 7, batch)]
