"""Networks that know when to stop: evidence, and the choice of a law by it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import effgen as eg
from effgen import collocation as co
from effgen.collocation.training.weights_prior import _with_precision


KEY = jax.random.key(0)
TS = np.linspace(0, 6, 41)


def law(t, x, u, p, nets):
    return -p["rate"] * x * jnp.exp(nets(x))


def level_of(ys, **more):
    return co.transcribe(co.Problem(law, (TS, ys), **more), intervals=12)


@pytest.fixture(scope="module")
def deviation():
    with jax.enable_x64(True):
        return co.Deviation(1, 5, center=1.5, scale=1.0, key=jax.random.key(1))


def noise():
    return 0.02 * np.random.default_rng(0).normal(size=41)


def chosen(ys, deviation, held_out=None, **more):
    model = co.Model({"rate": 1.0}, deviation)
    trainer = co.CollocationTrainer(max_iter=300)
    level = level_of(ys, **more)
    return co.choose(trainer, model, level, key=KEY, held_out=held_out)


@pytest.mark.slow
def test_a_true_constant_comes_out_constant_with_its_band(deviation):
    choice = chosen(3 * np.exp(-0.5 * TS) + noise(), deviation)
    assert not choice.network
    rate = float(choice.state.model.parameters["rate"])
    found = co.covariance(choice.transcription, choice.state)
    assert abs(rate - 0.5) < 3 * np.sqrt(found.model[0, 0])
    shown = co.evidence(choice.transcription, choice.state)
    sd = np.sqrt(np.diag(found.model))
    np.testing.assert_allclose(shown.deviations, sd, rtol=1e-6)
    np.testing.assert_allclose(choice.plain.noise, 0.02, rtol=0.3)


def saturating(start=3.0):
    """Return `x' = -x / (1 + x)`, whose rate at three is a quarter of that at zero."""
    states = [start]
    for _ in range(4_000):
        mid = states[-1] - 0.00075 * states[-1] / (1 + states[-1])
        states.append(states[-1] - 0.0015 * mid / (1 + mid))
    return np.interp(TS, np.linspace(0, 6, 4_001), states)


def check_rates(model):
    at = jnp.linspace(0.5, 2.8, 9)[:, None]
    rates = model.parameters["rate"] * jnp.exp(jax.vmap(model.networks)(at))
    np.testing.assert_allclose(rates, 1 / (1 + at[:, 0]), rtol=0.1)


def test_a_law_that_saturates_has_its_network(deviation):
    unseen = co.Problem(law, (TS, saturating(2.0)), initial=co.Initial([2.0]))
    choice = chosen(saturating() + noise(), deviation, unseen)
    assert choice.network
    # The trajectory held out stands beside: its error by both laws.
    again = co.extrapolation(unseen, choice.state.model, choice.state.memory)
    np.testing.assert_array_equal(choice.unseen.errors, again.errors)
    assert choice.unseen.errors[0, 0] < 0.05
    assert choice.plain_unseen.errors[0, 0] > 4 * choice.unseen.errors[0, 0]
    assert choice.evidence.log_evidence > choice.plain.log_evidence + 5
    np.testing.assert_allclose(choice.evidence.noise, 0.02, rtol=0.3)
    assert 0.5 < choice.evidence.effective < 6
    check_rates(choice.state.model)


@pytest.mark.slow
def test_the_mesh_is_refined_before_a_network_may_absorb_its_error(deviation):
    """On two intervals the law itself errs by a tenth of the data's deviation."""
    ys = 3 * np.exp(-0.9 * TS) + 0.5 * noise()
    problem = co.Problem(law, (TS, ys), initial=co.Initial([3.0]))
    level = co.transcribe(problem, intervals=2, stages=2)
    trainer = co.CollocationTrainer(max_iter=300)
    model = co.Model({"rate": 1.0}, deviation)
    with pytest.warns(eg.RunWarning, match="mesh"):
        kept = co.choose(trainer, model, level, key=KEY, num_rounds=1)
    assert len(kept.transcription.mesh.edges[0]) == 3
    assert kept.plain.noise[0] > 5 * 0.01
    choice = co.choose(trainer, model, level, key=KEY)
    assert not choice.network
    assert co.accuracy(choice.transcription, choice.state).excess <= 1
    np.testing.assert_allclose(choice.plain.noise, 0.01, rtol=0.35)
    found = co.covariance(choice.transcription, choice.state)
    rate = float(choice.state.model.parameters["rate"])
    assert abs(rate - 0.9) < 3 * np.sqrt(found.model[0, 0])


