"""A float64 NumPy twin of the GAN: forward and backward passes and Adam, written from the equations alone.

It shares no code with the networks. Images are channels_last; weights come as plain arrays in the order in which Keras
lists them.
"""

import numpy as np

BN_EPSILON, BN_MOMENTUM, SLOPE = 1e-5, 0.9, 0.2


def _padding(side, kernel, stride):
    """Rows before and after, as 'same' padding places them."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _padded(x, kernel, stride):
    pads = _padding(x.shape[1], kernel, stride)
    return np.pad(x, ((0, 0), pads, pads, (0, 0)))


def conv(x, kernel, stride):
    """(n, h, w, c) by (k, k, c, o) -> (n, h/stride, w/stride, o)."""
    k, side = kernel.shape[0], -(-x.shape[1] // stride)
    padded, out = _padded(x, k, stride), 0.0
    for a in range(k):
        for b in range(k):
            patch = padded[:, a : a + stride * side : stride, b : b + stride * side : stride]
            out = out + patch[:, :side, :side] @ kernel[a, b]
    return out


def conv_input_gradient(dy, kernel, stride, side):
    """The adjoint of `conv` with respect to its input, (n, side, side, c); also the transposed convolution."""
    k, out = kernel.shape[0], dy.shape[1]
    before, after = _padding(side, k, stride)
    padded = np.zeros((dy.shape[0], side + before + after, side + before + after, kernel.shape[2]))
    for a in range(k):
        for b in range(k):
            padded[:, a : a + stride * out : stride, b : b + stride * out : stride] += dy @ kernel[a, b].T
    return padded[:, before : before + side, before : before + side]


def conv_kernel_gradient(x, dy, kernel_shape, stride):
    """The gradient of `conv` with respect to its kernel."""
    k, out = kernel_shape[0], dy.shape[1]
    padded, gradient = _padded(x, k, stride), np.zeros(kernel_shape)
    for a in range(k):
        for b in range(k):
            patch = padded[:, a : a + stride * out : stride, b : b + stride * out : stride]
            gradient[a, b] = np.einsum("nijc,nijo->co", patch, dy)
    return gradient


def batch_norm(x, gamma, beta):
    """On batch statistics over all axes but the last; gives the output and what the backward pass needs."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    normal = (x - mean) / np.sqrt(variance + BN_EPSILON)
    return gamma * normal + beta, (normal, variance, gamma, axes), mean, variance


def batch_norm_gradient(dy, cache):
    normal, variance, gamma, axes = cache
    dgamma, dbeta = (dy * normal).sum(axes), dy.sum(axes)
    count = dy.size / dy.shape[-1]
    dx = gamma / np.sqrt(variance + BN_EPSILON) * (dy - dbeta / count - normal * dgamma / count)
    return dx, dgamma, dbeta


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def crossentropy(labels, logits):
    return np.mean(np.logaddexp(0, logits) - labels * logits)


class Network:
    """Trainable weights, moving statistics and Adam's moments of one network."""

    def __init__(self, trainable, moving, learning_rate, betas=(0.5, 0.999)):
        self.trainable = [np.array(w, np.float64) for w in trainable]
        self.moving = [np.array(w, np.float64) for w in moving]
        self.first = [np.zeros_like(w) for w in self.trainable]
        self.second = [np.zeros_like(w) for w in self.trainable]
        self.learning_rate, self.betas, self.updates = learning_rate, betas, 0

    def move(self, statistics):
        """Moving mean and variance of each batch norm layer follow the batch's."""
        for i, value in enumerate(statistics):
            self.moving[i] = BN_MOMENTUM * self.moving[i] + (1 - BN_MOMENTUM) * value

    def adam(self, gradients):
        """Kingma & Ba 2015, with epsilon outside the bias correction, as Keras has it."""
        beta_1, beta_2 = self.betas
        self.updates += 1
        rate = self.learning_rate * np.sqrt(1 - beta_2**self.updates) / (1 - beta_1**self.updates)
        for i, gradient in enumerate(gradients):
            self.first[i] = beta_1 * self.first[i] + (1 - beta_1) * gradient
            self.second[i] = beta_2 * self.second[i] + (1 - beta_2) * gradient**2
            self.trainable[i] -= rate * self.first[i] / (np.sqrt(self.second[i]) + 1e-7)


class Discriminator(Network):
    """[conv, batch norm, LeakyReLU] per layer, then dense; trainable: (kernel, gamma, beta) each, kernel, bias."""

    stride = 2

    def forward(self, images):
        x, caches, statistics = images, [], []
        *blocks, dense, bias = self.trainable
        for kernel, gamma, beta in zip(*[iter(blocks)] * 3, strict=True):
            convolved = conv(x, kernel, self.stride)
            normal, cache, mean, variance = batch_norm(convolved, gamma, beta)
            caches.append((x, kernel, normal, cache))
            statistics += [mean, variance]
            x = np.where(normal > 0, normal, SLOPE * normal)
        caches.append((x,))
        return x.reshape(len(x), -1) @ dense + bias, caches, statistics

    def backward(self, dlogits, caches):
        """Gradients of the trainable weights, in order, and of the images."""
        *layers, (last,) = caches
        dense = self.trainable[-2]
        gradients = [last.reshape(len(last), -1).T @ dlogits, dlogits.sum(0)]
        dx = (dlogits @ dense.T).reshape(last.shape)
        for x, kernel, normal, cache in reversed(layers):
            dx, dgamma, dbeta = batch_norm_gradient(np.where(normal > 0, dx, SLOPE * dx), cache)
            gradients = [conv_kernel_gradient(x, dx, kernel.shape, self.stride), dgamma, dbeta, *gradients]
            dx = conv_input_gradient(dx, kernel, self.stride, x.shape[1])
        return gradients, dx

    def update(self, images, labels):
        logits, caches, statistics = self.forward(images)
        gradients, _ = self.backward((sigmoid(logits) - labels) / len(labels), caches)
        self.move(statistics)
        self.adam(gradients)
        return crossentropy(labels, logits)


