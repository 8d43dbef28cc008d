"""A quarter of a vehicle: its spring and damper learned on three rough roads.

`python -m benchmarks.quarter_vehicle`. Body and wheel, linked by a hardening spring and
a damper that is stiffer in rebound, drive over roads of ISO 8608's class C at 20 m/s;
the deflection between them and the body's velocity are measured, with noise of 2 %.
Known: the masses, the tire, and roughly what spring and damper are: linear ones of a
catalog. Learned: what both forces have beyond, each a network of one number. All begin
from simulations of the untrained model, as not all states are measured.
Judged by the relative error of all four states on an unseen road.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate

from benchmarks import measure, odes
from effgen import collocation as co


BODY, WHEEL, TIRE = 256.0, 31.0, 128_000.0  # kg, kg, N/m
SPEED, LAST, NOISE = 20.0, 4.0, 0.02  # m/s, s
FORCE = 1_000.0  # N, that networks answer in
STIFFNESS, DAMPING = 25_000.0, 1_000.0  # the catalog's, N/m and N s/m
ROADS, TEST_ROAD = (0, 1, 2), 9
INTERVALS, STAGES, WIDTH, DECAY = 120, 3, 6, 1e-7
DEFLECTION, VELOCITY = 0.02, 0.5  # m, m/s, that networks take as one
NOMINAL = np.array([0.05, 0.5, 0.05, 2.0])
RATES, SHORT, LONG = (3e-3, 1e-2, 3e-2), 200, 1_000


def road(seed):
    """Return a road's height in meters as a function of the time, for JAX or numpy."""
    rng = np.random.default_rng(seed)
    wave_numbers = np.linspace(0.05, 1.0, 60)  # 1/m
    density = 256e-6 * (wave_numbers / 0.1) ** -2
    heights = np.sqrt(2 * density * (wave_numbers[1] - wave_numbers[0]))
    phases = rng.uniform(0, 2 * np.pi, len(heights))

    def height(t, xp=jnp):
        turns = 2 * np.pi * wave_numbers * SPEED
        start = xp.minimum(t / 0.2, 1.0)  # from rest
        return xp.reshape(start * (heights @ xp.sin(turns * t + phases)), (1,))

    return height


def spring(deflection):
    return 18_000 * deflection + 1.5e6 * deflection**3


def damper(speed, xp=np):
    return 1_400 * speed + 500 * (xp.sqrt(speed**2 + 0.01) - 0.1)


def accelerations(x, u, force):
    body = -force / BODY
    wheel = (force - TIRE * (x[2] - u[0])) / WHEEL
    return body, wheel


def law(t, x, height):
    force = spring(x[0] - x[2]) + damper(x[1] - x[3])
    body, wheel = accelerations(x, height(t, np), force)
    return [x[1], body, x[3], wheel]


def truth(height, ts):
    found = scipy.integrate.solve_ivp(
        law, (0, ts[-1]), np.zeros(4), t_eval=ts, args=(height,), rtol=1e-9, atol=1e-11
    )
    return found.y.T


class Forces(eqx.Module):
    """Networks of the spring and the damper, zero at rest."""

    spring: eqx.Module
    damper: eqx.Module

    def __call__(self, deflection, speed):
        at = lambda net, x: jnp.reshape(net(x[None]) - net(jnp.zeros(1)), ())
        found = at(self.spring, deflection / DEFLECTION) + at(
            self.damper, speed / VELOCITY
        )
        return STIFFNESS * deflection + DAMPING * speed + FORCE * found


def field(t, x, u, p, nets):
    body, wheel = accelerations(x, u, nets(x[0] - x[2], x[1] - x[3]))
    return jnp.stack([x[1], body, x[3], wheel])


def observe(t, x, u, p, nets):
    return jnp.stack([x[0] - x[2], x[1]])


def problem_of(seed=0, decay=DECAY):
    rng = np.random.default_rng(seed)
    ts = np.linspace(0, LAST, 401)
    rows = []
    for which in ROADS:
        x = truth(road(which), ts)
        ys = np.stack([x[:, 0] - x[:, 2], x[:, 1]], axis=1)
        ys = ys + NOISE * ys.std(0) * rng.normal(size=ys.shape)
        rows.append(co.Trajectory(ts, ys, road(which)))
    return co.Problem(
        field,
        rows,
        observe=observe,
        num_states=4,
        nominal=NOMINAL,
        initial=co.Initial(np.zeros(4)),
        weight_decay=decay,
    )


def model_of(seed=0):
    sizes = [1, WIDTH, WIDTH, 1]
    return co.Model(
        {}, Forces(odes.network(sizes, seed), odes.network(sizes, seed + 1))
    )


def casadi_field():
    """Return the vector field and the number of weights, in CasADi."""
    import casadi as ca

    from benchmarks import casadi_peer as peer

    net, num = peer.network([1, WIDTH, WIDTH, 1])

    def field(x, u, p):
        at = lambda x, p: net(x, p) - net(0, p)
        deflection, speed = x[0] - x[2], x[1] - x[3]
        force = at(deflection / 0.02, p[:num]) + at(speed / 0.5, p[num:])
        force = FORCE * force + STIFFNESS * deflection + DAMPING * speed
        body, wheel = accelerations(x, ca.vertsplit(u), force)
        return ca.vertcat(x[1], body, x[3], wheel)

    return field, 2 * num


def laws(model):
    """Return both forces' relative errors over the range that the roads visit."""
    deflection, speed = np.linspace(-0.03, 0.02, 101), np.linspace(-0.5, 0.5, 101)
    nets, zero = model.networks, jnp.zeros(())
    found = (
        jax.vmap(lambda d: nets(d, zero))(jnp.asarray(deflection)),
        jax.vmap(lambda v: nets(zero, v))(jnp.asarray(speed)),
    )
    exact = (spring(deflection), damper(speed))
    error = lambda f, e: float(np.sqrt(np.mean((np.asarray(f) - e) ** 2)) / np.std(e))
    return dict(zip(("spring", "damper"), map(error, found, exact), strict=True))


def simulated(level, model):
    return level.simulated(model)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    import casadi as ca

    problem, model = problem_of(), model_of()
    level = lambda: co.transcribe(problem, intervals=INTERVALS, stages=STAGES)
    ts = np.linspace(0, LAST, 401)
    exact = truth(road(TEST_ROAD), ts)
    unseen = road(TEST_ROAD)
    test = odes.judge(problem, model, np.zeros((1, 4)), ts, exact[None], unseen)
    figures = {"noise": NOISE, "speed_m_per_s": SPEED}
    keep = lambda: measure.write("quarter_vehicle", figures)
    row, state = odes.collocated(level, model, test, pretrained=False, guess=simulated)
    figures["collocation"] = row | {"force_errors": laws(state.model)}
    print(figures["collocation"]["force_errors"], flush=True)
    keep()
    stated, num = casadi_field()
    seen = lambda x: ca.vertcat(x[0] - x[2], x[1])
    figures["casadi"] = odes.same_program(
        level, model, stated, num, observe=seen, guess=simulated
    )
    keep()
    for kind, per in (("multiple shooting", 8), ("shooting", 1)):
        figures[kind] = odes.tuned(
            problem,
            level,
            model,
            test,
            per=per,
            rates=RATES,
            short=SHORT,
            long=LONG,
            every=20,
            guess=simulated,
        )
        keep()
