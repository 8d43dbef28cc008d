"""Training-speed estimators: known curves, and real runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import signal, stats
from sklearn.datasets import load_digits

import effgen as eg


STEPS = np.arange(1, 2001.0)


def test_sums():
    losses = np.array([4.0, 2.0, 1.0])
    assert eg.sotl(losses) == 7.0
    assert eg.tse_e(losses, last=2) == 3.0
    assert eg.tse_ema(losses, decay=0.5) == 3.0
    assert eg.tse_ema(losses, decay=1.0) == eg.sotl(losses)


@pytest.mark.parametrize("shape", ["power", "exponential"])
@pytest.mark.parametrize("rate", [0.3, 1.2])
def test_a_known_curve_is_found(shape, rate):
    scaled = STEPS / 1000
    curve = 0.5 + 2 * (scaled**-rate if shape == "power" else np.exp(-rate * scaled))
    found = eg.extrapolate(curve, at=6000)
    assert found.shape == shape
    truth = 0.5 + 2 * (6.0**-rate if shape == "power" else np.exp(-rate * 6))
    np.testing.assert_allclose(found.value, truth, rtol=2e-3)
    np.testing.assert_allclose(found.asymptote, 0.5, rtol=2e-2)
    c = rate if shape == "power" else rate / 1000  # of `exp(-c n)`
    np.testing.assert_allclose(found.rate, c, rtol=2e-2)
    assert found.low <= found.value <= found.high


@pytest.mark.one_case("power")
@pytest.mark.parametrize("shape", ["power", "exponential"])
def test_the_interval_covers(shape):
    rng = np.random.default_rng(0)
    curve = 0.5 + (STEPS**-0.5 * 10 if shape == "power" else 2 * np.exp(-STEPS / 700))
    truth = 0.5 + (3000**-0.5 * 10 if shape == "power" else 2 * np.exp(-3000 / 700))
    num, inside = 200, 0
    for _ in range(num):
        found = eg.extrapolate(curve + 0.1 * rng.normal(size=2000), at=3000)
        inside += found.low <= truth <= found.high
    # Choosing the shape by the data costs a little; far below 95 % is a fault.
    assert stats.binom.cdf(inside, num, 0.93) > 1e-3


@pytest.mark.one_case("0.8")
@pytest.mark.parametrize("phi", [0.8, 0.95])
def test_the_interval_covers_where_noise_is_correlated(phi):
    """As of losses over batches that follow each other in a stream."""
    rng = np.random.default_rng(0)
    curve, truth = 0.5 + STEPS**-0.5 * 10, 0.5 + 3000**-0.5 * 10
    num, inside = 60, 0
    for _ in range(num):
        noise = signal.lfilter([0.1], [1, -phi], rng.normal(size=2200))[200:]
        found = eg.extrapolate(curve + noise, at=3000)
        inside += found.low <= truth <= found.high
    assert stats.binom.cdf(inside, num, 0.90) > 1e-3


def test_a_flat_curve_is_a_reason_to_stop_and_a_steep_one_is_not():
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.normal(size=2000)
    assert eg.should_stop(1.0 + np.exp(-STEPS / 50) + noise, at=4000, threshold=0.02)
    steep = 1.0 + 5 * STEPS**-0.5 + noise
    assert not eg.should_stop(steep, at=20_000, threshold=0.02)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: eg.sotl(x[:0]), "pass one loss a step"),
        (lambda x: eg.sotl(np.where(x == x[7], np.nan, x)), "nan at step 7"),
        (lambda x: eg.tse_e(x, last=0), "`last` is 0"),
        (lambda x: eg.tse_ema(x, decay=0.0), "`decay` is 0"),
        (lambda x: eg.extrapolate(x[:30], at=100), "fit at least 20"),
        (lambda x: eg.extrapolate(x, at=10), "`at` is 10, before the last step"),
        (lambda x: eg.extrapolate(x, at=np.inf), "`at` is inf, before the last"),
        (lambda x: eg.tse_e(x, last=2.5), "`last` is 2.5"),
        (lambda x: eg.should_stop(x, at=9000, threshold=np.nan), "`threshold` is nan"),
        (lambda x: eg.rank_runs({"a": x}, lambda _: np.nan), "nan for the run 'a'"),
        (lambda x: eg.extrapolate(x, at=3000, tail=1.5), "`tail` is 1.5"),
        (lambda x: eg.extrapolate(x, at=3000, confidence=1.0), "`confidence` is 1"),
        (lambda x: eg.rank_runs({}), "names no run"),
        (lambda x: eg.rank_runs({"a": x, "b": x[:0]}), r"`losses\['b'\]` has shape"),
        (lambda x: eg.rank_runs({"a": x, "b": x / 0}), r"`losses\['b'\]` is inf"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match), np.errstate(divide="ignore"):
        call(1 / STEPS)


def test_a_whole_history_is_no_losses():
    history = eg.History({"loss": 1 / STEPS}, STEPS.astype(int))
    with pytest.raises(TypeError, match="`losses` is a History: pass one metric of it"):
        eg.sotl(history)
    with pytest.raises(TypeError, match=r"`losses\['a'\]` is a History: pass one"):
        eg.rank_runs({"a": history})
    with pytest.raises(TypeError, match="`losses` is a History: pass a mapping"):
        eg.rank_runs(history)


def test_runs_are_cut_to_the_shortest_and_have_names():
    assert eg.rank_runs({"long": np.ones(9), "short": np.full(2, 1.5)})[0] == "long"
    with pytest.raises(TypeError, match="`losses` is a list: pass a mapping"):
        eg.rank_runs([np.ones(3)])


class Classifier(eg.AbstractTrainer):
    """Cross-entropy of a small network."""

    optim: optax.GradientTransformation

    def init(self, model, memory=None):
        return eg.TrainState.start(model, eg.init_opt_state(self.optim, model), memory)

    def step(self, state, batch, *, key):
        loss, gradients = eqx.filter_value_and_grad(cross_entropy)(state.model, *batch)
        model, opt_state = eg.apply_gradients(
            self.optim, gradients, state.opt_state, state.model
        )
        return state.advance(model, opt_state, None), {"loss": loss}


def cross_entropy(model, x, y):
    logits = jax.vmap(model)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.mark.slow
def test_early_sums_rank_real_runs():
    # Seven learning rates on real digits: the first quarter tells the final order.
    digits = load_digits()
    x, y = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    early, final = {}, {}
    # The rate is in the state: one program for all of them.
    trainer = Classifier(optax.inject_hyperparams(optax.adam)(learning_rate=0.0))
    rate_of = lambda state: state.opt_state.hyperparams["learning_rate"]
    begun = trainer.init(eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0)))
    for rate in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1.0):
        state = eqx.tree_at(rate_of, begun, jnp.asarray(rate))
        data = eg.Minibatches((x[400:], y[400:]), 64)
        key = jax.random.key(1)
        state, history = eg.fit(trainer, state, data, key=key, num_steps=400)
        early[str(rate)] = history["loss"][:100]
        final[str(rate)] = float(cross_entropy(state.model, x[:400], y[:400]))
    truth = sorted(final, key=final.__getitem__)
    for estimator in (eg.sotl, eg.tse_ema, lambda losses: eg.tse_e(losses, last=22)):
        ranked = eg.rank_runs(early, estimator)
        places = [ranked.index(name) for name in truth]
        assert stats.spearmanr(places, range(len(places))).statistic > 0.8
