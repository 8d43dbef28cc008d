"""Trainers for the tests: the smallest of their kind, and one case for each method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import effgen as eg
from effgen import collocation, ebm, neural_sde, retrieval_cache as rc


KEY = jax.random.key(0)


class Regression(eg.AbstractTrainer):
    """Least squares with a memory of eight noisy numbers; counts its traces."""

    optim: optax.GradientTransformation
    traces: Any = eqx.field(static=True, default=None)

    def init(self, model, memory=None):
        memory = jnp.zeros((8, 2)) if memory is None else memory
        opt_state = eg.init_opt_state(self.optim, model)
        return eg.TrainState.start(model, opt_state, memory)

    def step(self, state, batch, *, key):
        if self.traces is not None:
            self.traces.append(1)
        x, y = batch

        def mean_square(model):
            return jnp.mean((jax.vmap(model)(x) - y) ** 2)

        loss, gradients = eqx.filter_value_and_grad(mean_square)(state.model)
        model, opt_state = eg.apply_gradients(
            self.optim,
            gradients,
            state.opt_state,
            state.model,
            value=loss,
            value_fn=mean_square,
        )
        memory = 0.9 * state.memory + jax.random.normal(key, state.memory.shape)
        return state.advance(model, opt_state, memory), {"loss": loss}


class Traces:
    """A counter of traces, equal to itself alone."""

    def __init__(self):
        self.count = 0

    def append(self, _):
        self.count += 1

    def __len__(self):
        return self.count


class Case(NamedTuple):
    """A trainer made anew at each call, its first state, and its data."""

    trainer: Callable[[], eg.AbstractTrainer]
    state: eg.TrainState
    data: Any


@jax.jit
def regression_data():
    x = jax.random.normal(KEY, (96, 3))
    return x, jnp.sin(x.sum(axis=1, keepdims=True))


def regression() -> Case:
    def trainer():
        return Regression(optax.adam(optax.cosine_decay_schedule(1e-2, 300)))

    model = eqx.nn.MLP(3, 1, 8, 1, key=KEY)
    return Case(trainer, trainer().init(model), eg.Minibatches(regression_data(), 16))


def jarzynski() -> Case:
    def trainer():
        kernel = ebm.ULA(optax.linear_schedule(0.1, 0.05, 100))
        return ebm.JarzynskiTrainer(optax.adam(1e-2), kernel=kernel, num_moves=2)

    return Case(trainer, trainer().init(*energy_and_walkers()), vectors())


def pcd() -> Case:
    def trainer():
        return ebm.PCDTrainer(optax.adam(1e-2), kernel=ebm.ULA(0.1))

    return Case(trainer, trainer().init(*energy_and_walkers()), vectors())


def reservoir() -> Case:
    def trainer():
        rule = ebm.TargetAcceptance(0.1)
        return ebm.JarzynskiTrainer(optax.adam(1e-2), kernel=ebm.MALA(rule), radius=0.3)

    energy, populations = energy_and_walkers(num=128)
    memory = ebm.Audited(
        ebm.Reservoir.from_walkers(populations.walkers, block_size=4, active=8),
        ebm.Reservoir.from_walkers(populations.audit, block_size=8, active=8),
    )
    return Case(trainer, trainer().init(energy, memory), vectors())


def restarted() -> Case:
    def trainer():
        return ebm.PCDTrainer(
            optax.adam(1e-2), kernel=ebm.ULA(0.1), num_moves=2, restarts=0.1
        )

    return Case(trainer, trainer().init(*energy_and_walkers()), vectors())


def cd() -> Case:
    def trainer():
        return ebm.CDTrainer(optax.adam(1e-2), kernel=ebm.ULA(0.1), num_moves=2)

    energy, populations = energy_and_walkers()
    return Case(trainer, trainer().init(energy, populations.audit), vectors())


def score_matching() -> Case:
    def trainer():
        return ebm.ScoreMatchingTrainer(optax.adam(1e-2), kernel=ebm.ULA(0.1))

    energy, populations = energy_and_walkers()
    return Case(trainer, trainer().init(energy, populations.audit), vectors())


def noise_contrast() -> Case:
    def trainer():
        return ebm.NCETrainer(optax.adam(1e-2), kernel=ebm.ULA(0.1), noise_scale=2.0)

    energy, populations = energy_and_walkers()
    return Case(trainer, trainer().init(energy, populations.audit), vectors())


def rbm() -> Case:
    def trainer():
        return ebm.JarzynskiTrainer(optax.sgd(0.1), kernel=ebm.BlockGibbs())

    @eqx.filter_jit
    def drawn():
        keys = jax.random.split(KEY, 3)
        bias = jnp.zeros(6)
        energy = ebm.RBM.independent(bias, 4, key=keys[0], scale=0.01)
        walkers = ebm.Walkers.from_bernoulli(keys[1], 32, bias)
        return energy, walkers, jax.random.bernoulli(keys[2], 0.3, (64, 6)) * 1.0

    energy, walkers, x = drawn()
    return Case(trainer, trainer().init(energy, walkers), eg.Minibatches(x, 16))


def images() -> Case:
    def trainer():
        return ebm.JarzynskiTrainer(optax.adam(1e-3), kernel=ebm.ULA(0.01))

    keys = jax.random.split(KEY, 3)
    energy = ebm.image_energy((1, 6, 6), key=keys[0], channels=(2, 4))
    walkers = ebm.Walkers.from_gaussian(keys[1], 16, (1, 6, 6))
    x = jax.random.normal(keys[2], (32, 1, 6, 6))
    return Case(trainer, trainer().init(energy, walkers), eg.Minibatches(x, 8))


@eqx.filter_jit
def energy_and_walkers(num=32):
    keys = jax.random.split(KEY, 3)
    energy = ebm.mlp_energy((2,), key=keys[0], width_size=8)
    walkers = [ebm.Walkers.from_gaussian(k, num, (2,)) for k in keys[1:]]
    return energy, ebm.Audited(*walkers)


def vectors():
    rows = jax.jit(lambda: 0.5 + 0.8 * jax.random.normal(KEY, (64, 2)))()
    return eg.Minibatches(rows, 16)


def latent_sde() -> Case:
    """Series of unequal length and gaps, a nonlinear drift and a residual."""

    def trainer():
        return neural_sde.LatentSDETrainer(optax.adam(1e-2), dt=0.3, num_paths=3)

    law = neural_sde.Gaussian.independent(jnp.zeros(2), 0.5)
    linear = neural_sde.DiagonalSDE([0.5, 1.0], 0.0, 0.7, law)

    @eqx.filter_jit
    def drawn(linear):
        keys = jax.random.split(KEY, 4)
        model = neural_sde.LatentSDE(
            linear,
            neural_sde.LinearDecoder(
                jax.random.normal(keys[0], (3, 2)), 0.3, learned=("matrix", "offset")
            ),
            drift=neural_sde.DriftNetwork(2, key=keys[1], width_size=8, depth=1),
            residual=neural_sde.residual_network(
                linear, key=keys[2], width_size=8, depth=1
            ),
            control=neural_sde.PlainControl(2, 3, key=keys[3], width_size=8),
        )
        ts = jnp.cumsum(jax.random.uniform(keys[1], (16, 5)), axis=1)
        ys = jax.random.normal(keys[2], (16, 5, 3))
        return model, (ts, ys, jax.random.bernoulli(keys[3], 0.8, (16, 5, 3)))

    model, series = drawn(linear)
    return Case(trainer, trainer().init(model), eg.Minibatches(series, 8))


def decaying() -> collocation.Problem:
    ts = jnp.linspace(0, 2, 9)
    rows = [(ts, first * jnp.exp(-0.7 * ts)) for first in (1.0, 3.0)]
    return collocation.Problem(lambda t, x, u, p, nets: -p * nets(x), rows)


def rate() -> collocation.Model:
    return collocation.Model(jnp.asarray(0.2), eqx.nn.MLP(1, 1, 4, 1, key=KEY))


def shooting() -> Case:
    """Two trajectories in three segments each."""
    problem = decaying()

    def trainer():
        return collocation.ShootingTrainer(optax.adam(1e-2), problem, rtol=1e-4)

    segments = collocation.segments_of(problem, 3)
    guess = collocation.transcribe(problem).guess()
    state = trainer().init(rate(), (segments, guess))
    return Case(trainer, state, eg.Minibatches(segments, 6))


def derivative_matching() -> Case:
    problem = decaying()

    def trainer():
        return collocation.DerivativeMatchingTrainer(
            optax.adam(1e-2), problem, scale=(1.0,)
        )

    level = collocation.transcribe(problem, stages=2)
    rows = collocation.slopes_of(level.guess(), level.mesh)
    return Case(trainer, trainer().init(rate()), eg.Minibatches(rows, 8))


def numbered(num=256):
    """Return towers of tables, a corpus of numbers, and pairs of them."""
    keys = jax.random.split(KEY)
    tables = [eqx.nn.Embedding(num, 6, key=k) for k in keys]
    numbers = jnp.arange(num)[:, None]
    data = eg.Minibatches(rc.Pairs(numbers, numbers, numbers[:, 0]), 16)
    return rc.TwoTowers(*map(Looked, tables)), numbers, data


class Looked(eqx.Module):
    """A row of a table for each number, of length one."""

    table: eqx.nn.Embedding

    def __call__(self, numbers):
        return rc.normalized(jax.vmap(self.table)(numbers[:, 0]))


def retrieval(**settings) -> Case:
    def trainer():
        # Not Adam, which takes a full step along a gradient that is zero but for
        # rounding: such as of a document that is drawn and met at once.
        return rc.NegativeCacheTrainer(optax.sgd(0.1), 16, **settings)

    model, corpus, data = numbered()
    cache = rc.NegativeCache.fill(model.document, corpus)
    return Case(trainer, trainer().init(model, cache), data)


def negative_cache() -> Case:
    return retrieval(refresh=0.1)


def gumbel_max() -> Case:
    # Not a drift of zero: of a fresh cache, rounding would decide whether to refresh.
    policy = rc.Budget(0.2, drift=1e-3)
    return retrieval(estimator=rc.GumbelMax(), refresh=policy)


def streamed() -> Case:
    return retrieval(refresh=(rc.WriteBack(), rc.PositivesIn(), rc.RandomRows(0.1)))


def in_batch() -> Case:
    def trainer():
        return rc.InBatchTrainer(optax.adam(1e-2), num_chunks=2)

    model, _, data = numbered()
    return Case(trainer, trainer().init(model), data)


def cross_batch() -> Case:
    def trainer():
        return rc.CrossBatchTrainer(optax.adam(1e-2))

    model, corpus, data = numbered()
    cache = rc.NegativeCache.empty(corpus[:1], 6, 32)
    return Case(trainer, trainer().init(model, cache), data)


def full_softmax() -> Case:
    def trainer():
        return rc.FullSoftmaxTrainer(optax.adam(1e-2))

    model, corpus, data = numbered()
    cache = rc.NegativeCache.fill(model.document, corpus)
    return Case(trainer, trainer().init(model, cache), data)


def lazy_tables() -> Case:
    def trainer():
        return rc.LazyTablesTrainer(rc.InBatchTrainer(optax.adam(1e-2)))

    _, corpus, data = numbered()
    users, items = (rc.Table(len(corpus), 6, key=k) for k in jax.random.split(KEY))
    memory = rc.StreamedFrequencies.of(len(corpus))
    return Case(trainer, trainer().init(rc.TwoTowers(users, items), memory), data)


CASES = {
    "regression": regression,
    "jarzynski": jarzynski,
    "pcd": pcd,
    "reservoir": reservoir,
    "restarted": restarted,
    "cd": cd,
    "score_matching": score_matching,
    "noise_contrast": noise_contrast,
    "rbm": rbm,
    "images": images,
    "latent_sde": latent_sde,
    "shooting": shooting,
    "derivative_matching": derivative_matching,
    "negative_cache": negative_cache,
    "gumbel_max": gumbel_max,
    "streamed": streamed,
    "in_batch": in_batch,
    "cross_batch": cross_batch,
    "full_softmax": full_softmax,
    "lazy_tables": lazy_tables,
}


def arrays(tree):
    """Return the arrays of a pytree, as numpy."""
    import numpy as np

    return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]
