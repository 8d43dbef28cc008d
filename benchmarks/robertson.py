"""Stiff kinetics with a neural rate: Robertson's reactions, one of them unknown.

`python -m benchmarks.robertson`. A -> B at 0.04, B + C -> A + C at 1e4, and the third
reaction, 2 B -> C + B at 3e7 B^2 / (1 + 3 C), is learned as `exp(network(A, C)) B^2`
from three runs of 60 samples over eight decades of time, with noise of 2 %. Contestants
with a solver in the loop use an implicit one (Kvaerno's fifth order), or an explicit
one. All begin from an implicit simulation of the untrained model. Judged by the
relative error of a run from an unseen start.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from benchmarks import measure, odes
from effgen import collocation as co


STARTS = np.array([[1.0, 0.0, 0.0], [0.6, 0.0, 0.4], [0.8, 0.0, 0.1]])
UNSEEN = np.array([0.9, 0.0, 0.3])
NOISE, DECAY, WIDTH, STAGES = 0.02, 1e-7, 6, 3
FIRST, LAST = 1e-3, 1e5
NOMINAL = np.array([1.0, 3e-5, 1.0])
RATES, SHORT, LONG = (3e-3, 1e-2, 3e-2), 150, 600
UNIT = 3e7


def law(t, x):
    first, second = 0.04 * x[0], 1e4 * x[1] * x[2]
    third = UNIT * x[1] ** 2 / (1 + 3 * x[2])
    return [second - first, first - second - third, third]


def truth(start, ts):
    found = scipy.integrate.solve_ivp(
        law, (0, ts[-1]), start, "Radau", ts, rtol=1e-9, atol=1e-13
    )
    return found.y.T


class Rate(eqx.Module):
    """The unknown reaction's coefficient, positive."""

    network: eqx.Module

    def __call__(self, a, c):
        return UNIT * jnp.exp(self.network(jnp.stack([a, c]))[0])


def field(t, x, u, p, nets):
    first, second = 0.04 * x[0], 1e4 * x[1] * x[2]
    third = nets(x[0], x[2]) * x[1] ** 2
    return jnp.stack([second - first, first - second - third, third])


def times(num):
    return np.concatenate([[0.0], np.geomspace(FIRST, LAST, num)])


def problem_of():
    rng = np.random.default_rng(0)
    rows = []
    for start in STARTS:
        x = truth(start, times(60))
        noise = NOISE * np.abs(x) * rng.normal(size=x.shape)
        rows.append((times(60), x + noise))
    return co.Problem(
        field,
        rows,
        initial=co.Initial(STARTS),
        scale=NOMINAL,
        nominal=NOMINAL,
        weight_decay=DECAY,
    )


def model_of():
    return co.Model({}, Rate(odes.network([2, WIDTH, WIDTH, 1])))


def error_of_rate(model):
    """Return the relative error of the learned coefficient along the unseen run."""
    x = truth(UNSEEN, times(60))
    found = jax.vmap(model.networks)(jnp.asarray(x[:, 0]), jnp.asarray(x[:, 2]))
    return float(np.abs(np.asarray(found) * (1 + 3 * x[:, 2]) / UNIT - 1).max())


def simulated(level, model):
    return level.simulated(model, odes.STIFF)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    problem, model = problem_of(), model_of()
    edges = [times(60)] * len(STARTS)
    level = lambda: co.transcribe(problem, edges=edges, stages=STAGES)
    ts = times(60)
    exact = truth(UNSEEN, ts)[None]
    test = odes.judge(problem, model, UNSEEN[None], ts, exact, solver=odes.STIFF)
    figures = {"noise": NOISE}
    keep = lambda: measure.write("robertson", figures)
    row, state = odes.collocated(level, model, test, pretrained=False, guess=simulated)
    figures["collocation"] = row | {"rate_error": error_of_rate(state.model)}
    print(figures["collocation"]["rate_error"], flush=True)
    keep()
    for kind, solver in (("implicit", odes.STIFF), ("explicit", diffrax.Tsit5())):
        figures["shooting, " + kind] = odes.tuned(
            problem,
            level,
            model,
            test,
            per=1,
            rates=RATES,
            short=SHORT,
            long=LONG,
            every=10,
            solver=solver,
            guess=simulated,
            max_steps=4_096,
        )
        keep()
