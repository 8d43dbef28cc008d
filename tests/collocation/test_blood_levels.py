"""A measured record with parameters by subject, against its solution in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import effgen as eg
from demo.records import theophylline
from effgen import collocation as co


NAMES = ("absorption", "clearance", "volume")
PUBLISHED = (0.45, -3.21, -0.78)  # by R's nlme, whose spreads are estimated
SPREADS = {"absorption": 0.64, "clearance": 0.26, "volume": 0.14}
NOISE = 0.68  # mg per liter


def field(t, x, u, p, nets):
    """Rates of a depot, mg per kg, and of the blood's level, mg per liter."""
    absorption, clearance, volume = (jnp.exp(p[n][u[-1].astype(int)]) for n in NAMES)
    into = absorption * x[0]
    return jnp.stack([-into, (into - clearance * x[1]) / volume])


def fitted():
    """Fit all subjects, each with parameters of its own around shared means."""
    subjects = theophylline()
    data = co.numbered([(s.hours, s.concentrations) for s in subjects])
    shared = lambda name: lambda p, nets: p[name] - p[f"mean {name}"]
    problem = co.Problem(
        field,
        data,
        observe=lambda t, x, u, p, nets: x[1:],
        num_states=2,
        nominal=[4.0, 8.0],
        initial=co.Initial(np.array([[s.dose, 0.0] for s in subjects])),
        scale=NOISE,
        priors=[co.Prior(shared(name), SPREADS[name], name=name) for name in NAMES],
    )
    starts = {"absorption": 0.0, "clearance": -3.0, "volume": -1.0}
    parameters = {name: np.full(len(subjects), starts[name]) for name in NAMES}
    parameters |= {f"mean {name}": starts[name] for name in NAMES}
    model = co.Model(parameters, None)
    level = co.transcribe(problem, stages=5)
    trainer = co.CollocationTrainer(tol=1e-9)
    state = trainer.init(model, level.guess(model))
    state, history = eg.fit(trainer, state, [level], key=jax.random.key(0))
    assert history["status"][-1] == 0
    return level, state


def residuals(rows):
    """Return what is left by Bateman's solution, and of the priors."""
    mean, *own = rows.reshape(-1, len(NAMES))
    left = [(np.array(own) - mean).T / np.array([[SPREADS[n]] for n in NAMES])]
    for subject, logarithms in zip(theophylline(), own, strict=True):
        absorption, clearance, volume = np.exp(logarithms)
        rate = clearance / volume
        falls = np.exp(-rate * subject.hours) - np.exp(-absorption * subject.hours)
        size = subject.dose * absorption / (volume * (absorption - rate))
        left.append((subject.concentrations - size * falls) / NOISE)
    return np.concatenate([np.ravel(part) for part in left])


def test_blood_levels_have_the_parameters_of_the_closed_form():
    level, state = fitted()
    found = state.model.parameters
    means = np.array([found[f"mean {name}"] for name in NAMES])
    own = np.stack([found[name] for name in NAMES], axis=1)
    start = np.tile([0.0, -3.0, -1.0], len(own) + 1)
    tight = dict(xtol=1e-14, ftol=1e-14, gtol=1e-14)
    exact = scipy.optimize.least_squares(residuals, start, **tight).x.reshape(-1, 3)
    np.testing.assert_allclose(own, exact[1:], atol=1e-5)
    np.testing.assert_allclose(means, exact[0], atol=1e-5)
    np.testing.assert_allclose(means, PUBLISHED, atol=0.02)
    curvature = np.linalg.inv(jacobian(exact).T @ jacobian(exact))
    bands = co.covariance(level, state, noise=1.0)
    owners = [n for n in sorted(found) for _ in np.ravel(found[n])]  # as raveled
    mine = np.sqrt(np.diag(bands.model))
    theirs = np.sqrt(np.diag(curvature)).reshape(-1, 3)
    for name, each in zip(NAMES, theirs.T, strict=True):
        own = mine[[n == name for n in owners]]
        mean = mine[[n == f"mean {name}" for n in owners]]
        np.testing.assert_allclose(np.append(mean, own), each, rtol=1e-3)


def jacobian(rows):
    return scipy.optimize.approx_fprime(rows.ravel(), residuals, 1e-7)
