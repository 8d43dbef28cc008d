"""Messages of long series: linear in length, beside dynamax's Kalman filter.

`python -m benchmarks.messages`. Eight states, four sensors, float32, log-evidence
alone: ours in sequence and in parallel, and dynamax's filter, which is given one matrix
for all gaps, as it has no irregular times.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from effgen import neural_sde as ns


STATES = 8
SENSORS = 4
LENGTHS = (1_000, 10_000, 100_000)


def problem(length):
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(STATES, STATES))
    matrix = (turn - turn.T) / 2 - 0.3 * np.eye(STATES)
    law = ns.Gaussian.independent(np.zeros(STATES), 1.0)
    linear = ns.LinearSDE(matrix, np.zeros(STATES), 0.5 * np.eye(STATES), law)
    decoder = ns.LinearDecoder(rng.normal(size=(SENSORS, STATES)), 0.5)
    return linear, decoder, jnp.asarray(rng.normal(size=(length, SENSORS)), jnp.float32)


def ours(linear, decoder, ys, *, parallel):
    gap = jnp.asarray(0.1)
    everything = jnp.ones(SENSORS, bool)

    @jax.jit
    def evidence(ys):
        step = linear.transition(jnp.zeros(()), gap)
        steps = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (len(ys) - 1, *x.shape)), step
        )
        sites = jax.vmap(lambda y: decoder.site(y, everything))(ys)
        found = ns.condition(linear.initial, steps, sites, parallel=parallel)
        return found.log_evidence

    return lambda: evidence(ys)


def dynamax(linear, decoder, ys):
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    step = linear.transition(jnp.zeros(()), jnp.asarray(0.1))
    peer = LinearGaussianSSM(STATES, SENSORS, has_dynamics_bias=False)
    params, _ = peer.initialize(
        jax.random.key(0),
        initial_mean=linear.initial.mean,
        initial_covariance=linear.initial.covariance,
        dynamics_weights=step.matrix,
        dynamics_covariance=step.covariance,
        emission_weights=decoder.matrix,
        emission_covariance=jnp.diag(decoder.scale**2),
    )
    evidence = jax.jit(lambda ys: peer.marginal_log_prob(params, ys))
    return lambda: evidence(ys)


if __name__ == "__main__":
    rows = {}
    for length in LENGTHS:
        linear, decoder, ys = problem(length)
        contestants = {
            "in sequence": ours(linear, decoder, ys, parallel=False),
            "in parallel": ours(linear, decoder, ys, parallel=True),
            "dynamax": dynamax(linear, decoder, ys),
        }
        values = {name: float(f()) for name, f in contestants.items()}
        times = measure.interleaved(contestants, rounds=5)
        rows[length] = {
            "log_evidence": values,
            "milliseconds": {k: 1e3 * float(np.median(v)) for k, v in times.items()},
            "over_dynamax": measure.paired_ratio(
                times["in sequence"], times["dynamax"]
            ),
        }
        print(length, rows[length], flush=True)
    measure.write("messages", {"states": STATES, "sensors": SENSORS, "lengths": rows})
