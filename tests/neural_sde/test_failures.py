"""Bad series and bad models: named before any compute, or stopped midway."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import effgen as eg
from effgen import neural_sde as ns
from effgen.neural_sde.filters import cautions
from tests.neural_sde.cases import double_well


KEY = jax.random.key(0)
LAW = ns.Gaussian.independent(np.zeros(2), 1.0)


def series(num=4, length=5):
    ts = np.tile(np.arange(1.0, length + 1) / 5, (num, 1))
    return ts, np.zeros((num, length, 1)), np.ones((num, length), bool)


# One for all, so that they share programs.
OPTIM = optax.adam(1e-3)


def train(batch, model=None, **settings):
    trainer = ns.LatentSDETrainer(OPTIM, **({"dt": 0.1, "num_paths": 2} | settings))
    state = trainer.init(double_well() if model is None else model)
    data = eg.Minibatches(batch, 2)
    return eg.fit(trainer, state, data, key=KEY, num_steps=2)


def changed(index, value, part=0):
    parts = [np.array(x) for x in series()]
    parts[part] = parts[part].astype(float)
    parts[part][index] = value
    return tuple(parts)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (changed((2, 3), np.nan), r"`ts` is nan in series 2 at index 3: times must be"),
        (changed((1, 2), 0.1), r"`ts` is 0.1\d* in series 1 at index 2: sort"),
        (changed((0, 0), -1.0), r"`ts` is -1.0 in series 0 at index 0: no time may be"),
        (changed((3, 1, 0), np.inf, 1), r"`ys` is infinite at \(3, 1, 0\)"),
        ((series()[0], np.zeros((4, 6, 1))), r"`ys` has shape .* leading axes"),
        ((series()[0], np.zeros((4, 5, 2))), r"`ys` has \(2,\) a time; the decoder"),
        ((series()[0], np.zeros((4, 5, 1)), np.ones((4, 5, 3))), r"`mask` has shape"),
        ((np.zeros(4), np.zeros(4)), r"`ts` has shape \(2,\): pass \(series, obs\)"),
    ],
)
def test_bad_series_are_named_before_any_compute(batch, message):
    with pytest.raises(ValueError, match=message):
        train(batch)


def test_a_batch_that_is_no_series():
    with pytest.raises(TypeError, match="series must be"):
        train(np.zeros((4, 5)))


def test_inputs_must_be_there_where_they_are_used():
    linear = ns.DiagonalSDE(
        1.0, 0.0, 0.7, ns.Gaussian.independent(np.zeros(1), 1.0), input_matrix=[[1.0]]
    )
    model = dataclasses.replace(double_well(drift=None), linear=linear)
    with pytest.raises(ValueError, match="has an `input_matrix` and the series no"):
        train(series(), model)
    with pytest.raises(ValueError, match="series have 2 inputs"):
        train((*series(), np.zeros((4, 5, 2))), model)


@pytest.mark.slow
def test_a_stream_s_bad_times_stop_the_run():
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.1, num_paths=2, max_steps=16)
    state = trainer.init(double_well())
    good = tuple(jnp.asarray(x) for x in series(2))
    bad = tuple(jnp.asarray(x[:2]) for x in changed((1, 2), 0.1))
    with pytest.raises(eg.TrainingError, match="times that are not in order") as error:
        eg.fit(trainer, state, [good, bad], key=KEY)
    assert int(error.value.state.step) == 1


@pytest.mark.slow
def test_times_said_to_be_shared_that_are_not_stop_the_run():
    with pytest.raises(eg.TrainingError, match="`shared_times`"):
        train(changed((1, 2), 0.55), shared_times=True)


def test_too_few_steps_are_named():
    with pytest.raises(ValueError, match="`max_steps` is 4 and the longest"):
        train(series(), max_steps=4)
    # The same program as for bad times above.
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.1, num_paths=2, max_steps=16)
    state = trainer.init(double_well())
    ts, *rest = (jnp.asarray(x) for x in series(2))
    batch = (10 * ts, *rest)
    with pytest.raises(eg.TrainingError, match="more steps than `max_steps`"):
        eg.fit(trainer, state, iter([batch]), key=KEY)


@pytest.mark.slow
def test_a_drift_that_leaves_the_reals_stops_the_run():
    explosive = double_well(drift=lambda t, x: jnp.exp(10 * (1 + x) ** 4 - 1000))
    with pytest.raises(eg.TrainingError, match="non-finite"):
        train(changed((0, 2, 0), 60.0, 1), explosive)


def test_drifts_that_cannot_be():
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.1)
    for drift, message in (
        (lambda t, x: x / 0.0, "`drift` is not finite"),
        (lambda t, x: jnp.zeros(3), r"`drift` returns shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.init(double_well(drift=drift))
    with pytest.raises(TypeError, match="could not be called as `drift"):
        trainer.init(double_well(drift=lambda x: x))


def test_functions_of_a_model_have_its_shapes():
    linear = ns.DiagonalSDE(1.0, 0.0, 1.0, LAW)
    make = lambda **parts: ns.LatentSDE(
        linear, ns.LinearDecoder(np.eye(2), 0.1), dt=1.0, **parts
    )
    times = np.arange(2.0)
    for model, said in (
        (make(drift=lambda t, x: x[:1]), r"`drift` returns shape \(1,\): .* \(2,\)"),
        (make(diffusion=lambda t, x: x[0]), r"`diffusion` returns shape \(\)"),
        (make(diffusion=lambda t, x: x[:, None]), r"shape \(2, 1\).* or \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            ns.sample_prior(model, times, 2, key=KEY)
    # One number would move both variables, and its cost be counted once.
    model = make(drift=lambda t, x: -x, residual=lambda z: z[:1])
    with pytest.raises(ValueError, match=r"`residual` returns .* 2 normal variables"):
        ns.posterior(model, times, np.zeros((2, 2))).evidence(key=KEY, num_paths=2)


def test_without_simulation_the_noise_must_drive_all_states():
    linear = ns.LinearSDE(np.zeros((2, 2)), np.zeros(2), [[0.0], [1.0]], LAW)
    model = ns.LatentSDE(linear, ns.LinearDecoder([[1.0, 0.0]], 0.1), lambda t, x: -x)
    with pytest.raises(ValueError, match="use `AnchoredELBO`"):
        train(series(), model, objective=ns.MarginalELBO())
    other = ns.GivenAnchor(-np.eye(2), np.zeros(2))
    model = dataclasses.replace(model, drift=None, anchor=other)
    with pytest.raises(ValueError, match="use `AnchoredELBO`"):
        train(series(), model, objective=ns.MarginalELBO())


def test_bounds_refuse_what_they_do_not_see():
    noisy = double_well(diffusion=lambda t, x: 0.1 + jnp.abs(x))
    with pytest.raises(ValueError, match="does not see the model's `diffusion`"):
        train(series(), noisy, objective=ns.MarginalELBO())
    linear = ns.LinearSDE(np.zeros((2, 2)), np.zeros(2), [[0.0], [1.0]], LAW)
    model = ns.LatentSDE(
        linear,
        ns.LinearDecoder([[1.0, 0.0]], 0.1),
        residual=ns.residual_network(linear, key=KEY),
        control=ns.PlainControl(2, 1, key=KEY),
    )
    for objective, said in (
        (ns.MarginalELBO(), "does not see the model's `residual`"),
        (ns.PathELBO(), r"`residual` returns shape \(2,\) and .* 1 columns"),
    ):
        with pytest.raises(ValueError, match=said):
            train(series(), model, objective=objective)
    wide = dataclasses.replace(model, residual=None)
    for objective in (ns.PlainELBO(), ns.DiffraxELBO()):
        with pytest.raises(ValueError, match=r"2 numbers .* num_brownian=1"):
            train(series(), wide, objective=objective)
    whole = dataclasses.replace(
        model, control=ns.PlainControl(2, 1, key=KEY, num_brownian=1)
    )
    for objective in (ns.PlainELBO(), ns.DiffraxELBO()):
        with pytest.raises(ValueError, match="does not see the model's `residual`"):
            train(series(), whole, objective=objective)


def test_without_simulation_noise_that_varies_must_drive_all_states_at_all_times():
    def model(evaluate):
        linear = ns.VaryingSDE(evaluate, LAW)
        decoder = ns.LinearDecoder([[1.0, 0.0]], 0.1)
        return ns.LatentSDE(linear, decoder, lambda t, x: -x)

    one = lambda t: (-jnp.eye(2), jnp.zeros(2), jnp.diag(jnp.array([1.0, 0.0])))
    late = lambda t: (
        -jnp.eye(2),
        jnp.zeros(2),
        jnp.diag(jnp.stack([1.0, jnp.where(t > 0.5, 0.0, 1.0)])),
    )
    for evaluate in (one, late):
        with pytest.raises(ValueError, match="use `AnchoredELBO`"):
            train(series(), model(evaluate), objective=ns.MarginalELBO())


def fractional(scale=1.0, **settings):
    settings = {"hurst": 0.7, "horizon": 1.0} | settings
    return ns.FractionalSDE(-np.eye(2), 0.0, scale, LAW, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ns.DiagonalSDE(1.0, 0.0, 0.0, LAW), "`scale` is .* positive"),
        (lambda: ns.DiagonalSDE(np.ones(3), 0.0, 1.0, LAW), "`rates` has shape"),
        (
            lambda: ns.DiagonalSDE(1.0, 0.0, 1.0, LAW, input_matrix=np.ones((3, 1))),
            r"`input_matrix` has shape \(3, 1\): pass \(2, inputs\)",
        ),
        (
            lambda: ns.DiagonalSDE(1.0, 0.0, 1.0, LAW, input_matrix=np.ones(2)),
            "`input_matrix` has shape",
        ),
        (
            lambda: ns.LinearSDE(
                np.eye(2), np.zeros(2), np.eye(2), LAW, input_matrix=[[1.0], [np.nan]]
            ),
            "`input_matrix` is not finite",
        ),
        (
            lambda: ns.VaryingSDE(
                lambda t: (np.eye(2), np.zeros(2), np.eye(2)),
                LAW,
                input_matrix=np.ones((1, 2)),
            ),
            "`input_matrix` has shape",
        ),
        (
            lambda: ns.Structure(ns.level().parts, input_matrix=np.ones((2, 1))),
            r"`input_matrix` has shape .* pass \(1, inputs\)",
        ),
        (
            lambda: (
                ns.Structure(ns.level().parts, input_matrix=np.ones((1, 1)))
                + ns.Structure(ns.ou().parts, input_matrix=np.ones((1, 2)))
            ),
            r"`input_matrix` of \[1, 2\] columns",
        ),
        (lambda: fractional(scale=-1.0), "`scale` is .* positive"),
        (lambda: fractional(input_matrix=np.ones((12, 1))), "`input_matrix` has"),
        (lambda: fractional(horizon=0.0), "`horizon` is"),
        (lambda: fractional(num_processes=0), "`num_processes` is 0"),
        (lambda: fractional(largest_speed=0.5), "`largest_speed` is"),
        (
            lambda: ns.LinearSDE(np.eye(2), np.zeros(2), np.ones((2, 2)), LAW),
            "`diffusion` is square and singular",
        ),
        (
            lambda: ns.LinearSDE(np.eye(3), np.zeros(2), np.eye(2), LAW),
            "`matrix` has shape",
        ),
        (
            lambda: ns.LinearSDE(np.eye(2), np.zeros(2), np.ones((2, 3)), LAW),
            "`diffusion` has shape",
        ),
        (lambda: ns.Gaussian(np.zeros(2), np.zeros(2)), "`mean` has shape"),
        (lambda: ns.LinearDecoder(np.eye(2), 0.0), "`scale` is"),
        (lambda: ns.LinearDecoder(np.ones(2), 1.0), "`matrix` has shape"),
        (lambda: ns.LinearDecoder(np.eye(2), np.ones(3)), "`scale` has shape"),
        (lambda: ns.GivenAnchor(np.eye(2), np.zeros(3)), "`matrix` has shape"),
        (lambda: ns.MarginalELBO(0), "`num_times` is 0"),
        (lambda: ns.LinearizedSites(0), "`num_sweeps` is 0"),
        (lambda: ns.RelinearizedAnchor(0), "`num_sweeps` is 0"),
        (lambda: ns.EncodedSites(lambda y: y, most=0.0), r"`most` is 0\.0"),
        (lambda: ns.Normal(-1.0), "`scale` is"),
        (lambda: ns.LatentSDETrainer(optax.sgd(1.0), dt=-1.0), "`dt` is -1.0"),
        (lambda: ns.LatentSDETrainer(optax.sgd(1.0), dt=1.0, num_paths=0), "num_paths"),
        (lambda: double_well(frozen=("linera",)), "`frozen` names"),
        (lambda: double_well(message_dtype=jnp.int32), "`message_dtype` is int32"),
        (lambda: double_well(t0=np.nan), "`t0` is nan"),
        (lambda: double_well(message_dtype=jnp.float64), "`message_dtype` is float64"),
        (lambda: ns.pad_series([]), "`series` is empty"),
        (lambda: ns.pad_series([(np.zeros(2), np.zeros(3))]), "series 0 has lengths"),
    ],
)
def test_bad_settings_name_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_of_the_prior_are_not_left_out():
    linear = ns.DiagonalSDE(1.0, 0.0, 1.0, LAW, input_matrix=np.ones((2, 1)))
    model = ns.LatentSDE(linear, ns.LinearDecoder(np.eye(2), 0.1))
    times = np.arange(3.0)
    with pytest.raises(ValueError, match="`inputs` are not given"):
        ns.sample_prior(model, times, 2, key=KEY)
    with pytest.raises(TypeError, match="`inputs` is a ndarray"):
        ns.sample_prior(model, times, 2, key=KEY, inputs=np.ones((3, 1)))
    path = diffrax.LinearInterpolation(jnp.arange(3.0), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="no part of the model sees them"):
        ns.sample_prior(double_well(), times, 2, key=KEY, inputs=path)


def test_paths_and_shares_are_named_by_their_arguments():
    found = ns.posterior(double_well(), np.arange(1.0, 4.0), np.zeros(3), dt=0.1)
    with pytest.raises(ValueError, match="`num` is 0"):
        found.paths(0, key=KEY)
    for run in (found.filter, found.smoother):
        with pytest.raises(ValueError, match=r"`resample_below` is 50"):
            run(key=KEY, num_paths=2, resample_below=50)
    model = dataclasses.replace(double_well(), dt=0.1)
    for ts in ([2.0, 1.0], [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="`ts` must be finite, sorted"):
            ns.plain_paths(
                model, (np.arange(1.0, 4.0), np.zeros(3)), ts, num=2, key=KEY
            )
    with pytest.raises(TypeError, match="`key` is 0"):
        ns.plain_paths(model, (np.arange(3.0), np.zeros(3)), [1.0], num=2, key=0)


def test_names_of_what_is_fixed_may_be_a_list():
    model = double_well(frozen=["linear"])
    assert model.frozen == ("linear",)
    assert hash(model.frozen)


def test_answers_of_too_many_steps_are_named_before_any_compute():
    found = ns.posterior(double_well(), np.arange(1.0, 4.0), np.zeros(3), dt=0.1)
    with pytest.raises(
        ValueError, match=r"steps of `dt` 0\.1 .* more than can be held"
    ):
        found.forecast([1e9], key=KEY)
    with pytest.warns(eg.RunWarning, match="nearer `times`"):
        cautions.of_many_steps(0.1, 10**7, 1_000, 1)
    cautions.of_many_steps(0.1, 10**5, 1_000, 1)


def test_a_record_that_does_not_vary_is_named():
    ys = np.stack([np.arange(6.0), np.full(6, 0.3)], axis=1)
    ys[2, 1] = np.nan
    structure = ns.level(noise=0.5)
    model = ns.LatentSDE(structure, structure.decoder([0.3, 0.3], loadings=[1.0, 1.0]))
    # Warnings are errors here: nothing is compiled.
    with pytest.raises(eg.RunWarning, match="`ys` does not vary in time in column 1"):
        ns.fit_linear(model, np.arange(6.0), ys)
    levels = np.array([0.3, 1e9])[:, None] * np.ones((2, 6))
    with pytest.raises(eg.RunWarning, match="does not vary in time in column 0"):
        cautions.of_constants(levels[..., None], np.ones((2, 6, 1), bool))
    cautions.of_constants(levels[:, :1, None], np.ones((2, 1, 1), bool))
    levels[0, 0] = 0.4
    cautions.of_constants(levels[..., None], np.ones((2, 6, 1), bool))


def test_a_state_of_another_step_is_refused():
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.1)
    state = trainer.init(double_well())
    other = ns.LatentSDETrainer(OPTIM, dt=0.2)
    with pytest.raises(ValueError, match=r"trainer.init\(model\)"):
        eg.fit(other, state, eg.Minibatches(series(), 2), key=KEY, num_steps=1)


@pytest.mark.slow
def test_what_is_frozen_stays():
    model = double_well(frozen=("linear",))
    state, _ = train(series(), model)
    for a, b in zip(
        jax.tree.leaves(state.model.linear), jax.tree.leaves(model.linear), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(state.model.decoder.log_scale, model.decoder.log_scale)


@pytest.mark.slow
def test_a_batch_without_a_single_observation_has_a_bound_of_zero():
    ts, ys, mask = series()
    model = double_well(frozen=("linear",))  # the program of what is frozen
    _, history = train((ts, ys, np.zeros_like(mask)), model)
    np.testing.assert_allclose(history["elbo"], 0, atol=1e-6)


def test_steps_are_found_from_the_data():
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.01)
    data = eg.Minibatches(series(), 2)
    assert trainer.for_data(trainer.init(double_well()), data).max_steps == 104


@pytest.mark.slow
def test_a_replay_finds_the_steps_from_the_data():
    trainer = ns.LatentSDETrainer(OPTIM, dt=0.5, num_paths=2)
    state, data = trainer.init(double_well()), eg.Minibatches(series(length=2), 2)
    _, history = eg.fit(trainer, state, data, key=KEY, num_steps=1)
    _, metrics = eg.replay(trainer, state, data, key=KEY)
    np.testing.assert_allclose(metrics["elbo"], history["elbo"][0], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ns.Gaussian.independent(np.zeros(1), -1.0), "no standard deviation"),
        (lambda: ns.Gaussian(np.array([np.nan]), np.eye(1)), "`mean` is not finite"),
        (lambda: ns.LinearDecoder([[np.nan]], 1.0), "`matrix` is not finite"),
        (
            lambda: ns.LinearSDE(
                [[np.inf]], [0.0], [[1.0]], ns.Gaussian.independent(np.zeros(1), 1.0)
            ),
            "`matrix` is not finite",
        ),
        (
            lambda: ns.DiagonalSDE(
                np.nan, 0.0, 1.0, ns.Gaussian.independent(np.zeros(1), 1.0)
            ),
            "`rates` is not finite",
        ),
        (lambda: ns.season(1.0, 1.5), r"`harmonics` is 1\.5"),  # pyright: ignore
        (lambda: ns.cycle("9"), "`period` of `cycle`"),  # pyright: ignore
        (lambda: ns.merge_sensors([(np.array([0, np.nan]), np.ones(2))]), "not finite"),
        (
            lambda: ns.structural(ns.level(), np.array([0.0, 2, 1]), np.arange(3.0)),
            "sort each series",
        ),
        (
            lambda: ns.structural(ns.level(), np.arange(4.0), np.arange(3.0)),
            "must be the same",
        ),
        (
            lambda: ns.sample_prior(double_well(), np.arange(3.0), 2, key=KEY, dt=0.0),
            "positive length",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_compute(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_arguments_of_answers_are_refused_by_name():
    found = ns.posterior(double_well(), np.arange(1.0, 4.0), np.zeros(3), dt=0.1)
    for settings, error, said in (
        ({"key": None}, TypeError, "`key` is None"),
        ({"key": KEY, "num_paths": 0}, ValueError, "`num_paths` is 0"),
        ({"key": KEY, "num_paths": 1.5}, ValueError, r"`num_paths` is 1\.5"),
        ({"key": KEY, "levels": 0.9}, TypeError, "pass a tuple"),
    ):
        with pytest.raises(error, match=said):
            found.forecast([4.0], **settings)
    with pytest.raises(TypeError, match="`ys` have dtype complex"):
        ns.posterior(double_well(), np.arange(3.0), np.zeros(3) + 0j)
    short = np.float32(19_700 + np.arange(4) / 24)
    with pytest.warns(eg.RunWarning, match="gaps are rounded"):
        ns.posterior(double_well(t0=None), short, np.zeros(4), dt=0.1)


def test_prior_samples_cut_off_the_root_of_a_state_below_zero():
    """Euler's step of a square-root process passes zero."""
    law = ns.Gaussian.independent(np.full(1, 0.2), 0.01)
    root = lambda t, x: 0.5 * jnp.sqrt(x)
    model = ns.LatentSDE(
        ns.DiagonalSDE(0.5, 0.1, 0.3, law),
        ns.LinearDecoder([[1.0]], 0.2),
        diffusion=root,
        dt=0.05,
    )
    paths = ns.sample_prior(model, np.linspace(0, 5, 6), 500, key=jax.random.key(0))
    assert np.isfinite(paths).all()
    np.testing.assert_allclose(paths.mean((0, 2)), 0.2, atol=0.04)
    with pytest.raises(ValueError, match="gaps are lost in float32"):
        ns.sample_prior(model, [1.7e9, 1.7e9 + 10], 5, key=jax.random.key(0))
