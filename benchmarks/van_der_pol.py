"""A Van der Pol oscillator learned with noise: collocation, shooting, CasADi.

`python -m benchmarks.van_der_pol`. Four trajectories of 101 samples of both states,
noise 5 % of their deviations. Physics-enhanced: the force is `network(x, v) - x`; full:
both derivatives are a network's. Judged by the relative error of simulations from eight
unseen starts. Wall times are whole: building, compilation and all.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate

import effgen as eg
from benchmarks import measure
from effgen import collocation as co
from effgen.collocation.nlp import constraints, objective
from effgen.collocation.problem import in_double
from effgen.collocation.shooting import integrated


KEY = jax.random.key(0)
LAST = 7.0
STARTS = np.array([[1.0, 0.0], [-2.0, 1.0], [0.5, -2.0], [2.5, 2.5]])
UNSEEN = np.random.default_rng(1).uniform(-2.5, 2.5, (8, 2))
NOISE = 0.05
DECAY = 1e-5
RATES = (3e-3, 1e-2, 3e-2)
STEPS = 1_500


def law(t, x):
    return [x[1], 2 * (1 - x[0] ** 2) * x[1] - x[0]]


def truth(start, ts):
    found = scipy.integrate.solve_ivp(
        law, (ts[0], ts[-1]), start, t_eval=ts, rtol=1e-10, atol=1e-10
    )
    return found.y.T


def enhanced(t, x, u, p, nets):
    return jnp.stack([x[1], nets(x)[0] - x[0]])


def full(t, x, u, p, nets):
    return nets(x)


FIELDS = {"physics-enhanced": (enhanced, 1), "full": (full, 2)}


def problem_of(field, num=101, seed=0):
    rng = np.random.default_rng(seed)
    ts = np.linspace(0, LAST, num)
    exact = [truth(start, ts) for start in STARTS]
    scale = np.concatenate(exact).std(0)
    data = [(ts, x + NOISE * scale * rng.normal(size=x.shape)) for x in exact]
    return co.Problem(field, data, weight_decay=DECAY)


def network(out, width=8, seed=0):
    net = eqx.nn.MLP(2, out, width, 2, jax.nn.tanh, key=jax.random.key(seed))
    return in_double(net)


def tester(problem):
    """Return the relative error on unseen starts, of a model."""
    ts = np.linspace(0, LAST, 141)
    exact = jnp.asarray(np.stack([truth(start, ts) for start in UNSEEN]))
    settings = co.ShootingTrainer(optax.identity(), problem)
    known = lambda t: jnp.zeros(0)

    @eqx.filter_jit
    def error(model):
        first, rows = jnp.zeros(()), jnp.asarray(ts)
        one = lambda x: integrated(settings, model, x, first, rows, known)
        found = jax.vmap(one)(jnp.asarray(UNSEEN))
        return jnp.sqrt(jnp.mean((found - exact) ** 2) / jnp.var(exact))

    error(co.Model({}, network((problem.vector_field is full and 2) or 1)))
    return lambda model: float(error(model))


def collocated(problem, out, test, *, pretrained):
    jax.clear_caches()
    began = time.perf_counter()
    levels = [co.transcribe(problem, intervals=n, stages=5) for n in (20, 50)]
    model = co.Model({}, network(out))
    if pretrained:
        model = co.pretrain(model, levels[0], key=KEY)
    trainer = co.CollocationTrainer(tol=1e-8)
    state = trainer.init(model, levels[0].guess())
    state, history = eg.fit(trainer, state, levels, key=KEY)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "test_error": test(state.model),
        "loss": float(history["loss"][-1]),
        "iterations": [int(i) for i in history["iterations"]],
        "status": [int(i) for i in history["status"]],
        "seconds_in_ipopt": float(np.sum(history["seconds"])),
        "seconds_evaluating": float(np.sum(history["evaluating"])),
    }


def shot(problem, out, test, rate, per_trajectory):
    """Return the curve of shooting: seconds, compilation among them, and test error."""
    jax.clear_caches()
    segments = co.segments_of(problem, per_trajectory)
    optim = optax.adam(optax.cosine_decay_schedule(rate, STEPS))
    trainer = co.ShootingTrainer(optim, problem, rtol=1e-5, atol=1e-5)
    guess = co.transcribe(problem).guess()
    state = trainer.init(co.Model({}, network(out)), (segments, guess))
    data = eg.Minibatches(segments, len(segments.first))
    began, curve = time.perf_counter(), []
    run = eg.train(trainer, state, data, key=KEY, num_steps=STEPS, every=50)
    try:
        for state, metrics in run:
            seconds = time.perf_counter() - began
            error = test(state.model.model)
            row = {"step": int(state.step), "seconds": seconds, "test_error": error}
            curve.append(row | {"loss": float(np.ravel(metrics["loss"])[-1])})
            began = time.perf_counter() - seconds
    except eg.TrainingError as error:
        print("shooting stopped:", str(error)[:100], flush=True)
    return curve


def best_of(curve):
    """Return the best test error and when it was first within 1 % of it."""
    errors = [row["test_error"] for row in curve]
    best = float(np.nanmin(errors)) if curve else float("nan")
    first = next((row for row in curve if row["test_error"] <= 1.01 * best), None)
    return {"test_error": best, "seconds": None if first is None else first["seconds"]}


def same_program(problem, out, intervals=50):
    """Solve one level by effgen and by CasADi from the same point, cold."""
    from benchmarks import casadi_peer as peer

    jax.clear_caches()
    model = co.Model({}, network(out))
    began = time.perf_counter()
    level = co.transcribe(problem, intervals=intervals, stages=5)
    trainer = co.CollocationTrainer(tol=1e-8)
    start = trainer.init(model, level.guess())
    _, history = eg.fit(trainer, start, [level], key=KEY)
    ours = time.perf_counter() - began
    net, num = peer.network([2, 8, 8, out])
    import casadi as ca

    def field(x, p):
        if out == 2:
            return net(x, p)
        return ca.vertcat(x[1], net(x, p) - x[0])

    nlp = level.program(model)
    scaled = np.asarray(level.guess().positions) / problem.nominal
    z = np.concatenate([scaled.ravel(), np.asarray(nlp.flat())])
    build = lambda: peer.program(level, field, num)
    stated = build()
    both = ca.Function("both", [stated["x"]], [stated["f"], stated["g"]])
    there = z + 0.1 * np.random.default_rng(0).normal(size=len(z))
    value, rows = both(there)
    difference = {
        "objective": abs(float(value) - float(objective(nlp, jnp.asarray(there)))),
        "constraints": float(
            np.abs(
                np.asarray(rows).ravel() - constraints(nlp, jnp.asarray(there))
            ).max()
        ),
    }
    theirs = peer.solved(build, z, tol=1e-8)
    theirs.pop("z")
    return {
        "intervals": intervals,
        "effgen": {
            "seconds": ours,
            "objective": float(history["loss"][-1]),
            "iterations": int(history["iterations"][-1]),
        },
        "casadi": theirs,
        "casadi_over_effgen": (theirs["seconds_to_build"] + theirs["seconds_to_solve"])
        / ours,
        "difference_at_a_random_point": difference,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    figures = {}
    for name, (field, out) in FIELDS.items():
        problem = problem_of(field)
        test = tester(problem)
        rows = {
            "collocation": collocated(problem, out, test, pretrained=False),
            "collocation, pretrained": collocated(problem, out, test, pretrained=True),
        }
        print(name, rows, flush=True)
        rows["casadi"] = same_program(problem, out)
        print(name, rows["casadi"], flush=True)
        for kind, per in (("shooting", 1), ("multiple shooting", 10)):
            curves = {rate: shot(problem, out, test, rate, per) for rate in RATES}
            ends = {rate: best_of(curve) for rate, curve in curves.items()}
            rows[kind] = {"curves": curves, "best": ends}
            print(name, kind, ends, flush=True)
            figures[name] = rows
            measure.write("van_der_pol", {"noise": NOISE, "problems": figures})
