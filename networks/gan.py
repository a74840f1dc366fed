"""The GAN: both networks, their optimisers, and the training step. All that a run changes lives in one object."""

from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from networks.dcgan import (
    build_discriminator,
    build_generator,
    build_spectral_critic,
    density_function,
    draw_slices,
    load_weights,
    unmatched_function,
    up_to_pre_activation,
)
from networks.distribution import (
    any_worker,
    local_replicas,
    mean_over_replicas,
    own_replica,
    send_from_first,
    share_out,
)
from networks.divergence import DivergenceWatch
from networks.gradients import keep_order, pairwise_gradients
from networks.images import blue_noise, fields_from_pre_activation, images_from_density, images_from_s, random_symmetry
from networks.losses import (
    TrainingSet,
    crossentropy,
    r1_penalty_of_slices,
    spectral_loss,
)
from networks.matching import fit_shifts
from networks.optimizers import build_optimizer, first_moments, share_overflow
from networks.schedules import average_decay, learning_rate_factor, r1_weight
from networks.spectra import ring_power, ring_weights
from utils.config import Config
from utils.randomness import Purpose
from utils.runs import find_weights
from utils.transforms import transform

# The map of densities is fitted to so many generated slices, or as many pixels of larger ones: their mean density is
# known to a per cent then. Their brightest pixels differ enough from draw to draw to move the density spectrum by 3 %,
# and the bispectrum, in an unlucky draw, by 20 %. So in the last quarter of a run, which the best weights are from as a
# rule, it is four times as many.
_MATCHING, _LATE_MATCHING = (2048, 2**23), (8192, 2**25)
_LATE = 0.75


