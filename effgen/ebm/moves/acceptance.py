"""Proposals accepted or refused, and a first step size by how many are."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from effgen.ebm.contract.arguments import traced
from effgen.ebm.contract.energy import Energy
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractKernel
from .step_sizes import StepSize, TargetAcceptance, begun_with, searched


# So many walkers tell what is accepted, where a first step size is looked for.
_PROBED = 256


def metropolized(
    walkers: Walkers,
    proposed: Particles,
    ratios: Float[Array, " walkers"],
    *,
    key: PRNGKeyArray,
) -> tuple[Walkers, Float[Array, ""]]:
    """Return the walkers as proposed, or where they were, and how often accepted.

        accepted with probability min(1, exp(ratios))

    Source:
        Metropolis et al. (1953); Hastings (1970).
    """
    # A proposal of infinite or undefined energy is refused.
    ratios = jnp.where(jnp.isnan(ratios), -jnp.inf, ratios)
    uniform = jax.random.uniform(key, ratios.shape, ratios.dtype)
    kept = proposed.where(jnp.log(uniform) < ratios, walkers.particles)
    return walkers.at(kept), jnp.mean(jnp.exp(jnp.minimum(ratios, 0.0)))


def begun_by_acceptance(
    kernel: AbstractKernel, step_size: StepSize, walkers: Walkers, energy: Energy
) -> Walkers:
    """Return the walkers with the step size that `kernel` begins with.

    By doubling or halving it, where `step_size` asks for an acceptance.
    """
    if not isinstance(step_size, TargetAcceptance) or traced((walkers, energy)):
        return walkers
    some = walkers.arranged(lambda x: x[:_PROBED])

    def acceptance(h: float) -> float:
        return float(_acceptance(kernel, some, energy, jnp.asarray(h)))

    found = searched(acceptance, step_size)
    return begun_with(walkers, jnp.asarray(found))


@eqx.filter_jit
def _acceptance(
    kernel: AbstractKernel, walkers: Walkers, energy: Energy, h: Float[Array, ""]
) -> Float[Array, ""]:
    begun, key = begun_with(walkers, h), jax.random.key(0)
    moved = kernel.move(begun, energy, jnp.zeros((), jnp.int32), key=key)
    return moved.acceptance
