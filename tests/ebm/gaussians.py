"""Energies whose normalization is known, for the tests of trainers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from effgen import ebm


SIZE = 8
LOG_PARTITION = 0.5 * SIZE * np.log(2 * np.pi)


class Shifted(eqx.Module):
    """A Gaussian with a mean to learn: `log Z = (d / 2) log(2 pi)`, whatever it is."""

    mean: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum((x - self.mean) ** 2)


class Scaled(eqx.Module):
    """A Gaussian of given precisions."""

    precisions: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum(self.precisions * x**2)


@eqx.filter_jit
def data(num=4096, shift=1.5):
    return shift + jax.random.normal(jax.random.key(7), (num, SIZE))


@eqx.filter_jit
def populations(key, num, audit=None):
    keys = jax.random.split(key)
    walkers = ebm.Walkers.from_gaussian(keys[0], num, (SIZE,))
    if audit is None:
        return walkers
    return ebm.Audited(walkers, ebm.Walkers.from_gaussian(keys[1], audit, (SIZE,)))