@pytest.mark.slow
def test_a_law_with_its_network_has_a_mesh_for_it(deviation):
    """The noise of a law that does not fit is large: for it two intervals suffice."""
    ys = saturating() + 0.1 * noise()
    level = co.transcribe(co.Problem(law, (TS, ys)), intervals=2, stages=2)
    trainer, model = co.CollocationTrainer(max_iter=300), {"rate": 1.0}
    choice = co.choose(trainer, co.Model(model, deviation), level, key=KEY)
    assert choice.network
    assert co.accuracy(choice.transcription, choice.state).excess <= 1
    np.testing.assert_allclose(choice.evidence.noise, 0.002, rtol=0.4)
    check_rates(choice.state.model)


def oscillating(scale=1.0, seed=0):
    """Return three noisy records of `x'' = (1 - x^2) x' - x` in other units."""
    rng = np.random.default_rng(seed)
    law = lambda t, x: [x[1], (1 - x[0] ** 2) * x[1] - x[0]]
    rows = []
    for start in ([2.0, 0.0], [0.3, 1.0], [-1.0, 2.5]):
        solved = scipy.integrate.solve_ivp(law, (0, 6), start, t_eval=TS, rtol=1e-9)
        rows.append((TS, scale * (solved.y.T + 0.05 * rng.normal(size=(41, 2)))))
    return rows


def driven(data, lengthscales):
    """Choose the force of an oscillator, which it has none of without its networks."""
    force = lambda t, x, u, p, nets: jnp.stack([x[1], nets(x) - x[0]])
    points = np.concatenate([ys for _, ys in data])
    spread = points.std(0)
    with jax.enable_x64(True):
        models = [
            co.Model({}, co.GaussianProcess(points, lengthscale=c * spread))
            for c in lengthscales
        ]
        level = co.transcribe(co.Problem(force, data), intervals=25)
        trainer = co.CollocationTrainer(max_iter=150)
        return co.choose(trainer, models, level, key=KEY, num_rounds=1)


def error_of(choice, scale=1.0):
    """Return the error of the force, relative, over the region of the data."""
    data = np.concatenate([ys for _, ys in oscillating()])
    exact = (1 - data[:, 0] ** 2) * data[:, 1]
    with jax.enable_x64(True):
        nets = choice.state.model.networks
        found = np.asarray(jax.vmap(nets)(jnp.asarray(scale * data))) / scale
    return np.sqrt(np.mean((found - exact) ** 2)) / exact.std()


@pytest.mark.parametrize(
    "scale",
    [
        1e6,
        pytest.param(1.0, marks=pytest.mark.slow),
        pytest.param(1e-6, marks=pytest.mark.slow),
    ],
)
def test_a_law_that_fits_nothing_without_its_network_is_found_from_the_data(scale):
    """Begun at the trajectories of the law without, the fit ended far from the data."""
    choice = driven(oscillating(scale), [2.0])
    assert choice.network
    np.testing.assert_allclose(choice.evidence.noise, 0.05 * scale, rtol=0.15)
    assert 5 < choice.evidence.effective < 30
    assert error_of(choice, scale) < 0.15


@pytest.mark.slow
def test_the_evidence_chooses_the_lengthscale():
    data = oscillating()
    both = driven(data, [0.7, 2.0])
    alone = [driven(data, [c]).evidence.log_evidence for c in (0.7, 2.0)]
    assert alone[1] > alone[0] + 3
    np.testing.assert_allclose(both.evidence.log_evidence, alone[1], atol=1e-6)
    assert error_of(both) < error_of(driven(data, [0.7]))


@pytest.mark.slow
@pytest.mark.parametrize("decays", [(1.0, 1.0, 0.1), (0.0, 1e-4, 0.0)])
def test_weights_in_groups_have_a_prior_each(deviation, decays):
    """Begun with all weights held at zero, from where the search begins again.

    A decay of zero is one that is not given.
    """
    groups = eqx.tree_at(lambda n: (n.first, n.bias, n.last), deviation, decays)
    choice = chosen(saturating() + noise(), deviation, weight_decay=groups)
    assert choice.network
    alphas = choice.evidence.precision
    assert len({alphas.first, alphas.bias, alphas.last}) == 3
    check_rates(choice.state.model)
    assert 0 < choice.evidence.effective.last < 5


