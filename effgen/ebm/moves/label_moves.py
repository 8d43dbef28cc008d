"""Moves of examples with labels: of the example, and of the label."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from effgen.ebm.contract.data_checks import check_continuous_data, values_at_hand
from effgen.ebm.contract.energy import Energy
from effgen.ebm.contract.energy_checks import check_continuous, check_energies, confines
from effgen.ebm.energies.labels import LabeledEnergy, are_labels, check_labels
from effgen.ebm.walkers.particles import Particles
from effgen.ebm.walkers.weighted_walkers import Walkers

from .kernels import AbstractContinuousKernel, part_of
from .langevin_kernels import MALA


class LabelGibbs(AbstractContinuousKernel):
    """Moves of an example given its label, and then of the label given the example.

        x moves by `kernel` under energy(:, label)
        label ~ softmax(-energy(x, :))

    Both leave the `LabeledEnergy`'s model invariant, so the weights are exact.

    Arguments:
        kernel: A `MALA`, which moves examples; its `scale`, if any, is of the
            example's shape, or flat, `(size,)`, or a matrix, `(size, size)`.

    Raises:
        TypeError: If `kernel` is no `MALA`.
    """

    kernel: MALA

    def __check_init__(self) -> None:
        """Raise `TypeError` for a kernel that is no `MALA`."""
        if not isinstance(self.kernel, MALA):
            raise TypeError(f"`kernel` is {self.kernel!r}: pass `ebm.MALA(...)`.")

    def move(
        self,
        walkers: Walkers,
        energy: Energy,
        step: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Walkers:
        """Return the walkers after one move of examples, and one of labels.

        Arguments:
            walkers: Rows, weighted for `energy`.
            energy: The `LabeledEnergy` of the model that stays invariant.
            step: The step of the training, from 0.
            key: The randomness of the move.

        Returns:
            The walkers, their weights as they were.
        """
        labeled = _as_labeled(energy)
        keys = jax.random.split(key)
        kernel = self._of_examples(labeled)
        walkers = kernel.move(walkers, energy, step, key=keys[0])
        energies = jax.vmap(labeled.of_all)(walkers.positions)
        labels = jax.random.categorical(keys[1], -energies, axis=1)
        new = walkers.positions.at[:, -1].set(labels.astype(walkers.positions.dtype))
        return walkers.at(Particles.of(energy, new))

    def begun(self, walkers: Walkers, energy: Energy) -> Walkers:
        """Return the walkers with the step size of their first move.

        Arguments:
            walkers: Rows, weighted for `energy`.
            energy: The `LabeledEnergy` at the start.

        Returns:
            The walkers, with the step size that `kernel` begins with.
        """
        return self._of_examples(_as_labeled(energy)).begun(walkers, energy)

    def between(self, old: Energy, new: Energy, share: Float[Array, ""]) -> Energy:
        """Return the geometric path, as an energy of examples with labels.

        Arguments:
            old: The `LabeledEnergy` at `share` 0.
            new: The `LabeledEnergy` at `share` 1.
            share: From 0 to 1, one number.

        Returns:
            The `LabeledEnergy` at `share`.

        Raises:
            ValueError: For energies of other shapes, or of other numbers of labels.
        """
        old, new = _as_labeled(old), _as_labeled(new)
        if (old.shape, old.num_labels) != (new.shape, new.num_labels):
            raise ValueError(
                f"`models` have examples of {old.shape} with {old.num_labels} labels, "
                f"and of {new.shape} with {new.num_labels}: pass models of the same."
            )
        return dataclasses.replace(new, energy=_Between(old.energy, new.energy, share))

    def admits(
        self, model: Energy, batch: Float[Array, "batch size_and_label"]
    ) -> Array:
        """Return whether a batch's labels are all of the `LabeledEnergy`, one bool.

        Arguments:
            model: The `LabeledEnergy` that is trained.
            batch: The rows of a step.
        """
        return are_labels(batch[:, -1], _as_labeled(model).num_labels)

    def confined(self, model: Energy, walkers: Walkers) -> Bool[Array, ""]:
        """Return whether the energy of every label grows fast enough along a few rays.

        Arguments:
            model: The `LabeledEnergy` after an update.
            walkers: Rows, where to begin to look.
        """
        return confines(_Marginal(_as_labeled(model)), walkers.positions[:, :-1])

    def check(self, model: Energy, walkers: Walkers) -> None:
        """Raise unless the walkers are rows of the `LabeledEnergy`'s shape.

        Arguments:
            model: The energy at the start.
            walkers: The walkers at the start.

        Raises:
            TypeError: For a model that is no `LabeledEnergy`.
            ValueError: For walkers of another shape or with other labels, or an energy
                that is not finite, repeatable and confining.
        """
        labeled = _as_labeled(model)
        self._of_examples(labeled)
        size = labeled.size + 1
        if walkers.positions.shape[1:] != (size,):
            raise ValueError(
                f"`memory` has walkers of shape {walkers.positions.shape[1:]}: rows of "
                f"{labeled.shape} and a label have {size} entries; draw them by "
                "`ebm.labeled_walkers`."
            )
        check_labels("memory", walkers.positions[:, -1], labeled.num_labels)
        check_energies(model, walkers.positions)
        check_continuous(_Marginal(labeled), walkers.positions[:, :-1])

    def check_data(self, batch: Any, source: Any) -> None:
        """Raise on examples that have no density, or labels that are none.

        Arguments:
            batch: The first batch of rows, or its shape and dtype.
            source: The data of the run.

        Raises:
            TypeError: For integers.
            ValueError: For constant or repeated values, values that are not finite, or
                labels that are no integers from 0.
        """
        check_continuous_data(batch, source, last=-1)
        values = values_at_hand(batch, source)
        if values is not None:
            check_labels("data", values[:, -1], None)

    def _of_examples(self, energy: LabeledEnergy) -> MALA:
        """Return the kernel that leaves the last entry, the label, where it is."""
        size = energy.size
        given = self.kernel.scale
        scale = jnp.ones(size) if given is None else jnp.asarray(given)
        if jnp.shape(scale) == energy.shape:
            scale = jnp.reshape(scale, size)
        if jnp.shape(scale) not in ((size,), (size, size)):
            raise ValueError(
                f"`scale` has shape {jnp.shape(scale)}: pass an array of the shape of "
                f"an example, {energy.shape}, or flat, {(size,)}, or a matrix, "
                f"{(size, size)}."
            )
        padded = jnp.pad(scale, [(0, 1)] * jnp.ndim(scale))
        # Past the check of `MALA`, which refuses a scale that moves no label.
        return eqx.tree_at(
            lambda kernel: kernel.scale,
            self.kernel,
            padded,
            is_leaf=lambda x: x is None,
        )


class _Marginal(eqx.Module):
    """The energy of a flat example, with the label summed out."""

    labeled: LabeledEnergy

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, ""]:
        """Return the energy."""
        row = jnp.concatenate([x, jnp.zeros(1, x.dtype)])
        return -jax.nn.logsumexp(-self.labeled.of_all(row))


class _Between(eqx.Module):
    """A model on the geometric path, of an example and its label."""

    old: Callable[..., Float[Array, ""]]
    new: Callable[..., Float[Array, ""]]
    share: Float[Array, ""]

    def __call__(self, x: Array, label: Int[Array, ""]) -> Float[Array, ""]:
        """Return the energy."""
        old, new = self.old(x, label), self.new(x, label)
        return part_of(1 - self.share, old) + part_of(self.share, new)


def _as_labeled(energy: Energy) -> LabeledEnergy:
    if not isinstance(energy, LabeledEnergy):
        raise TypeError(
            f"`model` is a {type(energy).__name__}: `LabelGibbs` moves an "
            "`ebm.LabeledEnergy`."
        )
    return energy
