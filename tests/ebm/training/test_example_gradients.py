"""The Gram matrix of the examples' gradients, against the gradients themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm
from effgen.ebm.contract.energy import energy_of_one
from effgen.ebm.training.example_gradients import _products, gram


class Tied(eqx.Module):
    """One matrix that is used twice, and one that meets many vectors at once."""

    twice: jax.Array
    many: jax.Array

    def __call__(self, x):
        y = jnp.tanh(self.twice @ jnp.tanh(self.twice @ x))
        patches = jax.vmap(lambda patch: self.many @ patch)(y.reshape(3, 2))
        return jnp.sum(jnp.sin(patches))


class Bilinear(eqx.Module):
    """A product of two parameters, which then meets the example."""

    left: jax.Array
    right: jax.Array

    def __call__(self, x):
        return jnp.sum(jnp.sin((self.left @ self.right) * x))


class OfBatches(eqx.Module):
    """An energy that takes batches only."""

    matrix: jax.Array

    def __call__(self, x):
        return jnp.sum(jax.nn.softplus(jnp.einsum("bi,ij->bj", x, self.matrix)), 1)


def warmed(energy, key):
    """Return the energy with no parameter left at zero."""
    params, fixed = eqx.partition(energy, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    leaves = [
        x + 0.3 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return eqx.combine(structure.unflatten(leaves), fixed)


def dense(energy, x):
    """Return the Gram matrix by the gradients themselves."""
    gradients = jax.vmap(lambda x: eqx.filter_grad(energy_of_one)(energy, x))(x)
    flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(gradients)]
    flat = np.concatenate(flat, 1).astype(np.float64)
    return flat @ flat.T


def num_products_of(energy, x):
    """Return of how many matrices the gradients are not formed."""
    params, static = eqx.partition(energy, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    of_batches = isinstance(energy, OfBatches)

    def of_one(leaves, x):
        model = eqx.combine(structure.unflatten(leaves), static)
        return model(x[None])[0] if of_batches else model(x)

    program = jax.make_jaxpr(of_one)(leaves, x)
    return len(_products(program.jaxpr, len(leaves)))


KEY = jax.random.key(0)
ENERGIES = {
    "perceptron": (lambda: ebm.mlp_energy((6,), key=KEY, width_size=8), (6,), 3),
    "in coordinates": (
        lambda: ebm.mlp_energy(
            (6,),
            key=KEY,
            width_size=8,
            coordinates=ebm.Whitened.of(np.random.default_rng(0).normal(size=(50, 6))),
        ),
        (6,),
        3,
    ),
    "machine": (lambda: ebm.RBM.independent(jnp.zeros(6), 4), (6,), 1),
    "convolutions": (
        lambda: ebm.image_energy((1, 8, 8), key=KEY, channels=(2, 3)),
        (1, 8, 8),
        1,
    ),
    "tied": (lambda: Tied(jnp.eye(6), jnp.ones((4, 2))), (6,), 0),
    "bilinear": (lambda: Bilinear(jnp.eye(6), jnp.ones(6)), (6,), 0),
    "of batches": (lambda: OfBatches(jnp.ones((6, 3))), (6,), 1),
}


@pytest.mark.one_case("bilinear")
@pytest.mark.parametrize("name", ENERGIES)
def test_the_gram_matrix_is_that_of_the_gradients(name):
    make, shape, num_products = ENERGIES[name]
    energy = warmed(make(), jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (5, *shape))
    expected = dense(energy, x)
    found = jax.jit(lambda x: gram(energy, x))(x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    assert num_products_of(energy, x[0]) == num_products
