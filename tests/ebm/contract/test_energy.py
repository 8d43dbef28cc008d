"""Energies of one example and of a batch are the same to every part."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.contract.energy import energies_at, evaluate, takes_one_example
from tests.ebm.gaussians import SIZE, data, populations


class Batched(eqx.Module):
    """A Gaussian that refuses anything but `(batch, SIZE)`."""

    mean: jax.Array

    def __call__(self, x):
        batch, size = x.shape
        assert (batch > 0, size) == (True, SIZE)
        return 0.5 * jnp.sum((x - self.mean[None]) ** 2, axis=1)


class Single(eqx.Module):
    mean: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum((x - self.mean) ** 2)


def elementwise(parameters, x):
    """A Gaussian written over the last axis: of one example, or of many."""
    return 0.5 * jnp.sum((x - parameters["mean"]) ** 2, axis=-1)


def test_what_an_energy_takes_is_seen_from_shapes():
    mean = jnp.zeros(SIZE)
    assert takes_one_example(Single(mean), (SIZE,), jnp.float32)
    assert not takes_one_example(Batched(mean), (SIZE,), jnp.float32)
    function = ebm.FunctionEnergy(elementwise, {"mean": mean})
    assert takes_one_example(function, (SIZE,), jnp.float32)


def test_values_and_gradients_agree():
    mean, x = jnp.arange(1.0 * SIZE), data(16)
    one, many = evaluate(Single(mean), x), evaluate(Batched(mean), x)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [ebm.ULA(0.1), pytest.param(ebm.MALA(0.1), marks=pytest.mark.slow)],
    ids=["ula", "mala"],
)
def test_training_is_the_same_whichever_the_energy_takes(kernel):
    trainer = ebm.JarzynskiTrainer(optax.sgd(0.02), kernel=kernel)

    def trained(model):
        state = trainer.init(model, populations(jax.random.key(0), 64, audit=512))
        x = eg.Minibatches(data(), 16)
        state, _ = eg.fit(trainer, state, x, key=jax.random.key(1), num_steps=20)
        density = ebm.NormalizedEnergy.from_state(state)
        return state.model, density.log_prob(data(4))

    mean = jnp.zeros(SIZE)
    one, log_prob = trained(Single(mean))
    many, log_prob_of_many = trained(Batched(mean))
    function, _ = trained(ebm.FunctionEnergy(elementwise, {"mean": mean}))
    np.testing.assert_allclose(one.mean, many.mean, rtol=1e-4)
    np.testing.assert_allclose(one.mean, function.parameters["mean"], rtol=1e-4)
    np.testing.assert_allclose(log_prob, log_prob_of_many, rtol=1e-4)


def test_half_precision_energies_are_weighed_in_the_walkers_precision():
    def energy(x):
        return 0.5 * jnp.sum(x.astype(jnp.bfloat16) ** 2)

    energies, gradients = evaluate(energy, data(8))
    assert energies.dtype == gradients.dtype == jnp.float32


def test_an_energy_s_own_error_is_not_hidden():
    def broken(x):
        raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        energies_at(broken, data(4))


def test_integers_are_no_energies():
    with pytest.raises(ValueError, match="one floating-point number"):
        energies_at(lambda x: jnp.argmax(x), data(4))
