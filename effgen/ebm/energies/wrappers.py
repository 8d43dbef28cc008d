"""Energies made of others: tempered ones, and functions of parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from effgen.ebm.contract.arguments import check_energy, check_positive


class TemperedEnergy(eqx.Module):
    """`energy(x) / temperature`: the model `exp(-energy / temperature) / Z`.

    Noise, weights and `log Z` are then at that temperature, and stay exact. With colder
    noise alone they would not be exact.

    Arguments:
        energy: A callable pytree from one example to its energy, or from a batch.
        temperature: Fixed, above 0.

    Raises:
        TypeError: If `energy` cannot be called.
        ValueError: If `temperature` is not positive.
    """

    energy: Callable[[Float[Array, "*shape"]], Float[Array, ""]]
    temperature: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for what makes no energy."""
        check_energy("energy", self.energy)
        check_positive("temperature", self.temperature)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy, of one example or a batch, as `energy` does.

        Arguments:
            x: What `energy` takes.
        """
        return self.energy(x) / self.temperature


class FunctionEnergy(eqx.Module):
    """A function of parameters and examples, as flax and haiku have them.

        energy(x) = function(parameters, x)

    Arguments:
        function: From parameters and one example, or a batch, to the energy.
        parameters: A pytree, all of whose inexact arrays are trained.

    Raises:
        TypeError: If `function` cannot be called.
    """

    function: Callable[[Any, Float[Array, "*shape"]], Float[Array, ""]]
    parameters: Any

    def __check_init__(self) -> None:
        """Raise `TypeError` for what cannot be called."""
        check_energy("function", self.function)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Return the energy, of one example or a batch, as `function` does.

        Arguments:
            x: What `function` takes after the parameters.
        """
        return self.function(self.parameters, x)
