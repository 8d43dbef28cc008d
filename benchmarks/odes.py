"""What benchmarks of learned ODEs share: collocation, shooting, CasADi."""

import time

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import effgen as eg
from effgen import collocation as co
from effgen.collocation.modeling.problem import in_double
from effgen.collocation.program.nlp import constraints, objective
from effgen.collocation.program.transcription import limits_of
from effgen.collocation.states.integration import Integration, integrated


KEY = jax.random.key(0)


def network(sizes, seed=0):
    """Return a tanh network in float64, of the widths in `sizes`."""
    first, *hidden, last = sizes
    net = eqx.nn.MLP(
        first, last, hidden[0], len(hidden), jax.nn.tanh, key=jax.random.key(seed)
    )
    return in_double(net)


def judge(problem, model, starts, ts, exact, inputs=None, solver=None):
    """Return a function of a model: the relative error of its simulations.

    Compiled here, so that no contestant pays for it.
    """
    integration = Integration(
        solver=diffrax.Tsit5() if solver is None else solver,
        rtol=1e-7,
        atol=1e-9,
        max_steps=20_000,
    )
    bare = problem.without_data()
    known = (lambda t: jnp.zeros(0)) if inputs is None else inputs
    exact, rows = jnp.asarray(exact), jnp.asarray(ts)
    spread = jnp.std(exact, axis=(0, 1))[None, None]

    @eqx.filter_jit
    def error(model):
        one = lambda x: integrated(bare, integration, model, x, rows[0], rows, known)
        found = jax.vmap(one)(jnp.asarray(starts))
        return jnp.sqrt(jnp.mean(((found - exact) / spread) ** 2))

    error(model)
    return lambda model: float(error(model))


def default_guess(level, model):
    """Return the smoothed data."""
    return level.guess()


def collocated(
    level,
    model,
    test,
    *,
    pretrained,
    max_iter=150,
    tol=1e-8,
    guess=default_guess,
):
    """Return the figures of one collocation, building and compiling included."""
    jax.clear_caches()
    began = time.perf_counter()
    level = level()
    if pretrained:
        model = co.pretrain(model, level, key=KEY)
    trainer = co.CollocationTrainer(tol=tol, max_iter=max_iter)
    state = trainer.init(model, guess(level, model))
    state, history = eg.fit(trainer, state, [level], key=KEY)
    seconds = time.perf_counter() - began
    row = {
        "seconds": seconds,
        "test_error": test(state.model),
        "loss": float(history["loss"][-1]),
        "iterations": int(history["iterations"][-1]),
        "status": int(history["status"][-1]),
        "seconds_in_ipopt": float(history["seconds"][-1]),
        "seconds_evaluating": float(history["evaluating"][-1]),
        "variables": int(history["variables"][-1]),
    }
    print("collocation", "pretrained" * pretrained, row, flush=True)
    return row, state


def shot(
    problem,
    level,
    model,
    test,
    *,
    rate,
    per_trajectory,
    steps,
    every,
    guess=default_guess,
    **settings,
):
    """Return the curve of shooting: seconds, compilation among them, and test error."""
    jax.clear_caches()
    segments = co.segments_of(problem, per_trajectory)
    optim = optax.adam(optax.cosine_decay_schedule(rate, steps))
    trainer = co.ShootingTrainer(optim, problem, rtol=1e-5, atol=1e-5, **settings)
    state = trainer.init(model, (segments, guess(level(), model)))
    data = eg.Minibatches(segments, len(segments.first))
    began, curve = time.perf_counter(), []
    run = eg.train(trainer, state, data, key=KEY, num_steps=steps, every=every)
    try:
        for state, metrics in run:
            loss = float(np.ravel(metrics["loss"])[-1])
            seconds = time.perf_counter() - began
            error = test(state.model.model)
            row = {"step": int(state.step), "seconds": seconds, "test_error": error}
            curve.append(row | {"loss": loss})
            began = time.perf_counter() - seconds
    except eg.TrainingError as error:
        print("shooting stopped:", str(error)[:120], flush=True)
    return curve


def best_of(curve):
    """Return the best test error and when it was first within 1 % of it."""
    errors = [row["test_error"] for row in curve]
    if not errors or np.all(np.isnan(errors)):
        return {"test_error": float("nan"), "seconds": None}
    best = float(np.nanmin(errors))
    first = next(row for row in curve if row["test_error"] <= 1.01 * best)
    return {"test_error": best, "seconds": first["seconds"]}


def tuned(
    problem, level, model, test, *, per, rates, short, long, every=50, **settings
):
    """Return shooting's short runs, and the long one of the best rate."""
    go = lambda rate, steps: shot(
        problem,
        level,
        model,
        test,
        rate=rate,
        per_trajectory=per,
        steps=steps,
        every=every,
        **settings,
    )
    ends = {rate: best_of(go(rate, short)) for rate in rates}
    print(per, "segments", ends, flush=True)
    rate = min(ends, key=lambda r: np.nan_to_num(ends[r]["test_error"], nan=np.inf))
    curve = go(rate, long)
    found = {"short": ends, "rate": rate, "best": best_of(curve), "curve": curve}
    print(per, "segments", found["best"], flush=True)
    return found


def _solved(level, model, guess, tol):
    """Return how effgen does, building and compiling included."""
    jax.clear_caches()
    began = time.perf_counter()
    there = level()
    start = guess(there, model)
    trainer = co.CollocationTrainer(tol=tol)
    _, history = eg.fit(trainer, trainer.init(model, start), [there], key=KEY)
    return {
        "seconds": time.perf_counter() - began,
        "objective": float(history["loss"][-1]),
        "iterations": int(history["iterations"][-1]),
        "status": int(history["status"][-1]),
    }


def same_program(
    level,
    model,
    field,
    num_model,
    tol=1e-8,
    observe=lambda x: x,
    guess=default_guess,
):
    """Solve one program by effgen and by CasADi from the same point, cold.

    `field(x, u, p)` and `observe(x)` are in CasADi's symbols.
    """
    import casadi as ca

    from benchmarks import casadi_peer as peer

    own = _solved(level, model, guess, tol)
    there = level()
    start = guess(there, model)
    nlp = there.program(model)
    z = nlp.joined(start.positions)
    build = lambda: peer.program(there, field, num_model, observe)
    stated = build()
    both = ca.Function("both", [stated["x"]], [stated["f"], stated["g"]])
    near = z + 0.1 * np.random.default_rng(0).normal(size=len(z))
    value, rows = both(near)
    ours_there = np.asarray(constraints(nlp, jnp.asarray(near)))
    theirs = peer.solved(build, z, limits_of(there, nlp), tol=tol)
    theirs.pop("z")
    whole = theirs["seconds_to_build"] + theirs["seconds_to_solve"]
    row = {
        "effgen": own,
        "casadi": theirs,
        "casadi_over_effgen": whole / own["seconds"],
        "difference_at_a_random_point": {
            "objective": abs(float(value) - float(objective(nlp, jnp.asarray(near)))),
            "constraints": float(np.abs(np.asarray(rows).ravel() - ours_there).max()),
        },
    }
    print("same program", row, flush=True)
    return row


STIFF = diffrax.Kvaerno5()
