"""The likelihood of a run that is over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from tests.ebm.gaussians import LOG_PARTITION, SIZE, Shifted, data, populations
from tests.ebm.paths import model_at


KERNEL = ebm.MALA(0.3)


def path():
    return [model_at(jnp.array(t)) for t in (0.0, 0.5, 1.0)]


def fresh(key, num=4096):
    return ebm.Walkers.from_gaussian(key, num, (2,))


def test_annealing_finds_the_partition_function():
    walkers = ebm.annealed(
        path(), fresh(jax.random.key(0)), kernel=KERNEL, key=jax.random.key(1)
    )
    value, error = walkers.estimate()
    assert abs(value - 2.0) < 4 * error < 0.4
    density = ebm.NormalizedEnergy.from_walkers(path()[-1], walkers)
    assert density.log_partition == value
    # A few long steps are exact too, and say how little they know.
    coarse = ebm.annealed(
        path()[::2],
        fresh(jax.random.key(0)),
        kernel=KERNEL,
        key=jax.random.key(1),
        radius=0.9,
    ).estimate()
    assert coarse.standard_error > 2 * error
    assert abs(coarse.value - 2.0) < 5 * coarse.standard_error


JOINT = jnp.array([[2.0, 0.8], [0.8, 1.0]])


def given(value, first):
    """A Gaussian of two numbers, the second of them known."""
    x = jnp.array([first[0], value])
    return 0.5 * x @ JOINT @ x


def gaussian_bernoulli(parameters, x):
    """Numbers with two hidden bits, which are summed out."""
    weights, hidden = parameters
    return 0.5 * jnp.sum(x**2) - jnp.sum(jax.nn.softplus(hidden + x @ weights))


WEIGHTS, HIDDEN = jnp.array([[1.0], [-0.5]]) * jnp.ones((1, 2)), jnp.array([0.3, -1.0])
BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
PULLS = BITS @ np.asarray(WEIGHTS).T


@pytest.mark.one_case("Gaussian-Bernoulli")
@pytest.mark.parametrize(
    ("energy", "size", "log_z"),
    [
        # The rest of the exponent is (precision - 0.8^2 / 2) / 2 of the known number.
        (
            ebm.FunctionEnergy(given, jnp.array(0.7)),
            1,
            0.5 * np.log(2 * np.pi / 2.0) - 0.5 * (1.0 - 0.8**2 / 2.0) * 0.7**2,
        ),
        # Given the bits the numbers are Gaussian: a sum of four integrals.
        (
            ebm.FunctionEnergy(gaussian_bernoulli, (WEIGHTS, HIDDEN)),
            2,
            np.log(
                2
                * np.pi
                * np.exp(BITS @ np.asarray(HIDDEN) + 0.5 * (PULLS**2).sum(1)).sum()
            ),
        ),
    ],
    ids=["one number given another", "Gaussian-Bernoulli"],
)
def test_energies_of_other_kinds_have_their_closed_form(energy, size, log_z):
    start = ebm.FunctionEnergy(lambda _, x: 0.5 * jnp.sum(x**2), ())
    walkers = ebm.annealed(
        [start, energy],
        ebm.Walkers.from_gaussian(jax.random.key(0), 4096, (size,)),
        kernel=KERNEL,
        key=jax.random.key(1),
    )
    value, error = walkers.estimate()
    assert abs(value - log_z) < 4 * error < 0.3


def test_both_sides_close_in_on_the_truth():
    model = path()[-1]
    keys = jax.random.split(jax.random.key(0), 4)
    modes = jax.random.choice(keys[0], 2, (4096,), p=jnp.array([0.25, 0.75]))
    noise = jax.random.normal(keys[1], (4096, 2)) / jnp.sqrt(1.5)
    samples = model.centers[modes] + noise
    lower, upper = ebm.sandwich(
        path(), fresh(keys[2]), samples, kernel=KERNEL, key=keys[3]
    )
    assert abs(lower.value - 2.0) < 4 * lower.standard_error < 0.4
    assert abs(upper.value - 2.0) < 4 * upper.standard_error < 0.4


@pytest.mark.slow
def test_saved_checkpoints_are_a_path(tmp_path):
    trainer = ebm.PCDTrainer(optax.sgd(0.05), kernel=ebm.ULA(0.1))
    first = Shifted(jnp.zeros(SIZE))
    state = trainer.init(first, populations(jax.random.key(0), 64))
    run = eg.train(
        trainer, state, eg.Minibatches(data(), 64), key=jax.random.key(1), num_steps=60
    )
    state, _ = eg.drain(eg.checkpointed(run, tmp_path / "run", every=20))
    models = ebm.saved_models(tmp_path / "run", state, first)
    assert len(models) == 4
    np.testing.assert_array_equal(models[-1].mean, state.model.mean)
    walkers = populations(jax.random.key(2), 4096)
    walkers = ebm.annealed(models, walkers, kernel=KERNEL, key=jax.random.key(3))
    value, error = walkers.estimate()
    assert abs(value - LOG_PARTITION) < 4 * error < 0.4
    with pytest.raises(FileNotFoundError, match="holds no checkpoints"):
        ebm.saved_models(tmp_path / "nowhere", state)


def test_bad_input_is_named():
    walkers = fresh(jax.random.key(0), 16)
    with pytest.raises(ValueError, match="`models` is empty"):
        ebm.annealed([], walkers, kernel=KERNEL, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`num_between` is 0"):
        ebm.annealed(
            path(), walkers, kernel=KERNEL, key=jax.random.key(0), num_between=0
        )