def test_the_evidence_of_groups_is_that_of_ridge_regression():
    """`x' = a + b t + c t^2` from zero, with one prior of `a` and one of the rest."""
    ys = TS - 0.1 * TS**2 + noise()
    field = lambda t, x, u, p, nets: (
        nets["a"] + nets["bc"][0] * t + nets["bc"][1] * t**2
    )[None]
    decay, trainer = {"a": 1e-3, "bc": 1e-2}, co.CollocationTrainer(tol=1e-12)
    problem = co.Problem(
        field, (TS, ys), scale=1.0, initial=co.Initial([0.0]), weight_decay=decay
    )
    level = co.transcribe(problem, intervals=2)
    networks = {"a": jnp.zeros(()), "bc": jnp.zeros(2)}
    state = trainer.init(co.Model({}, networks), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    found = co.evidence(level, state)
    design = np.stack([TS, TS**2 / 2, TS**3 / 3], 1)
    decays = np.array([1e-3, 1e-2, 1e-2]) * 41
    inverse = np.linalg.inv(design.T @ design + np.diag(decays))
    weights = inverse @ design.T @ ys
    left = ys - design @ weights
    leverage = np.trace(design @ inverse @ design.T)
    variance = left @ left / (41 - leverage)
    alphas = decays / variance
    gamma = 1 - decays * np.diag(inverse)
    np.testing.assert_allclose(found.effective["a"], gamma[0], rtol=1e-6)
    np.testing.assert_allclose(found.effective["bc"], gamma[1:].sum(), rtol=1e-6)
    np.testing.assert_allclose(found.precision["a"], alphas[0], rtol=1e-7)
    np.testing.assert_allclose(found.precision["bc"], alphas[1], rtol=1e-7)
    log = -(left @ left / variance + 41 * np.log(variance)) / 2
    log += (np.sum(np.log(alphas)) - alphas @ weights**2) / 2
    log -= np.linalg.slogdet(np.linalg.inv(inverse) / variance)[1] / 2
    np.testing.assert_allclose(found.log_evidence, log, rtol=1e-8)


@pytest.mark.slow
def test_the_evidence_of_a_linear_law_is_a_closed_form():
    """`x = start + slope t`: with flat priors, that of linear regression."""
    ys = 1 + 0.3 * TS + noise()
    field = lambda t, x, u, p, nets: p["slope"] * jnp.ones(1)
    level = co.transcribe(co.Problem(field, (TS, ys)), intervals=2)
    trainer = co.CollocationTrainer(tol=1e-12)
    state = trainer.init(co.Model({"slope": 0.0}, None), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    found = co.evidence(level, state)
    design = np.stack([np.ones_like(TS), TS], 1)
    residuals = ys - design @ np.linalg.lstsq(design, ys)[0]
    variance = residuals @ residuals / (41 - 2)
    information = design.T @ design / variance
    log = -(residuals @ residuals / variance + 41 * np.log(variance)) / 2
    log -= np.linalg.slogdet(information)[1] / 2
    nominal = level.problem.nominal[0]  # the start is in its units
    np.testing.assert_allclose(found.log_evidence, log - np.log(nominal), rtol=1e-8)
    np.testing.assert_allclose(found.noise, np.sqrt(variance), rtol=1e-8)
    np.testing.assert_allclose(
        found.deviations, np.sqrt(np.linalg.inv(information)[1, 1]), rtol=1e-6
    )


def test_a_prior_of_the_start_has_its_part_in_the_evidence():
    """The evidence of a straight line whose start has a prior, and flat its slope."""
    ys, prior = 1 + 0.3 * TS + noise(), 0.02
    field = lambda t, x, u, p, nets: p["slope"] * jnp.ones(1)
    trainer, design = co.CollocationTrainer(tol=1e-12), np.stack([np.ones(41), TS], 1)
    gaps = []
    for mean in (1.0, 1.05):
        initial = co.Initial([mean], prior)
        problem = co.Problem(field, (TS, ys), scale=0.02, initial=initial)
        level = co.transcribe(problem, intervals=2)
        state = trainer.init(co.Model({"slope": 0.0}, None), level.guess())
        state, _ = eg.fit(trainer, state, [level], key=KEY)
        found = co.evidence(level, state)
        variance = float(found.noise[0] ** 2)
        width = variance * (prior / 0.02) ** 2  # as many noises as `scale` says
        precision = design.T @ design / variance + np.diag([1 / width, 0])
        right = design.T @ ys / variance + np.array([mean / width, 0])
        square = ys @ ys / variance + mean**2 / width
        square -= right @ np.linalg.solve(precision, right)
        log = -(square + 41 * np.log(variance) + np.linalg.slogdet(precision)[1]) / 2
        gaps.append(found.log_evidence - log)
    np.testing.assert_allclose(gaps[1], gaps[0], atol=1e-6)


def test_what_cannot_be_chosen_is_named(deviation):
    trainer, level = co.CollocationTrainer(), level_of(3 * np.exp(-0.5 * TS))
    bare = co.Model({"rate": 1.0}, None)
    with pytest.raises(ValueError, match="`model` is an empty list"):
        co.choose(trainer, [], level, key=KEY)
    pair = [co.Model({"rate": rate}, deviation) for rate in (1.0, 2.0)]
    with pytest.raises(ValueError, match="the parameters of the models differ"):
        co.choose(trainer, pair, level, key=KEY)
    with pytest.raises(ValueError, match="the model has no networks"):
        co.choose(trainer, bare, level, key=KEY)
    network = co.Model({"rate": 1.0}, deviation)
    with pytest.raises(TypeError, match="`held_out` is a Transcription: pass"):
        co.choose(trainer, network, level, key=KEY, held_out=level)  # pyright: ignore[reportArgumentType]
    other = co.Problem(law, (TS, np.ones((41, 2))))
    with pytest.raises(ValueError, match="`held_out` has 2 states and the"):
        co.choose(trainer, network, level, key=KEY, held_out=other)
    state = trainer.init(network, level.guess())
    parts = level_of(3 * np.exp(-0.5 * TS), weight_decay={"first": 1.0, "last": 2.0})
    with pytest.raises(ValueError, match=r"`weight_decay` is .* another tree"):
        co.choose(trainer, co.Model({"rate": 1.0}, deviation), parts, key=KEY)
    with pytest.raises(ValueError, match=r"`weight_decay` is .* another tree"):
        co.evidence(parts, state)
    with pytest.raises(ValueError, match=r"`weight_decay` is .* another tree"):
        eg.fit(trainer, state, [parts], key=KEY)
    with pytest.raises(ValueError, match="not solved on this transcription"):
        co.evidence(level, state)
    for settings in ({"scale": 0.0}, {"center": np.nan}, {"center": [1.0, 2.0]}):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is"):
            co.Deviation(1, key=KEY, **settings)
    with pytest.raises(ValueError, match=r"`x` has shape \(1,\): pass \(2,\)"):
        co.Deviation(2, key=KEY)(jnp.ones(1))


def test_a_decay_is_the_prior_of_weights_where_outputs_have_unequal_samples():
    rng, ts = np.random.default_rng(1), np.linspace(0, 6, 121)
    ys = np.full((121, 2), np.nan)
    ys[:, 0] = np.sin(ts) + 0.02 * rng.normal(size=121)
    ys[::12, 1] = np.exp(-0.5 * ts[::12]) + 0.3 * rng.normal(size=11)
    law = lambda t, x, u, p, nets: jnp.stack([nets(t), -p["k"] * x[1]])
    network = co.GaussianProcess(ts, num_points=12, lengthscale=1.5)
    problem = co.Problem(law, (ts, ys), weight_decay=1e-4)
    level = co.transcribe(problem, intervals=12, stages=4)
    trainer = co.CollocationTrainer(tol=1e-9)
    state = trainer.init(co.Model({"k": 0.5}, network), level.guess())
    state, _ = eg.fit(trainer, state, [level], key=KEY)
    found = co.evidence(level, state)
    again = _with_precision(level, found.precision, found.noise, 0.0)
    np.testing.assert_allclose(again.problem.weight_decay, 1e-4, rtol=1e-6)
