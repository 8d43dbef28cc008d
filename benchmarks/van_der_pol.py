"""A Van der Pol oscillator learned with noise: collocation, shooting, CasADi.

`python -m benchmarks.van_der_pol`. Eight trajectories of 101 samples of both states,
over five units of time, from a Latin hypercube. Physics-enhanced: the force is
`network(x, v) - x`; full: both derivatives are a network's. Judged by the relative
error of simulations, over seven units, from eight unseen starts. Wall times are whole:
building, compilation and all. Shooting's rate is tuned in short runs, and the best one
run longer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from benchmarks import measure, odes
from effgen import collocation as co


LAST, LONGER = 5.0, 7.0
UNSEEN = np.random.default_rng(1).uniform(-2.5, 2.5, (8, 2))
NOISES = (0.01, 0.05)
WIDTHS = (5, 8, 12)
DECAY = 1e-6
INTERVALS, STAGES = 25, 4
RATES, SHORT, LONG = (3e-3, 1e-2, 3e-2), 1_000, 4_000


def starts(num=8, most=3.0):
    rng = np.random.default_rng(3)
    sides = [rng.permutation(np.linspace(-most, most, num)) for _ in range(2)]
    return np.stack(sides, axis=1)


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


def problem_of(field, noise=0.05, num=101, seed=0):
    rng = np.random.default_rng(seed)
    ts = np.linspace(0, LAST, num)
    exact = [truth(start, ts) for start in starts()]
    scale = np.concatenate(exact).std(0)
    data = [(ts, x + noise * scale * rng.normal(size=x.shape)) for x in exact]
    return co.Problem(field, data, weight_decay=DECAY)


def model_of(out, width=8):
    return co.Model({}, odes.network([2, width, width, out]))


def level_of(problem, intervals=INTERVALS):
    return lambda: co.transcribe(problem, intervals=intervals, stages=STAGES)


def judge(problem, model):
    ts = np.linspace(0, LONGER, 141)
    exact = np.stack([truth(start, ts) for start in UNSEEN])
    return odes.judge(problem, model, UNSEEN, ts, exact)


def casadi_field(out):
    """Return the vector field and the number of weights, in CasADi."""
    import casadi as ca

    from benchmarks import casadi_peer as peer

    net, num = peer.network([2, 8, 8, out])

    def field(x, u, p):
        return net(x, p) if out == 2 else ca.vertcat(x[1], net(x, p) - x[0])

    return field, num


def sizes(field, out, noise):
    """Return collocation's figures by network width."""
    problem = problem_of(field, noise)
    rows = {}
    for width in WIDTHS:
        model = model_of(out, width)
        test = judge(problem, model)
        level = level_of(problem)
        rows[width], _ = odes.collocated(level, model, test, pretrained=True)
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    figures = {name: {} for name in FIELDS}
    keep = lambda: measure.write("van_der_pol", {"problems": figures})
    for name, (field, out) in FIELDS.items():
        level, model = level_of(problem_of(field)), model_of(out)
        row = odes.same_program(level, model, *casadi_field(out))
        figures[name]["casadi"] = row
        keep()
    for name, (field, out) in FIELDS.items():
        problem, model = problem_of(field), model_of(out)
        test, level = judge(problem, model), level_of(problem)
        for label, pretrained in (("cold", False), ("pretrained", True)):
            row, _ = odes.collocated(level, model, test, pretrained=pretrained)
            figures[name]["collocation, " + label] = row
        keep()
        for kind, per in (("multiple shooting", 10), ("shooting", 1)):
            figures[name][kind] = odes.tuned(
                problem,
                level,
                model,
                test,
                per=per,
                rates=RATES,
                short=SHORT,
                long=LONG,
            )
            keep()
    for name, (field, out) in FIELDS.items():
        figures[name]["sizes"] = {n: sizes(field, out, n) for n in NOISES}
        keep()