class GAN:
    """A generator and a discriminator in training.

    Parameters
    ----------
    config : Config
    total_steps : int, optional
        Length of the run, which the cosine learning-rate schedule and a growing R1 penalty need. With it the map of
        densities is fitted to more slices in the last quarter.
    training_set : TrainingSet, optional
        What the spectral loss and the histogram matching aim at, and the critic refers to; they need it.
    strategy : tf.distribute.Strategy, optional
        How a step is spread over devices and workers; the default is one device. Every replica computes an equal share
        of the same batch.
    xla : bool
        Compile the step with XLA, on one device only. It rounds otherwise, and draws other random numbers from the
        same seed and step.

    Attributes
    ----------
    step : int
        Training steps done.
    generator, discriminator : keras.Model
    average_generator : Generator or None
        The moving average of the generator's weights, with `ema_decay` above 0.
    critic : keras.Model or None
        The second discriminator, of spectra, with `critic_weight` above 0.
    judging_variables : list of keras.Variable
        Trainable weights of both, which the discriminator's optimiser trains together.
    """

    def __init__(
        self,
        config: Config,
        total_steps: int | None = None,
        training_set: TrainingSet | None = None,
        strategy: tf.distribute.Strategy | None = None,
        xla: bool = False,
    ):
        if (config.lr_schedule != "constant" or config.r1_growth != 1) and total_steps is None:
            raise ValueError(f"lr_schedule = {config.lr_schedule}, r1_growth = {config.r1_growth:g} need total_steps")
        needy = ("spectral_weight", "critic_weight", "match_histogram")
        if training_set is None and any(getattr(config, key) for key in needy):
            raise ValueError(f"{', '.join(needy)} need training_set")
        keep_order()
        self.config = config
        self.total_steps = total_steps
        self.strategy = strategy or tf.distribute.get_strategy()
        self.step = 0
        self._compiled_kinds = set()
        if config.spectral_weight > 0:
            powers = (training_set.power_s, training_set.power)
            self._target_power = [tf.constant(power, tf.float32) for power in powers]
            self._ring_weights = tf.constant(ring_weights(config.img_dim))
        self.loss_names = ("d_loss", "d_real_loss", "d_fake_loss", "g_loss", "d_real_prob", "d_fake_prob")
        extra = {
            "r1_penalty": config.r1_weight,
            "spectral_loss": config.spectral_weight,
            "critic_loss": config.critic_weight,
        }
        self.loss_names += tuple(name for name, weight in extra.items() if weight > 0)
        if config.match_histogram:
            self._real_tail = training_set.tail
        with self.strategy.scope():
            self._create_variables()
            if self.critic is not None:
                spectra = self.critic.get_layer("log_spectra")
                spectra.standardize(training_set.spectra_mean, training_set.spectra_sigma)
        compiled = partial(tf.function, reduce_retracing=True, autograph=False, jit_compile=xla or None)
        self._compiled_step = compiled(partial(self._on_all_replicas, self._draw_and_update))
        self._compiled_update = compiled(partial(self._on_all_replicas, self._update))
        self._generator_of_u = up_to_pre_activation(self.generator)
        self._density_function = density_function(self.sampling_generator)
        if config.match_histogram:
            self._unmatched_function = unmatched_function(self.sampling_generator)

    def _create_variables(self):
        config = self.config
        self.generator = build_generator(config)
        self.discriminator = build_discriminator(config)
        self.average_generator = build_generator(config) if config.ema_decay > 0 else None
        self.critic = build_spectral_critic(config) if config.critic_weight > 0 else None
        self.judging_variables = self.discriminator.trainable_variables
        if self.critic is not None:
            self.judging_variables = self.judging_variables + self.critic.trainable_variables
        self.generator_optimizer = build_optimizer(config.learn_rate[0], config, self.generator.trainable_variables)
        self.discriminator_optimizer = build_optimizer(config.learn_rate[1], config, self.judging_variables)
        # Sums since the last TensorBoard checkpoint stay on the device: reading them each step would stall it.
        self._loss_sums = tf.Variable(tf.zeros(len(self.loss_names)), trainable=False)
        self._loss_counts = tf.Variable(tf.zeros(len(self.loss_names)), trainable=False)
        self._divergence = DivergenceWatch()

    # ------------------------------------------------------------------------------------------------ the interface

    def train_step(self, real, z, flips) -> dict[str, tf.Tensor]:
        """One full step: `DG_update_ratio` discriminator updates and one generator update.

        Parameters
        ----------
        real : array, (n, N, N, 1), float32
            Training slices, transformed: s in [-1, 1). Of several workers, each gives its own share of the batch.
        z : array, (n, noise_vect_len), float32
        flips : array, (n,), bool
            Where true, the sample's real and fake label are both flipped.

        Returns
        -------
        dict of str to scalar float32 tensor
            d_loss, d_real_loss, d_fake_loss (means over the step's updates), g_loss, d_real_prob, d_fake_prob (mean
            predicted probability of being real), and the penalties that are switched on.
        """
        step, with_r1 = self._advance()
        flips = tf.reshape(tf.cast(flips, tf.float32), [-1, 1])
        batch = (tf.cast(real, tf.float32), tf.cast(z, tf.float32), flips)
        return self._compiled_update(tuple(share_out(values, self.strategy) for values in batch), step, with_r1)

    def train_on_densities(self, densities) -> dict[str, tf.Tensor]:
        """One full step on raw slices; noise, label flips and augmentation follow from the seed and the step.

        Parameters
        ----------
        densities : array, (n, N, N), int or float
            Particles per voxel. Of several workers, each gives its own share of the batch.

        Returns
        -------
        dict of str to scalar float32 tensor
            As `train_step` returns it. Reading a value waits for the device.
        """
        step, with_r1 = self._advance()
        return self._compiled_step((share_out(tf.convert_to_tensor(densities), self.strategy),), step, with_r1)

    @property
    def next_step_compiles(self) -> bool:
        """Whether the next step is the first of its kind in this process: those with R1 penalty and those without are
        compiled separately."""
        return self._with_r1(self.step) not in self._compiled_kinds

    @property
    def sampling_generator(self):
        """The generator that results are drawn from: the averaged one, where averaging is on."""
        return self.average_generator or self.generator

    def sample(self, number: int, seed: int) -> np.ndarray:
        """Densities (number, N, N), float32, from `sampling_generator` as it is now.

        Raises
        ------
        FloatingPointError
            A density is not finite: losses and gradients may all have been, and an update too large.
        """
        return self._finite(self._density_function, number, seed)

    def _finite(self, draw, number: int, seed: int) -> np.ndarray:
        images = np.concatenate(list(draw_slices(draw, self.config.img_dim, number, seed)))
        if not np.isfinite(images).all():
            raise FloatingPointError("a slice of the generator was not finite")
        return images

    def match_histogram(self) -> None:
        """Fit the map of densities of `sampling_generator` anew, with `match_histogram` on; otherwise do nothing.

        Training goes on as if it were not there. Of several workers all have to fit it, each finds the same. Raises
        `FloatingPointError` as `sample` does.
        """
        if not self.config.match_histogram:
            return
        late = self.total_steps is not None and self.step >= _LATE * self.total_steps
        slices, pixels = _LATE_MATCHING if late else _MATCHING
        number = max(1, min(slices, pixels // self.config.img_dim**2))
        images = self._finite(self._unmatched_function, number, self.config.seed + self.step)
        table = fit_shifts(images, self._real_tail, self.config.datascale)
        # In both, so that averaging leaves it as it is.
        for network in filter(None, (self.generator, self.average_generator)):
            network.get_layer("histogram_matching").shift(*table)

    def mean_losses(self) -> dict[str, float]:
        """Means of the losses since `reset_losses`; those that no step computed are left out."""
        sums, counts = self._loss_sums.numpy(), self._loss_counts.numpy()
        return {name: float(s / c) for name, s, c in zip(self.loss_names, sums, counts, strict=True) if c > 0}

    def first_divergence(self) -> tuple[int, str] | None:
        """The step (from 1 on) in which a loss or gradient first was not finite, and its name; None if none was."""
        first = self._divergence.first()
        if first is None:
            return None
        step, place = first
        # In the order in which a step computes them, so that the cause comes before its consequences.
        names = [f"gradient of discriminator/{weight.path}" for weight in self.discriminator.trainable_variables]
        if self.critic is not None:
            names += [f"gradient of critic/{weight.path}" for weight in self.critic.trainable_variables]
        names += [f"loss {name}" for name in self.loss_names]
        names += [f"gradient of generator/{weight.path}" for weight in self.generator.trainable_variables]
        return step + 1, names[place]

    def reset_losses(self) -> None:
        """Begin a new period of `mean_losses`."""
        self._loss_sums.assign(tf.zeros_like(self._loss_sums))
        self._loss_counts.assign(tf.zeros_like(self._loss_counts))

    def state(self) -> dict[str, tf.Variable | keras.Variable]:
        """Every variable that training changes, by a unique name; `step` stands beside them."""
        groups = {
            "generator": self.generator.weights,
            "discriminator": self.discriminator.weights,
            "generator_optimizer": self.generator_optimizer.variables,
            "discriminator_optimizer": self.discriminator_optimizer.variables,
            "losses": [self._loss_sums, self._loss_counts],
        }
        if self.average_generator is not None:
            groups["average_generator"] = self.average_generator.weights
        if self.critic is not None:
            groups["critic"] = self.critic.weights
        # Names of variables repeat in Keras 3; their order in a model is fixed.
        return {f"{group}/{i:03d}": v for group, variables in groups.items() for i, v in enumerate(variables)}

    def load_weights(self, run_folder: str | Path) -> None:
        """Begin with the last weights of another run: a new run of its own, and with a new critic, which is kept in
        states only. Raises `UserError` if they do not fit."""
        load_weights(self.generator, find_weights(run_folder, "last"), self.config)
        load_weights(self.discriminator, find_weights(run_folder, "last", network="d"), self.config)
        if self.average_generator is not None:
            self.average_generator.set_weights(self.generator.get_weights())

    def load_state(self, arrays: dict[str, np.ndarray], step: int) -> None:
        """Take up a state that `state` gave, at the step that it belongs to.

        Raises
        ------
        ValueError
            If names or shapes are not those of this GAN.
        """
        variables = self.state()
        shapes, own = ({name: tuple(of.shape) for name, of in each.items()} for each in (arrays, variables))
        if differ := sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name)):
            raise ValueError(f"{len(differ)} variables are others, or of other shapes, {differ[0]} for one")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.step = step

    def share_state(self) -> None:
        """Take up the state and the step of the first worker; all workers call it, alone it changes nothing."""
        if self.strategy.num_replicas_in_sync == local_replicas(self.strategy):
            return
        variables = list(self.state().values())
        dtypes = [variable.numpy().dtype for variable in variables]
        # Whole numbers, the step among them, are far below the 2^24 from which on float32 would round them.
        own = [variable.numpy().astype(np.float32) for variable in variables]
        *arrays, step = send_from_first([*own, np.float32(self.step)], self.strategy)
        for variable, array, dtype in zip(variables, arrays, dtypes, strict=True):
            variable.assign(array.astype(dtype))
        self.step = int(step)

    def any_worker(self, flag: bool) -> bool:
        """Whether the flag is set on any worker; all of them have to ask after the same step."""
        return any_worker(flag, self.strategy)

    # ------------------------------------------------------------------------------------------------- inside a step

    def _advance(self) -> tuple[tf.Tensor, bool]:
        """Count the step; say whether it is one with an R1 penalty."""
        step, with_r1 = self.step, self._with_r1(self.step)
        self._compiled_kinds.add(with_r1)
        self.step += 1
        return tf.constant(step, tf.int64), with_r1

    def _with_r1(self, step: int) -> bool:
        return self.config.r1_weight > 0 and step % self.config.r1_interval == 0

    def _on_all_replicas(self, update, batch, step, with_r1) -> dict[str, tf.Tensor]:
        """Run an update on every replica's share of the batch, and then what is done once for all."""
        self._set_learning_rates(step)
        results = self.strategy.run(update, args=(*batch, step, with_r1))
        losses, statistics = tf.nest.map_structure(lambda value: own_replica(value, self.strategy), results)
        for network, values in zip((self.generator, self.discriminator), statistics, strict=True):
            for variable, value in zip(network.non_trainable_variables, values, strict=True):
                variable.assign(value)
        self._update_average(step)
        self._add_losses(losses)
        self._note_divergence(step, losses)
        return losses

    # ------------------------------------------------------------------------------------------------ on one replica

    def _draw_and_update(self, densities, step, with_r1):
        """Transform a share of the batch, draw what is random in the step, and update."""
        n = tf.shape(densities)[0]
        z = self._draw(tf.random.stateless_normal, (n, self.config.noise_vect_len), Purpose.NOISE, step)
        flips = self._draw(tf.random.stateless_uniform, (n, 1), Purpose.FLIPS, step) < self.config.label_flip
        densities = tf.cast(densities, tf.float32)
        if self.config.dequantise:
            # Pixels are counts; without the noise, being an integer would tell a real pixel from a generated one.
            densities += self._draw(tf.random.stateless_uniform, tf.shape(densities), Purpose.DEQUANTISATION, step)
        real = transform(densities[..., None], self.config.datascale)  # (n, N, N) -> (n, N, N, 1)
        if self.config.augment:
            coins = self._draw(tf.random.stateless_uniform, (n, 3), Purpose.AUGMENTATION, step) < 0.5
            real = random_symmetry(real, coins)
        return self._update(real, z, tf.cast(flips, tf.float32), step, with_r1)

    def _draw(self, distribution, shape, purpose: Purpose, step):
        """Random numbers for this replica's samples, (n, ...): its share of those of the whole batch.

        Every replica draws them all, so that a sample's do not depend on how many replicas there are.
        """
        seed = tf.random.experimental.stateless_fold_in(tf.constant((self.config.seed, purpose), tf.int64), step)
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return distribution(shape, seed)
        n, *rest = tf.unstack(shape) if tf.is_tensor(shape) else shape
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * n
        return distribution((n * replicas, *rest), seed)[first : first + n]

    def _update(self, real, z, flips, step, with_r1) -> tuple[dict[str, tf.Tensor], list[list]]:
        """The step itself. The generator runs forward once; its fakes serve all updates.

        Moving batch statistics are handed on as values, since replicas that see different samples cannot assign
        different ones to the same variable.

        Returns
        -------
        dict of str to tensor, two lists of tensors
            Losses, and the new moving statistics of generator and discriminator, all averaged over the replicas.
        """
        generator = self._generator_of_u
        u, generator_statistics = generator.stateless_call(
            generator.trainable_variables, generator.non_trainable_variables, z, training=True
        )
        s, density = self._fake_fields(u, step)
        fake_images = images_from_density(s, density, self.config)
        weight = r1_weight(step, self.total_steps, self.config) if with_r1 else None
        losses, statistics = self._update_discriminator(real, fake_images, flips, weight)
        # The discriminator sees batch statistics here too, but its moving statistics must not move.
        logits, _ = self._discriminate(fake_images, statistics)
        losses["g_loss"] = total = crossentropy(tf.ones_like(logits), logits)
        if self.critic is not None:
            total += self.config.critic_weight * crossentropy(tf.ones_like(logits), self.critic(fake_images))
        if self.config.spectral_weight > 0:
            losses["spectral_loss"] = self._spectral_loss(s, density)
            total += self.config.spectral_weight * losses["spectral_loss"]
        total = self.generator_optimizer.scale_loss(total)
        self._apply(self.generator_optimizer, pairwise_gradients(total, self.generator.trainable_variables))
        names = list(losses)
        means, *moving = mean_over_replicas(([losses[name] for name in names], generator_statistics, statistics))
        return dict(zip(names, means, strict=True)), moving

    def _update_discriminator(self, real, fake_images, flips, penalty_weight) -> tuple[dict[str, tf.Tensor], list]:
        """`DG_update_ratio` updates, on the real and on the fake batch in turn; without a weight no R1 penalty.

        Returns the means of their losses, and the moving statistics.
        """
        rounds, statistics = [], self.discriminator.non_trainable_variables
        real_images = images_from_s(real, self.config)
        penalised = None if penalty_weight is None else (real, penalty_weight)
        for _ in range(self.config.DG_update_ratio // 2):
            of_real, statistics = self._fit_labels(real_images, 1.0 - flips, statistics, penalised)
            of_fake, statistics = self._fit_labels(fake_images, flips, statistics)
            losses = {
                "d_loss": 0.5 * (of_real["loss"] + of_fake["loss"]),
                "d_real_loss": of_real["loss"],
                "d_fake_loss": of_fake["loss"],
                "d_real_prob": of_real["prob"],
                "d_fake_prob": of_fake["prob"],
            }
            if penalised is not None:
                losses["r1_penalty"] = of_real["r1_penalty"]
            if self.critic is not None:
                losses["critic_loss"] = 0.5 * (of_real["critic_loss"] + of_fake["critic_loss"])
            rounds.append(losses)
        return {name: tf.reduce_mean(tf.stack([losses[name] for losses in rounds])) for name in rounds[0]}, statistics

    def _fit_labels(self, images, labels, statistics, penalised=None) -> tuple[dict[str, tf.Tensor], list]:
        """One update of discriminator and critic, with an R1 penalty where slices s and its weight are given.

        Returns the losses, the discriminator's mean probability of being real, and its moving statistics.
        """
        logits, new_statistics = self._discriminate(images, statistics)
        losses = {"loss": crossentropy(labels, logits), "prob": tf.reduce_mean(tf.sigmoid(logits))}
        total = losses["loss"]
        if self.critic is not None:
            losses["critic_loss"] = crossentropy(labels, self.critic(images))
            total += losses["critic_loss"]
        if penalised is not None:
            slices, weight = penalised
            losses["r1_penalty"] = penalty = r1_penalty_of_slices(
                lambda images: self._discriminate(images, statistics)[0], slices, self.config
            )
            total += weight * penalty
        total = self.discriminator_optimizer.scale_loss(total)
        self._apply(self.discriminator_optimizer, pairwise_gradients(total, self.judging_variables))
        return losses, new_statistics

    def _discriminate(self, images, statistics) -> tuple[tf.Tensor, list]:
        """Logits on batch statistics, and the moving statistics, moved on."""
        return self.discriminator.stateless_call(
            self.discriminator.trainable_variables, statistics, images, training=True
        )

    def _apply(self, optimizer, gradients) -> None:
        """Update the weights that an optimiser was built for. Keras sums gradients over replicas; losses are means."""
        replicas = self.strategy.num_replicas_in_sync
        if replicas > 1:
            gradients = share_overflow([gradient / replicas for gradient in gradients], optimizer)
        optimizer.apply(gradients)

    def _fake_fields(self, u, step):
        """s and density, (n, N, N, 1), from the last pre-activation u, (n, N, N), with this step's rounding."""
        noise = None
        if self.config.count_noise:
            noise = blue_noise(self._draw(tf.random.stateless_normal, tf.shape(u), Purpose.ROUNDING, step))
        return fields_from_pre_activation(u, self.config, noise)

    def _spectral_loss(self, s, density):
        """Mean of the spectral losses in s and in density, each (n, N, N, 1), of the whole batch."""
        powers = [tf.reduce_mean(ring_power(fields[..., 0], self._ring_weights), axis=0) for fields in (s, density)]
        powers = mean_over_replicas(powers)
        return 0.5 * tf.add_n([spectral_loss(*pair) for pair in zip(powers, self._target_power, strict=True)])

    # ------------------------------------------------------------------------------------------- once, on all replicas

    def _set_learning_rates(self, step):
        factor = learning_rate_factor(step, self.total_steps, self.config)
        # Always set: a state that is resumed with another learn_rate brings its old one along.
        optimizers = (self.generator_optimizer, self.discriminator_optimizer)
        for optimizer, rate in zip(optimizers, self.config.learn_rate, strict=True):
            optimizer.learning_rate.assign(rate * factor)

    def _update_average(self, step):
        """Move the average towards the generator."""
        if self.average_generator is None:
            return
        decay = average_decay(step, self.config)
        for average, weight in zip(self.average_generator.weights, self.generator.weights, strict=True):
            self.strategy.extended.update(
                average.value, lambda own, new: own.assign(decay * own + (1.0 - decay) * new), args=(weight.value,)
            )

    def _add_losses(self, losses):
        self._loss_sums.assign_add(tf.stack([losses.get(name, tf.zeros(())) for name in self.loss_names]))
        self._loss_counts.assign_add([float(name in losses) for name in self.loss_names])

    def _note_divergence(self, step, losses):
        """Look at Adam's first moments in place of the gradients: what is not finite in any gradient of a step stays in
        them, and there is one for all updates of the step."""
        suspects = first_moments(self.discriminator_optimizer)
        suspects += [losses.get(name, tf.zeros(())) for name in self.loss_names]
        self._divergence.note(step, suspects + first_moments(self.generator_optimizer))
