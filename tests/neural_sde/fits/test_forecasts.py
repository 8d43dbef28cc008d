"""Held-out evidence, stacking, structures by evidence, and the recipe of all."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.stats

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.fits import recipe
from effgen.neural_sde.fits.driven import DrivenDrift
from effgen.neural_sde.fits.selection import Candidate, ranked, strongest_period
from effgen.neural_sde.fits.sensors import warn_of_own_sums
from effgen.neural_sde.fits.shares import (
    bootstrapped_shares,
    log_density,
    mixed_log_density,
    stacking_weights,
)
from effgen.neural_sde.fits.weight_prior import weight_prior
from effgen.neural_sde.modeling.networks import zero_at_first


TS = np.arange(40.0)
YS = np.cumsum(np.random.default_rng(0).normal(size=40))
KEY = jax.random.key(0)


def level_model(noise, scale=0.5):
    structure = ns.level(noise=noise)
    return dataclasses.replace(
        ns.LatentSDE(structure, structure.decoder(scale)), dt=1.0
    )


def dense_log_density(noise, scale, first, ts, ys):
    """`log p(y)` of a local level, by its dense covariance."""
    covariance = first**2 + noise**2 * np.minimum(ts[:, None], ts[None])
    covariance += scale**2 * np.eye(len(ts))
    return scipy.stats.multivariate_normal(cov=covariance).logpdf(ys)


def test_weights_maximize_what_stack_names():
    rng = np.random.default_rng(1)
    logs = rng.normal(size=(5, 7, 2))
    logs[0, :4] = np.nan
    logs[:, :, 1] += 0.7
    shares = np.array([0.7, 0.3])
    found = stacking_weights(logs, shares)

    def objective(w):
        mixed = np.log(np.exp(logs) @ np.array([w, 1 - w]))
        prior = 2 * shares @ np.log([w, 1 - w])
        return np.nansum(np.nanmean(mixed, axis=1)) + prior

    grid = np.linspace(1e-3, 1 - 1e-3, 4_001)
    best = grid[np.argmax([objective(w) for w in grid])]
    np.testing.assert_allclose(found, [best, 1 - best], atol=5e-4)
    even = np.full(4, 0.25)
    np.testing.assert_allclose(stacking_weights(np.zeros((3, 2, 4)), even), even)
    far = stacking_weights(np.array([[[0.0, -1e4]]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(far, [2 / 3, 1 / 3])  # never one alone
    lost = np.concatenate([logs, np.full((5, 7, 1), -np.inf)], axis=2)
    three = np.append(shares, 1.0) / 2
    np.testing.assert_allclose(stacking_weights(lost, three), [*found, 0], atol=1e-6)
    with pytest.raises(ValueError, match="no member's forecasts"):
        stacking_weights(lost[..., 2:], np.ones(1))


def test_a_network_has_a_prior_about_where_it_began():
    linear = ns.ou(length=2.0, scale=1.0)
    layers = zero_at_first(1, 1, 8, 2, key=KEY)
    drift = DrivenDrift(layers, jnp.ones((1, 1)), jnp.zeros(1), jnp.ones(1), (0,))
    model = ns.LatentSDE(
        linear,
        linear.decoder(0.1),
        drift=drift,
        residual=ns.residual_network(linear, key=KEY, width_size=4),
        frozen=["drift.sigma", "drift.center", "drift.scale"],
    )
    params = eqx.filter(model.trainable()[0], eqx.is_inexact_array)
    optim = weight_prior()
    state = optim.init(params)
    further = jax.tree.map(lambda x: x + 2, params)
    none = jax.tree.map(jnp.zeros_like, params)
    found = optim.update(none, state, further)[0]
    at = found.drift.layers.layers
    np.testing.assert_allclose(at[0].weight, 2.0, rtol=1e-5)
    np.testing.assert_allclose(at[-1].weight, 2 * 8 / 4, rtol=1e-5)
    np.testing.assert_allclose(found.linear.parts[0].log_length, 2 / 1.5**2, rtol=1e-5)
    np.testing.assert_allclose(found.decoder.log_scale, 2 / 1.5**2, rtol=1e-5)
    assert all(np.all(x == 0) for x in jax.tree.leaves(found.residual))


def test_shares_follow_the_evidence_of_blocks():
    even = np.array([0.5, 0.5])
    alike = bootstrapped_shares(np.full((6, 2), -30.0), np.array([0.7, 0.3]))
    np.testing.assert_allclose(alike, [0.7, 0.3])
    behind = np.stack([np.zeros(6), np.full(6, -2.0)], axis=1)
    np.testing.assert_allclose(bootstrapped_shares(behind, even)[1], 0.01, rtol=0.02)
    one = bootstrapped_shares(np.array([[0.0, 1.0]]), even)
    np.testing.assert_allclose(one[1], 1 / (1 + np.exp(-1)))
    # Two of six blocks say the contrary: less is sure than by the sum of all.
    mixed = np.stack([np.zeros(6), np.array([2.0, 2, 2, 2, -1, -1])], axis=1)
    assert 0.9 < bootstrapped_shares(mixed, even)[1] < 1 / (1 + np.exp(-6))
    lost = np.array([[0.0, -1e6], [0.0, 0.0]])
    assert bootstrapped_shares(lost, even)[1] < 0.011


def test_structures_far_behind_are_left_out_and_shares_are_of_evidence():
    found = [
        Candidate(structure, SimpleNamespace(model=level_model(1.0)), criterion)
        for structure, criterion in (
            (ns.cycle(9.0) + ns.ou(), -10.0),
            (ns.level(), -11.0),
            (ns.ou(), -15.5),
        )
    ]
    kept = recipe.supported(found)
    assert [c.criterion for c in kept] == [-10.0, -11.0]
    shares = recipe.shares_of(kept)
    assert list(shares) == ["cycle + matern", "level", "network"]
    np.testing.assert_allclose(
        list(shares.values()), [0.5 / (1 + np.exp(-1)), 0.5 / (1 + np.e), 0.5]
    )
    assert recipe.shares_of(found[1:2]) == {"level": 1.0}


@pytest.mark.slow
def test_a_density_from_draws_is_that_of_their_law():
    draws = 3 + 2 * np.random.default_rng(2).normal(size=(4_000, 3))
    ys = np.array([3.0, 5.0, 0.0])
    exact = scipy.stats.norm(3, 2).logpdf(ys)
    np.testing.assert_allclose(log_density(draws, ys, 0.0), exact, atol=0.1)
    far = log_density(draws, np.full(3, 33.0), 0.0)
    assert np.all(far > -50)  # and not the exact -114
    grid = np.linspace(-40, 46, 8_000)[:, None]
    mass = np.trapezoid(
        np.exp(log_density(draws[:, None, :1], grid, 0.0)[:, 0]), grid[:, 0]
    )
    np.testing.assert_allclose(mass, 1, atol=1e-3)


def test_held_out_evidence_is_the_density_of_what_came_later():
    model = level_model(0.9)
    first = float(model.linear.initial.root[0, 0])
    ys = YS - YS.mean()
    whole = dense_log_density(0.9, 0.5, first, TS, ys)
    before = dense_log_density(0.9, 0.5, first, TS[:30], ys[:30])
    found = ns.held_out_evidence(model, TS, ys, since=30.0, key=KEY)
    np.testing.assert_allclose(found.value, whole - before, rtol=1e-4)
    assert found.standard_error == 0
    for since in (-1.0, 40.0):
        with pytest.raises(ValueError, match="`since` is"):
            ns.held_out_evidence(model, TS, ys, since=since, key=KEY)
    days = TS.astype("datetime64[D]")
    with pytest.raises(ValueError, match="`ts` must be numbers"):
        ns.held_out_evidence(model, days, ys, since=30.0, key=KEY)


def pulled(bias, input_matrix=None, decoder=None):
    law = ns.Gaussian.independent(np.zeros(1), 1.0)
    linear = ns.DiagonalSDE(0.1, bias, 1.0, law, input_matrix=input_matrix)
    decoder = decoder or ns.LinearDecoder([[1.0], [2.0]], 0.5)
    return ns.LatentSDE(linear, decoder, dt=1.0)


TWO = np.stack([YS[:8], 2 * YS[:8] + 0.1], axis=1)


def test_held_out_evidence_takes_inputs():
    settings = {"since": 5.0, "key": KEY}
    right = ns.held_out_evidence(pulled(0.6), TS[:8], TWO, **settings)
    forced, inputs = pulled(0.0, [[0.3]]), np.full((8, 1), 2.0)
    found = ns.held_out_evidence(forced, TS[:8], TWO, None, inputs, **settings)
    np.testing.assert_allclose(found.value, right.value, rtol=1e-4)


@pytest.mark.slow
def test_held_out_values_may_be_images():
    settings = {"since": 5.0, "key": KEY, "num_paths": 20}
    right = ns.held_out_evidence(pulled(0.6), TS[:8], TWO, **settings)
    image = ns.Decoder(lambda x: jnp.stack([x, 2 * x]), ns.Normal(0.5))
    shaped = pulled(0.6, decoder=image)
    found = ns.held_out_evidence(shaped, TS[:8], TWO[..., None], **settings)
    np.testing.assert_allclose(found.value, right.value, rtol=1e-3)


def test_a_stack_weighs_by_what_was_foretold():
    seen = []

    def fit(ts, ys, mask, key):
        seen.append(np.isfinite(ys[:, 0]))
        return {"right": level_model(1.0), "wide": [level_model(8.0)] * 2}

    found = ns.stack(fit, TS, YS, horizon=4, num_origins=3, key=KEY, num_paths=200)
    assert isinstance(found, ns.Stack)
    assert seen[0].sum() == 28  # all but three horizons
    assert seen[1].all()
    assert found.weights["right"] > 0.6
    np.testing.assert_allclose(sum(found.weights.values()), 1)
    assert found.held_out["right"].value > found.held_out["wide"].value
    exact = ns.held_out_evidence(level_model(1.0), TS, YS, since=28.0, key=KEY)
    np.testing.assert_allclose(found.held_out["right"].value, exact.value, rtol=1e-4)
    bands = found.forecast([40.0, 41.0], key=KEY, num_paths=200)
    assert bands.samples.shape == (200, 2, 1)
    assert np.all(np.diff(bands.quantiles, axis=0) > 0)
    spread = np.asarray(bands.samples.std(0))
    assert np.all((1 < spread) & (spread < 9))
    with pytest.raises(ValueError, match="`horizon` is 21"):
        ns.stack(fit, TS, YS, horizon=21, key=KEY)
    with pytest.raises(ValueError, match="pass one series"):
        ns.stack(fit, TS, YS[:5], horizon=2, key=KEY)
    with pytest.raises(ValueError, match="`shares` are"):
        ns.stack(fit, TS, YS, horizon=4, key=KEY, shares={"right": 1.0})
    with pytest.raises(TypeError, match="models by name"):
        ns.stack(lambda *_: level_model(1.0), TS, YS, horizon=4, key=KEY)


def test_a_stack_of_dates_forecasts_on_the_frame_s_index():
    days = pd.date_range(
        "2024-03-01", periods=40, freq="D", name="day", tz="Europe/Rome"
    )
    frame = pd.DataFrame({"flow": YS}, index=days)
    settings = {"horizon": 4, "num_origins": 2, "key": KEY, "num_paths": 50}
    seen = []

    def fit(ts, ys, mask, key):
        seen.append(ts)
        return {"right": level_model(1.0)}

    found = ns.stack(fit, frame.index, frame, unit="D", **settings)
    np.testing.assert_allclose(np.diff(seen[0])[[0, 20]], 1)
    later = pd.date_range(
        "2024-04-10", periods=2, freq="D", name="day", tz="Europe/Rome"
    )
    bands = found.forecast(later, key=KEY, num_paths=50)
    table = bands.to_pandas()
    assert table.index.equals(later)
    right = ns.stack(fit, seen[0], YS, **settings).forecast(
        seen[0][-1] + np.array([1.0, 2.0]), key=KEY, num_paths=50
    )
    np.testing.assert_allclose(bands.mean, right.mean, rtol=1e-4)
    np.testing.assert_allclose(table["mean"], right.mean[:, 0], rtol=1e-4)
    with pytest.raises(TypeError, match="the record has dates"):
        found.forecast([41.0], key=KEY)


def test_the_strongest_period_is_found_beside_a_season():
    ts = np.arange(240) / 12
    rng = np.random.default_rng(3)
    ys = np.sin(2 * np.pi * ts / 4) + 3 * np.cos(2 * np.pi * ts) + 0.2 * ts
    ys += 0.3 * rng.normal(size=240)
    ys[50:60] = np.nan
    assert strongest_period(ts, ys, season_period=1.0) == pytest.approx(4, rel=0.06)
    structures = ns.candidates(ts, ys, season_period=1.0)
    assert all(structure.names[-1] == "season" for structure in structures)
    assert ns.candidates(TS, YS)[0].names == ("level",)


def test_a_hole_of_years_does_not_hide_the_strongest_period():
    ts = np.where(TS < 20, TS, TS + 1e7)
    ys = np.sin(2 * np.pi * TS / 8) + 0.1 * np.random.default_rng(5).normal(size=40)
    assert strongest_period(ts, ys) == pytest.approx(8, rel=0.06)


def test_the_strongest_period_is_of_what_is_there():
    rng = np.random.default_rng(4)
    turn = np.sin(2 * np.pi * TS / 8)[:, None]
    ys = np.array([100.0, -50.0]) + turn + 0.1 * rng.normal(size=(40, 2))
    ys[rng.uniform(size=ys.shape) < 0.3] = np.nan
    assert strongest_period(TS, ys) == pytest.approx(8, rel=0.06)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_of_the_docs_runs():
    page = Path(__file__).parents[3] / "docs" / "neural_sde.md"
    block = page.read_text().split("```py\n")[1].split("```")[0]
    names = {}
    exec(block, names)
    assert set(names["found"].weights) == {"cycle", "network"}
    assert np.all(np.isfinite(names["bands"].quantiles))


def test_structures_without_a_mean_have_no_network():
    kinds = [ns.level(), ns.level()]
    found = recipe.members(TS, YS, None, KEY, structures=kinds, dt=1.0, num_steps=1)
    assert list(found) == ["level", "level (2)"]
    assert [model.dt for model in found["level"]] == [1.0] * 16
    noises = [float(model.linear.parameters["level.noise"]) for model in found["level"]]
    offsets = [float(model.decoder.offset[0]) for model in found["level"]]
    assert 0.05 < np.std(np.log(noises)) < 1
    assert np.std(offsets) > 0.5 * YS.std()
    assert recipe.step_length(TS / 12) >= 1 / 12
    forced = ns.Structure(ns.level().parts, input_matrix=[[1.0]])
    with pytest.raises(ValueError, match="forecasters take no inputs"):
        ns.forecaster(TS, YS, horizon=3, key=KEY, structures=[forced])
    with pytest.raises(ValueError, match="`ts` must be numbers"):
        ns.candidates(TS.astype("datetime64[D]"), YS)
    with pytest.raises(ValueError, match="`horizon` is 30"):
        ns.forecaster(TS, YS, horizon=30, key=KEY)


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"key": 0}, TypeError, "`key` is 0"),
        ({"num_steps": 0}, ValueError, "`num_steps` is 0"),
        ({"structures": []}, ValueError, "`structures` are empty"),
        ({"structures": ns.level()}, TypeError, "`structures` must be a list"),
        ({"horizon": True}, ValueError, "`horizon` is True"),
        ({"season_period": 1.0}, ValueError, "`season_period` is 1, and times"),
        ({"season_period": -3.0}, ValueError, r"`season_period` is -3\.0"),
        (
            {"season_period": 4.0, "structures": [ns.level()]},
            ValueError,
            "`season_period` is for the structures",
        ),
        ({"mask": np.ones((1, 40))}, ValueError, "`mask` has shape"),
        ({"mask": np.full(40, 0.5)}, ValueError, "neither 0 nor 1"),
        ({"ts": TS[::-1]}, ValueError, "sort each series"),
        ({"ts": np.where(TS == 4, np.nan, TS)}, ValueError, "times must be finite"),
        ({"ys": YS.astype(str)}, TypeError, "`ys`"),
        ({"ys": np.where(TS < 38, np.nan, YS)}, ValueError, "fewer than three times"),
        ({"ts": TS[:3], "ys": YS[:3], "horizon": 1}, ValueError, "fewer than three"),
        ({"ts": np.zeros(40), "structures": [ns.ou()]}, ValueError, "fewer than three"),
        ({"ys": np.full(40, 3.0)}, ValueError, "does not vary in column 0 before 22"),
        ({"ys": np.maximum(TS - 30, 0)}, ValueError, "does not vary in column 0"),
        (
            {"ys": np.stack([YS, np.where(TS < 25, np.nan, YS)], axis=1)},
            ValueError,
            "does not vary in column 1",
        ),
        ({"ys": 1e8 + YS}, ValueError, "float32 rounds: subtract the mean"),
        (
            {"ts": np.concatenate([20240101 + np.arange(25), 20240201 + TS[:15]])},
            ValueError,
            "dates written as whole numbers, such as 20240101",
        ),
    ],
)
def test_what_is_no_record_is_refused_before_any_fit(changed, error, named):
    given = {"ts": TS, "ys": YS, "horizon": 3, "key": KEY} | changed
    with pytest.raises(error, match=named):
        ns.forecaster(**given)


def losses(unit, key, *, controlled):
    """Return the losses of a network's training on times in a unit."""
    ts, ys = unit * np.arange(24.0), np.sin(np.arange(24.0)) ** 3
    linear = ns.ou(length=2.0 * unit, scale=1.0)
    base = ns.LatentSDE(linear, linear.decoder(0.2), dt=unit)
    model = ns.with_network(base, ts, ys, key=key, width_size=8, depth=1)
    if not controlled:
        model = dataclasses.replace(model, residual=None)
    optim = optax.chain(weight_prior(), optax.adam(5e-3))
    trainer = ns.LatentSDETrainer(optim, unit, num_paths=8)
    data = eg.Minibatches((ts[None].astype(np.float32), ys[None]), 1)
    history = eg.fit(trainer, trainer.init(model), data, key=key, num_steps=30)[1]
    return history["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-5, 86_400.0])
def test_a_network_trains_alike_in_any_unit_of_time(unit):
    one = losses(1.0, KEY, controlled=False)
    assert one[-1] < one[0] - 0.5
    np.testing.assert_allclose(losses(unit, KEY, controlled=False), one, atol=0.02)
    with_control = losses(1.0, KEY, controlled=True)
    found = losses(unit, KEY, controlled=True)
    assert abs(np.mean(found[-10:]) - np.mean(with_control[-10:])) < 0.5


def test_wrong_arguments_are_named():
    model = level_model(1.0)
    with pytest.raises(TypeError, match="`fit` is a LatentSDE"):
        ns.stack(model, TS, YS, horizon=3, key=KEY)
    with pytest.raises(TypeError, match="`model` is a ndarray"):
        ns.held_out_evidence(TS, YS, model, since=3.0, key=KEY)
    with pytest.raises(TypeError, match="`since` is None"):
        ns.held_out_evidence(model, TS, YS, since=None, key=KEY)
    with pytest.raises(TypeError, match="`model` is a Structure"):
        ns.sample_prior(ns.level(), TS, 3, key=KEY)
    with pytest.raises(ValueError, match="`dt` is '1'"):
        ns.posterior(model, TS, YS, dt="1")
    with pytest.raises(TypeError, match="`ys` have dtype <U"):
        ns.posterior(model, TS, YS.astype(str))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        ns.posterior(model, TS, YS, np.full(40, 0.5))
    with pytest.raises(ValueError, match="no value in column 1"):
        ns.structural(ns.level(), TS, np.stack([YS, np.nan * YS], axis=1))


def test_a_linear_forecast_takes_one_step_however_far():
    found = ns.posterior(level_model(1.0), TS, YS).forecast(
        [1e6], key=KEY, num_paths=20, levels=(0.5, 0.8413447)
    )
    np.testing.assert_allclose(np.diff(found.quantiles[:, 0, 0]), 1e3, rtol=1e-3)


def test_probabilities_of_whole_numbers_sum_to_one():
    """Of counts, most of them zero, and of normal laws, narrow and wide."""
    ys = np.arange(-40.0, 41.0)
    rng = np.random.default_rng(0)
    for draws in (np.zeros(500), rng.poisson(0.3, 500), rng.poisson(9, 500)):
        same = np.broadcast_to(draws[:, None], (500, 81)).astype(float)
        assert abs(np.exp(log_density(same, ys, 1.0)).sum() - 1) < 0.01
    for scale in (1e-3, 0.4, 7.0):
        laws = [np.full((1, 81), x) for x in (1.2, scale**2)]
        assert abs(np.exp(mixed_log_density(*laws, ys, 1.0)).sum() - 1) < 0.01
    wide = mixed_log_density(np.zeros((1, 3)), np.full((1, 3), 1e10), ys[:3], 1.0)
    exact = mixed_log_density(np.zeros((1, 3)), np.full((1, 3), 1e10), ys[:3], 0.0)
    np.testing.assert_allclose(wide, exact, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.03, 0.002])