class PlainDiscriminator(Discriminator):
    """[conv with a bias, LeakyReLU] per layer, then dense; trainable: (kernel, bias) each, kernel, bias."""

    def forward(self, images):
        x, caches = images, []
        *blocks, dense, bias = self.trainable
        for kernel, offset in zip(*[iter(blocks)] * 2, strict=True):
            convolved = conv(x, kernel, self.stride) + offset
            caches.append((x, kernel, convolved))
            x = np.where(convolved > 0, convolved, SLOPE * convolved)
        caches.append((x,))
        return x.reshape(len(x), -1) @ dense + bias, caches, []

    def backward(self, dlogits, caches):
        *layers, (last,) = caches
        dense = self.trainable[-2]
        gradients = [last.reshape(len(last), -1).T @ dlogits, dlogits.sum(0)]
        dx = (dlogits @ dense.T).reshape(last.shape)
        for x, kernel, convolved in reversed(layers):
            dx = np.where(convolved > 0, dx, SLOPE * dx)
            gradients = [conv_kernel_gradient(x, dx, kernel.shape, self.stride), dx.sum((0, 1, 2)), *gradients]
            dx = conv_input_gradient(dx, kernel, self.stride, x.shape[1])
        return gradients, dx


class Generator(Network):
    """Dense, batch norm, ReLU, then transposed convolutions; trainable: dense, gamma, beta, (kernel, gamma, beta) per
    hidden layer, last kernel, last bias."""

    stride, datascale = 2, 4.0

    def forward(self, z):
        dense, gamma, beta, *blocks, kernel, bias = self.trainable
        normal, cache, mean, variance = batch_norm(z @ dense, gamma, beta)
        statistics, caches = [mean, variance], [(z, dense, normal, cache)]
        maps = (blocks[0] if blocks else kernel).shape[3]
        side = int(np.sqrt(dense.shape[1] // maps))
        x = np.maximum(normal, 0).reshape(len(z), side, side, maps)
        for hidden, gamma, beta in zip(*[iter(blocks)] * 3, strict=True):
            deconvolved = conv_input_gradient(x, hidden, self.stride, x.shape[1] * self.stride)
            normal, cache, mean, variance = batch_norm(deconvolved, gamma, beta)
            caches.append((x, hidden, normal, cache))
            statistics += [mean, variance]
            x = np.maximum(normal, 0)
        u = conv_input_gradient(x, kernel, self.stride, x.shape[1] * self.stride) + bias
        caches.append((x, kernel, u))
        density = self.datascale * np.exp(2 * u)
        return np.concatenate([np.tanh(u), np.tanh(density / 1000)], axis=-1), caches, statistics

    def backward(self, dimages, caches):
        first, *layers, (x, kernel, u) = caches
        rescaled = self.datascale * np.exp(2 * u) / 1000
        ds, dsecond = dimages[..., :1], dimages[..., 1:]
        du = ds * (1 - np.tanh(u) ** 2) + dsecond * (1 - np.tanh(rescaled) ** 2) * 2 * rescaled
        gradients = [conv_kernel_gradient(du, x, kernel.shape, self.stride), du.sum((0, 1, 2))]
        dx = conv(du, kernel, self.stride)
        for x, kernel, normal, cache in reversed(layers):
            dx, dgamma, dbeta = batch_norm_gradient(np.where(normal > 0, dx, 0), cache)
            gradients = [conv_kernel_gradient(dx, x, kernel.shape, self.stride), dgamma, dbeta, *gradients]
            dx = conv(dx, kernel, self.stride)
        z, _, normal, cache = first
        dx, dgamma, dbeta = batch_norm_gradient(np.where(normal > 0, dx.reshape(normal.shape), 0), cache)
        return [z.T @ dx, dgamma, dbeta, *gradients]


def train_step(generator, discriminator, real, z, flips, rounds=1):
    """One step on s (n, N, N, 1); the losses as the GAN names them."""
    a, flips = generator.datascale, flips.reshape(-1, 1).astype(float)
    density = a * (1 + real) / (1 - real)
    real_images = np.concatenate([real, np.tanh(density / 1000)], axis=-1)
    fake_images, caches, statistics = generator.forward(z)
    generator.move(statistics)
    losses = []
    for _ in range(rounds):
        real_loss = discriminator.update(real_images, 1 - flips)
        losses.append((real_loss, discriminator.update(fake_images, flips)))
    logits, discriminator_caches, _ = discriminator.forward(fake_images)
    ones = np.ones_like(logits)
    _, dimages = discriminator.backward((sigmoid(logits) - ones) / len(logits), discriminator_caches)
    generator.adam(generator.backward(dimages, caches))
    real_loss, fake_loss = np.mean(losses, axis=0)
    return {
        "d_real_loss": real_loss,
        "d_fake_loss": fake_loss,
        "d_loss": 0.5 * (real_loss + fake_loss),
        "g_loss": crossentropy(ones, logits),
    }
