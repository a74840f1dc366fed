"""Hidden layers in half precision: what stays float32, how far the step is from float32, and overflows."""

import dataclasses

import numpy as np
import pytest

from networks.dcgan import build_discriminator, build_generator, load_generator
from networks.gan import GAN
from networks.precision import choose_precision
from tests.test_gan import inputs, randomise


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def float32_and(config, precision, rng):
    """Two GANs with the same weights, the second one in another precision."""
    gans = [GAN(dataclasses.replace(config, precision=name)) for name in ("float32", precision)]
    for network in ("generator", "discriminator"):
        exact, other = (getattr(gan, network) for gan in gans)
        randomise(exact, rng)
        other.set_weights(exact.get_weights())
    return gans


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_weights_images_and_logits_stay_float32(tiny_config, rng, precision):
    config = dataclasses.replace(tiny_config, precision=precision)
    generator, discriminator = build_generator(config), build_discriminator(config)
    images = generator(rng.normal(size=(3, config.noise_vect_len)).astype(np.float32))
    assert images.dtype == "float32"
    assert discriminator(images).dtype == "float32"
    assert {weight.dtype for network in (generator, discriminator) for weight in network.weights} == {"float32"}
    hidden = [layer.compute_dtype for network in (generator, discriminator) for layer in network.layers]
    assert hidden.count(precision.removeprefix("mixed_")) >= 10
    assert generator.get_layer("pre_activation").compute_dtype == "float32"


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed_bfloat16", 2**-6), ("mixed_float16", 2**-9)])
def test_losses_are_those_of_float32_to_its_rounding(tiny_config, rng, precision, tolerance):
    """bfloat16 keeps 8 bits, float16 11; a few layers add their roundings up."""
    exact, rounded = float32_and(tiny_config, precision, rng)
    for _ in range(2):
        batch = inputs(tiny_config, rng)
        expected, losses = exact.train_step(*batch), rounded.train_step(*batch)
        for name, value in expected.items():
            assert float(losses[name]) == pytest.approx(float(value), rel=tolerance, abs=tolerance), name


def test_an_overflow_skips_the_update_and_halves_the_scale(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, precision="mixed_float16"))
    batch = inputs(tiny_config, rng)
    scale = gan.generator_optimizer.dynamic_scale
    gan.train_step(*batch)
    before, kept = float(scale.numpy()), [weight.numpy() for weight in gan.generator.trainable_variables]
    scale.assign(2.0**60)  # gradients in float16 end at 65504
    gan.train_step(*batch)
    for weight, value in zip(gan.generator.trainable_variables, kept, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert float(scale.numpy()) == 2.0**59
    assert gan.first_divergence() is None
    scale.assign(before)
    gan.train_step(*batch)
    assert any(
        (weight.numpy() != value).any() for weight, value in zip(gan.generator.trainable_variables, kept, strict=True)
    )


def test_a_scale_that_cannot_help_is_a_divergence(tiny_config, rng):
    gan = GAN(dataclasses.replace(tiny_config, precision="mixed_float16"))
    scale = gan.generator_optimizer.dynamic_scale
    scale.assign(0.0)  # where halving ends; what is divided by it is no number
    gan.train_step(*inputs(tiny_config, rng))
    step, name = gan.first_divergence()
    assert step == 1
    assert "generator" in name


def test_auto_takes_bfloat16_where_it_is_fast(tiny_config, monkeypatch):
    strategy = GAN(tiny_config).strategy
    assert choose_precision("mixed_float16", strategy) == "mixed_float16"
    for there, chosen in ((True, "mixed_bfloat16"), (False, "float32")):
        monkeypatch.setattr("networks.precision.has_bfloat16", lambda there=there: there)
        assert choose_precision("auto", strategy) == chosen
        built = build_discriminator(dataclasses.replace(tiny_config, precision="auto"))
        assert ("bfloat16" in {layer.compute_dtype for layer in built.layers}) == there


def test_a_saved_generator_draws_in_float32(tiny_config, tmp_path, rng):
    config = dataclasses.replace(tiny_config, precision="mixed_bfloat16")
    (tmp_path / "models").mkdir()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    trained = build_generator(config)
    randomise(trained, rng)
    trained.save_weights(tmp_path / "models" / "g_cosmo_best.weights.h5")
    loaded = load_generator(tmp_path)
    exact = build_generator(tiny_config)
    exact.set_weights(trained.get_weights())
    np.testing.assert_array_equal(loaded.sample(4), exact.sample(4))
