"""Half a million normal numbers: what they cost exactly, and what the floor is.

`python -m benchmarks.normals`. The mixture's step draws 10,000 x 50 of them. Beside
`jax.random.normal` (threefry's 32 bits, an inverse error function): XLA's own
generators, the same bits through other exact transforms, and one draw for several
moves. "Bits alone" and "half the bits alone" are the floors. Each way that is timed is
first held to the moments and the tails of a normal. One thread.
"""

import os


os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure


SHAPE = (10_000, 50)
NUM = 500_000
ROUNDS = 9
REPEATS = 20


# Giles (2010), table 5: highest power first, below and above w = 5.
_NEAR = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 2.1858087e-04),
    *(-1.25372503e-03, -4.17768164e-03, 2.46640727e-01, 1.50140941),
)
_FAR = (
    *(-2.00214257e-04, 1.00950558e-04, 1.34934322e-03, -3.67342844e-03),
    *(5.73950773e-03, -7.6224613e-03, 9.43887047e-03, 1.00167406, 2.83297682),
)


def inverse(key, impl="threefry2x32"):
    """JAX's: 23 bits to a uniform number, and the inverse error function."""
    return jax.random.normal(
        jax.random.wrap_key_data(data(key, impl), impl=impl), SHAPE
    )


def data(key, impl):
    """Return key data of the size that a generator wants."""
    bits = jax.random.key_data(key)
    return jnp.tile(bits, 2) if impl in ("rbg", "unsafe_rbg") else bits


def polar(key):
    """Box and Muller: two normal numbers of two uniform ones, so half the logarithms.

    As exact as 24 bits of each are: the radius goes to 5.8.
    """
    keys = jax.random.split(key)
    half = (SHAPE[0], SHAPE[1] // 2)
    u = 1.0 - jax.random.uniform(keys[0], half)  # never 0
    angle = 2 * jnp.pi * jax.random.uniform(keys[1], half)
    radius = jnp.sqrt(-2.0 * jnp.log(u))
    return jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1)


def sixteen(key):
    """Sixteen bits a number, two numbers of a word, by a table of quantiles.

    Exact for the lattice that it draws from, whose tails end at 4.2: the weights of
    unadjusted moves ask for the normal's own density, so that this one is for measure.
    """
    words = jax.random.bits(key, (SHAPE[0], SHAPE[1] // 2))
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=1)
    uniform = (halves.astype(jnp.float32) + 0.5) / 65536
    return jnp.sqrt(2.0) * jax.lax.erf_inv(2 * uniform - 1)


def polynomial(key):
    """Giles's single-precision inverse, its far branch on all by `where`, 23 bits."""
    bits = jax.random.bits(key, SHAPE) >> 9
    u = (bits.astype(jnp.float32) + 0.5) / (1 << 22) - 1.0
    w = -jnp.log1p(-u * u)
    return jnp.sqrt(2.0) * u * jnp.where(w < 5, _near(w - 2.5), _far(jnp.sqrt(w) - 3))


def _horner(x, coefficients):
    value = jnp.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = c + value * x
    return value


def _near(w):
    return _horner(w, _NEAR)


def _far(w):
    return _horner(w, _FAR)


WAYS = {
    "jax.random.normal": inverse,
    "the same, unsafe_rbg's bits": lambda key: inverse(key, "unsafe_rbg"),
    "the same, rbg's bits": lambda key: inverse(key, "rbg"),
    "Box and Muller": polar,
    "Giles's inverse": polynomial,
    "16 bits a number": sixteen,
}
FLOORS = {
    "bits alone": lambda key: jax.random.bits(key, SHAPE),
    "half the bits alone": lambda key: jax.random.bits(key, (SHAPE[0], SHAPE[1] // 2)),
    "unsafe_rbg's bits alone": lambda key: jax.random.bits(
        jax.random.wrap_key_data(data(key, "unsafe_rbg"), impl="unsafe_rbg"), SHAPE
    ),
    "writing them": lambda key: jnp.broadcast_to(
        jax.random.key_data(key)[0].astype(jnp.float32), SHAPE
    ),
}


def moments(draw):
    """Return how far moments and tails are off, in standard errors, by 16 million."""
    keys = jax.random.split(jax.random.key(1), 32)
    x = np.concatenate([np.asarray(jax.jit(draw)(k), np.float64).ravel() for k in keys])
    n = np.sqrt(x.size)
    tail = {t: 2 * float(jax.scipy.stats.norm.sf(t)) for t in (2.0, 3.0, 4.0)}
    off = {
        "mean": float(x.mean() * n),
        "variance": float(((x**2).mean() - 1) * n / np.sqrt(2)),
        "fourth": float(((x**4).mean() - 3) * n / np.sqrt(96)),
    }
    for t, p in tail.items():
        share = float((np.abs(x) > t).mean())
        off[f"beyond {t:.0f}"] = (share - p) * n / np.sqrt(p)
    return off | {"largest": float(np.abs(x).max())}


def timed(draw):
    """Return a function that draws `REPEATS` times, each of its own key."""
    compiled = jax.jit(draw)
    keys = list(jax.random.split(jax.random.key(0), REPEATS))
    return lambda: [compiled(key) for key in keys]


if __name__ == "__main__":
    works = {name: timed(draw) for name, draw in (WAYS | FLOORS).items()}
    times = measure.interleaved(works, rounds=ROUNDS)
    measure.write(
        "normals",
        {
            "numbers": NUM,
            "milliseconds": {
                name: 1e3 * float(np.median(t)) / REPEATS for name, t in times.items()
            },
            "jax_over_it": {
                name: measure.paired_ratio(times["jax.random.normal"], t)
                for name, t in times.items()
            },
            "off_in_standard_errors": {name: moments(d) for name, d in WAYS.items()},
        },
    )