def test_counts_are_stacked_by_their_probabilities(rate):
    """A rival whose draws are all zero had a density without bound at each zero."""

    def model(rate):
        law = ns.Gaussian.independent(np.zeros(1), 0.01)
        decoder = ns.Decoder(ns.Readout([[1.0]], np.log(rate)), ns.Poisson())
        return ns.LatentSDE(ns.DiagonalSDE(1.0, 0.0, 0.01, law), decoder, dt=1.0)

    ys = np.random.default_rng(1).poisson(0.3, 60).astype(float)
    members = lambda *record: {"right": model(0.3), "rival": model(rate)}
    found = ns.stack(members, np.arange(60.0), ys, horizon=5, key=KEY)
    assert found.weights["right"] > 0.98


def test_sensors_with_sums_of_their_own_are_told():
    rng, ts = np.random.default_rng(0), np.arange(48.0)
    walks = np.cumsum(rng.normal(size=(48, 2)), axis=0)
    read = walks[:, :1] + 0.3 * rng.normal(size=(48, 2))
    best = lambda ys: ranked([ns.level()], ts, ys)[0]
    with pytest.warns(eg.RunWarning, match="2 columns of `ys` are no readings of one"):
        warn_of_own_sums(best(walks), ts, walks)
    warn_of_own_sums(best(read), ts, read)
