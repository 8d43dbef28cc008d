"""The other order of weights and moves: as its kernel in every other way."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm


KEY = jax.random.key(0)
BITS = jnp.array(list(itertools.product([0.0, 1.0], repeat=4)))
LABELED = ebm.LabeledEnergy(lambda x, label: jnp.sum(x**2) + label, (2,), 3)
MACHINE = ebm.RBM.independent(jnp.zeros(4), 3, key=KEY, scale=1.0)


def first(kernel):
    return ebm.ReweightFirst(kernel)


def test_weights_of_a_machine_are_exact():
    start = ebm.RBM.independent(jnp.zeros(4), 3)
    walkers = ebm.Walkers.from_bernoulli(KEY, 1024, jnp.zeros(4))
    kernel = first(ebm.BlockGibbs())
    assert not kernel.takes_gradients
    walkers = ebm.annealed([start, MACHINE], walkers, kernel=kernel, key=KEY)
    value, error = walkers.estimate()
    truth = jax.nn.logsumexp(-jax.vmap(MACHINE)(BITS))
    assert error < 0.05
    assert abs(value - truth) < 4 * error


def test_the_way_between_models_is_the_kernel_s():
    kernel = first(ebm.LabelGibbs(ebm.MALA(0.1)))
    half = kernel.between(LABELED, LABELED, jnp.array(0.5))
    assert isinstance(half, ebm.LabeledEnergy)
    assert kernel.takes_gradients


@pytest.mark.parametrize(
    ("kernel", "model", "walkers", "said"),
    [
        (ebm.BlockGibbs(), MACHINE, (4,), "that are not zeros and ones"),
        (ebm.LabelGibbs(ebm.MALA(0.1)), LABELED, (3,), "`memory` has labels"),
        (ebm.ReflectedMALA(0.1), jnp.sum, (3,), "of the walls None"),
    ],
)
def test_walkers_are_refused_as_by_the_kernel(kernel, model, walkers, said):
    walkers = ebm.Walkers.from_gaussian(KEY, 16, walkers)
    with pytest.raises(ValueError, match=said):
        first(kernel).check(model, walkers)


def test_data_are_refused_as_by_the_kernel():
    trainer = ebm.PCDTrainer(optax.sgd(0.1), kernel=first(ebm.BlockGibbs()))
    state = trainer.init(MACHINE, ebm.Walkers.from_bernoulli(KEY, 16, jnp.zeros(4)))
    spins = 2 * np.float32(BITS) - 1
    with pytest.raises(ValueError, match="`data` has values that are not zeros"):
        eg.fit(trainer, state, [spins], key=KEY)
    assert not bool(first(ebm.BlockGibbs()).admits(MACHINE, jnp.asarray(spins)))
    eg.fit(trainer, state, [np.float32(BITS)], key=KEY)
