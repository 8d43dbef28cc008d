"""What a stranger passes first: taken as it is meant, or refused by its name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import ebm
from tests.ebm.gaussians import SIZE, Shifted, data, populations


KEY = jax.random.key(0)
KERNEL = ebm.MALA(0.1)
MODEL = Shifted(jnp.asarray(np.zeros(SIZE, np.float32)))
FAR = Shifted(jnp.asarray(np.ones(SIZE, np.float32)))
GAPPED = np.where(np.arange(12.0).reshape(6, 2) == 5, np.nan, 1.0)


TWICE = ebm.Audited(populations(KEY, 16), populations(KEY, 16))
SCALED = ebm.Audited(
    *[ebm.Walkers.from_gaussian(KEY, 16, (SIZE,), scale=scale) for scale in (1.0, 2.0)]
)
UNITS = ebm.Standardized.of(np.arange(6.0).reshape(3, 2))
LABELED = ebm.LabeledEnergy(lambda x, label: jnp.sum(x**2) + label, (2,), 2)


class Frame:
    """A table with names, as a data frame is to numpy."""

    def __init__(self, rows):
        self.rows = np.asarray(rows)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.rows, dtype)


def walkers(num=16):
    return populations(KEY, num)


def trainer(**settings):
    return ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=KERNEL, **settings)


def annealed(models, start, **settings):
    return ebm.annealed(models, start, key=KEY, **{"kernel": KERNEL} | settings)


def masses(weights, classify=lambda x: jnp.zeros(len(x), int)):
    return ebm.mode_masses(data(8), weights, classify, 1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ebm.Walkers.from_gaussian(KEY, 16.0, (2,)), ValueError, "`num` is 16"),
        (lambda: ebm.Walkers.from_gaussian(KEY, 16, 2), TypeError, "`shape` is 2"),
        (
            lambda: ebm.Walkers.from_gaussian(KEY, 16, (2,), scale=np.inf),
            ValueError,
            "`scale` is inf",
        ),
        (
            lambda: ebm.Walkers.from_gaussian(KEY, 16, (2,), scale=np.ones(2)),
            ValueError,
            r"`scale` is array\(\[1",
        ),
        (lambda: ebm.Walkers.from_samples(GAPPED), ValueError, "in 1 of 6 rows .row 2"),
        (
            lambda: ebm.Walkers.from_samples(np.ones((6, 2)), GAPPED[:, 1]),
            ValueError,
            "`log_density` has NaN",
        ),
        (lambda: ebm.Walkers.from_samples([["a"], ["b"]]), TypeError, "`positions`"),
        (lambda: ebm.mlp_energy(2, key=KEY), TypeError, "`shape` is 2"),
        (lambda: trainer(num_moves=1.5), ValueError, "`num_moves` is 1.5"),
        (lambda: trainer(resample_below="x"), ValueError, "`resample_below` is 'x'"),
        (lambda: trainer().init("energy", walkers()), TypeError, "`model` is 'energy'"),
        (
            lambda: ebm.PCDTrainer(1e-3, kernel=KERNEL).init(MODEL, walkers()),
            TypeError,
            "`optim` is a float.*optax.adam",
        ),
        (
            lambda: trainer().init(MODEL, ebm.Audited(data(8), walkers())),
            TypeError,
            "`memory.walkers` is a",
        ),
        (lambda: ebm.NormalizedEnergy.from_state(MODEL), TypeError, "`state` is a Sh"),
        (lambda: ebm.sample(MODEL, 3, key=KEY), TypeError, "`state` is a Shifted"),
        (
            lambda: ebm.NormalizedEnergy.from_walkers(MODEL, [walkers()]),
            TypeError,
            "`walkers` is a list",
        ),
        (lambda: annealed(MODEL, walkers()), TypeError, "`models` is a Shifted"),
        (lambda: annealed([MODEL], data(8)), TypeError, "`walkers` is a"),
        (
            lambda: annealed([MODEL], walkers(), kernel="mala"),
            TypeError,
            "`kernel` is 'mala'",
        ),
        (lambda: ebm.imbalance(data(8)), TypeError, "`walkers` is a"),
        (lambda: ebm.Reservoir.from_walkers(data(8)), TypeError, "`walkers` is a"),
        (
            lambda: ebm.mode_masses(
                data(8), np.full(8, np.nan), lambda x: jnp.zeros(8, int), 1
            ),
            ValueError,
            "`weights` has NaN",
        ),
        (
            lambda: walkers().reweighted(FAR).resampled(KEY).in_blocks(8),
            ValueError,
            "resampled together",
        ),
        (lambda: trainer().init(MODEL, TWICE), ValueError, "walkers that train"),
        (lambda: trainer().init(MODEL, SCALED), ValueError, "walkers that train"),
        (lambda: ebm.Walkers.from_gaussian(KEY, 16, (0,)), ValueError, "every axis"),
        (
            lambda: ebm.Walkers.from_samples(data(8), walls=(1, 0)),
            ValueError,
            "`low` is 1 and `high` 0",
        ),
        (
            lambda: ebm.Walkers.from_gaussian(KEY, 16, (3,), coordinates=UNITS),
            ValueError,
            r"`coordinates` are of 2 numbers.*\(3,\) has 3",
        ),
        (
            lambda: ebm.mlp_energy((2,), key=KEY, coordinates=data(8)),
            TypeError,
            "`coordinates` is a ",
        ),
        (lambda: ebm.mlp_energy((2,), key=KEY, depth=-1), ValueError, "`depth` is -1"),
        (
            lambda: ebm.labeled_mlp_energy((2,), 2, key=KEY, width_size=0),
            ValueError,
            "`width_size` is 0",
        ),
        (
            lambda: ebm.image_energy((28, 28), key=KEY),
            ValueError,
            r"`shape` is \(28, 28\): pass `\(channels",
        ),
        (
            lambda: ebm.residual_energy((28, 28), key=KEY),
            ValueError,
            r"`shape` is \(28, 28\): pass `\(channels",
        ),
        (
            lambda: ebm.image_energy((1, 8, 8), key=KEY, channels=()),
            ValueError,
            r"`channels` is \(\): pass positive integers",
        ),
        (
            lambda: ebm.residual_energy((1, 8, 8), key=KEY, num_blocks=0),
            ValueError,
            "`num_blocks` is 0",
        ),
        (lambda: ebm.ConfinedEnergy(MODEL, 0.0), ValueError, "`scale` is 0"),
        (lambda: ebm.ConfinedEnergy(None, 1.0), TypeError, "`network` is None"),
        (lambda: ebm.TemperedEnergy(MODEL, "1"), ValueError, "`temperature` is '1'"),
        (lambda: ebm.FunctionEnergy(1.0, 1.0), TypeError, "`function` is 1.0"),
        (lambda: ebm.MALA(0.1, clip="1"), ValueError, "`clip` is '1'"),
        (lambda: ebm.MALA(0.1, scale=[1.0, np.nan]), ValueError, "`scale` has NaN"),
        (lambda: ebm.TargetAcceptance("0.1"), ValueError, "`initial` is '0.1'"),
        (lambda: ebm.ReweightFirst(None), TypeError, "`kernel` is None"),
        (lambda: ebm.BlackJAX(None), TypeError, "`algorithm` is None"),
        (lambda: ebm.minsr(-1.0), ValueError, "`learning_rate` is -1"),
        (
            lambda: ebm.NCETrainer(optax.sgd(0.1), kernel=KERNEL, noise_scale="1"),
            ValueError,
            "`noise_scale` is '1'",
        ),
        (
            lambda: ebm.PCDTrainer(optax.sgd(0.1), kernel=KERNEL, restarts="a"),
            ValueError,
            "`restarts` is 'a'",
        ),
        (
            lambda: ebm.Reservoir.from_walkers(walkers(), block_size=3.5),
            ValueError,
            "`block_size` is 3.5",
        ),
        (lambda: ebm.Standardized.of("table"), TypeError, "`data` is a str"),
        (lambda: ebm.Whitened.of(data(8), noise=-1), ValueError, "`noise` is -1"),
        (lambda: ebm.pareto_k([]), ValueError, r"`log_weights` has shape \(0,\)"),
        (lambda: ebm.pareto_k([0.0, np.nan]), ValueError, "`log_weights` has NaN"),
        (lambda: masses(-np.ones(8)), ValueError, "`weights` go from -1 to -1"),
        (lambda: masses(np.ones(7)), ValueError, r"`weights` has shape \(7,\)"),
        (
            lambda: masses(np.ones(8), lambda x: x[:, 0]),
            TypeError,
            "`classify` returns float32",
        ),
        (lambda: annealed("ab", walkers()), TypeError, "`models` is a str"),
        (
            lambda: annealed([MODEL, None], walkers()),
            TypeError,
            r"`models\[1\]` is None",
        ),
        (
            lambda: annealed([MODEL], ebm.Walkers.from_samples(data(8))),
            ValueError,
            "`walkers` are of unknown density",
        ),
        (
            lambda: LABELED.log_posterior(np.ones(2)),
            ValueError,
            r"`x` has shape \(2,\): pass examples",
        ),
        (
            lambda: ebm.with_labels(data(2), ["a", "b"]),
            TypeError,
            "`labels` is a list that is no array of numbers",
        ),
        (lambda: ebm.MALA(0.1, scale=[1.0, 0.0]), ValueError, "`scale` is 0 in some"),
        (
            lambda: ebm.ULA(0.1, scale=np.diag([1.0, 0.0])),
            ValueError,
            "a matrix that has an inverse",
        ),
        (
            lambda: ebm.MALA(ebm.TargetAcceptance),
            TypeError,
            "`step_size` is the class TargetAcceptance: pass",
        ),
        (lambda: ebm.MALA(True), TypeError, "`step_size` is a bool"),
        (
            lambda: ebm.ULA(lambda step: step - 1.0),
            ValueError,
            "`step_size` is a schedule that begins with -1",
        ),
        (lambda: trainer(radius=True), TypeError, "`radius` is True"),
        (lambda: trainer(penalty=True), ValueError, "`penalty` is True"),
        (lambda: ebm.minsr(damping=np.inf), ValueError, "`damping` is inf"),
        (lambda: ebm.minsr(momentum="0"), ValueError, "`momentum` is '0'"),
        (
            lambda: ebm.Walkers.from_bernoulli(KEY, 16, [0.0, -np.inf]),
            ValueError,
            "`logits` has NaN or infinite values: clip the shares",
        ),
        (
            lambda: ebm.RBM.independent(np.full(2, np.inf), 2),
            ValueError,
            "`visible_bias` has NaN or infinite",
        ),
        (
            lambda: ebm.RBM.independent([0, 0], 2, key=KEY),
            ValueError,
            r"`scale` is 0\.0: pass a positive",
        ),
        (
            lambda: ebm.RBM(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(2)),
            ValueError,
            r"`weights` have shape \(2, 3\), the biases \(3,\) and \(2,\)",
        ),
        (
            lambda: ebm.RBM(jnp.zeros((2, 3), int), jnp.zeros(2), jnp.zeros(3)),
            TypeError,
            "`weights` is of int32: pass floats",
        ),
        (
            lambda: ebm.Walkers.from_uniform(KEY, 16, (2,), low=np.zeros(2)),
            ValueError,
            "they are the walls of every coordinate",
        ),
        (
            lambda: ebm.mlp_energy((1, 2), key=KEY, coordinates=UNITS),
            ValueError,
            r"`coordinates` are of examples of shape \(2,\), not \(1, 2\)",
        ),
        (
            lambda: ebm.labeled_walkers(KEY, 16, (3,), 2, coordinates=UNITS),
            ValueError,
            "`coordinates` are of 2 numbers",
        ),
        (
            lambda: ebm.labeled_mlp_energy((3,), 2, key=KEY, coordinates=UNITS),
            ValueError,
            "`coordinates` are of 2 numbers",
        ),
        (
            lambda: ebm.Reservoir.from_walkers(walkers().in_blocks(8), block_size=2),
            ValueError,
            "`walkers` are in 8 blocks already",
        ),
        (
            lambda: trainer().init(
                lambda x: jnp.sum(x**2),
                ebm.Audited(walkers(), ebm.Walkers.from_gaussian(KEY, 16, (2,))),
            ),
            ValueError,
            r"`memory.audit` have shapes \[\(2,\), \(8,\)\]",
        ),
        (lambda: ebm.NormalizedEnergy.load("x", None), TypeError, "`energy` is None"),
        (
            lambda: ebm.Walkers.from_samples(data(8), walls=(0, 1, 2)),
            ValueError,
            r"`walls` is \(0, 1, 2\): pass `\(low, high\)`",
        ),
        (
            lambda: ebm.LabeledEnergy(LABELED.energy, 2, 2),
            TypeError,
            "`shape` is 2: pass that of one example",
        ),
        (lambda: ebm.LabeledEnergy(None, (2,), 2), TypeError, "`energy` is None"),
        (lambda: ebm.Reservoir(walkers()), TypeError, "`walkers` are not arranged in"),
        (lambda: walkers().in_blocks(16), ValueError, "leaves 2 or more a block"),
        (lambda: walkers().in_blocks(0), ValueError, "`num_blocks` is 0"),
        (
            lambda: trainer().init(
                MODEL,
                ebm.Audited(
                    ebm.Reservoir.from_walkers(walkers(), block_size=4), walkers()
                ),
            ),
            ValueError,
            "walkers that train",
        ),
        (
            lambda: trainer().init(MODEL, ebm.Audited(None, walkers())),
            ValueError,
            "`memory` keeps no walkers that train",
        ),
        (
            lambda: ebm.CDTrainer(optax.sgd(0.1), kernel=KERNEL).init("energy"),
            TypeError,
            "`model` is 'energy'",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_lists_frames_and_integers_are_rows():
    rows = np.arange(2 * SIZE).reshape(2, SIZE)
    for given in (rows, rows.tolist(), Frame(rows)):
        found = ebm.Walkers.from_samples(given).positions
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, rows)
    half = ebm.Walkers.from_samples(rows.astype(np.float16))
    assert half.positions.dtype == jnp.float32
    density = ebm.NormalizedEnergy(MODEL, jnp.zeros(()), jnp.zeros(()), (SIZE,))
    expected = -0.5 * (rows**2).sum(axis=1)
    np.testing.assert_allclose(density.log_prob(Frame(rows)), expected)
    with pytest.raises(ValueError, match="`x` has no rows"):
        density.log_likelihood(rows[:0])
    with pytest.raises(ValueError, match="`x` has NaN or infinite values in 1 of 2"):
        density.log_likelihood(np.where(rows == 3, np.nan, rows))


@pytest.mark.slow
def test_a_reservoir_s_walkers_tell_a_density():
    start = populations(KEY, 64)
    whole = ebm.Reservoir.from_walkers(start, block_size=8)
    with pytest.warns(eg.RunWarning):  # of 64 walkers, an update that is too large
        one = ebm.NormalizedEnergy.from_walkers(FAR, whole)
    with pytest.warns(eg.RunWarning):
        two = ebm.NormalizedEnergy.from_walkers(FAR, start)
    np.testing.assert_allclose(one.log_partition, two.log_partition, rtol=1e-5)


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (np.ones(64), "constant in 1 column"),
        (np.arange(64) % 2, "atoms, 7"),
        (np.where(np.arange(64) == 3, np.nan, 1.0), "NaN or infinite"),
    ],
)
def test_data_on_the_host_are_looked_at_too(column, match):
    x = np.array(data(64))
    x[:, -1] = column
    state = trainer().init(MODEL, walkers())
    source = eg.HostMinibatches(x, 32)
    with pytest.raises(ValueError, match=match):
        eg.fit(trainer(), state, source, key=KEY, num_steps=1)


def test_one_row_is_no_density():
    state = trainer().init(MODEL, walkers())
    source = eg.Minibatches(data(64)[:1], 1)
    with pytest.raises(ValueError, match=r"`data` has 1 row\(s\)"):
        eg.fit(trainer(), state, source, key=KEY, num_steps=1)


@pytest.mark.parametrize("key", [0, jax.random.split(KEY)])
@pytest.mark.parametrize(
    "call",
    [
        lambda key: ebm.Walkers.from_gaussian(key, 16, (2,)),
        lambda key: ebm.Walkers.from_uniform(key, 16, (2,)),
        lambda key: ebm.Walkers.from_bernoulli(key, 16, jnp.zeros(2)),
        lambda key: walkers().resampled(key),
        lambda key: ebm.labeled_walkers(key, 16, (2,), 3),
        lambda key: ebm.mlp_energy((2,), key=key),
        lambda key: ebm.labeled_mlp_energy((2,), 3, key=key),
        lambda key: ebm.image_energy((1, 8, 8), key=key),
        lambda key: ebm.residual_energy((1, 8, 8), key=key),
        lambda key: ebm.annealed([MODEL], walkers(), kernel=KERNEL, key=key),
        lambda key: ebm.sandwich([MODEL], walkers(), data(8), kernel=KERNEL, key=key),
        lambda key: ebm.long_run(MODEL, data(8), kernel=KERNEL, key=key, num_steps=1),
        lambda key: ebm.sample(trainer().init(MODEL, walkers()), 4, key=key),
        lambda key: eg.resample(jnp.zeros(4), 2, key=key),
        lambda key: eg.Minibatches(np.zeros(4), 2)(key),
    ],
)
def test_what_is_no_key_is_named(call, key):
    with pytest.raises(TypeError, match=r"(?s)`key` is .*: pass one random key"):
        call(key)


def test_a_machine_s_key_is_one_or_none():
    with pytest.raises(TypeError, match="`key` is 3: pass one random key"):
        ebm.RBM.independent(jnp.zeros(4), 2, key=3, scale=0.1)
    legacy = jax.random.PRNGKey(0)
    assert ebm.Walkers.from_gaussian(legacy, 16, (2,)).num == 16


def test_masked_entries_are_refused():
    x = np.ma.masked_array(np.ones((8, 2), np.float32), np.eye(8, 2))
    with pytest.raises(ValueError, match="2 masked entries"):
        ebm.Standardized.of(x)
