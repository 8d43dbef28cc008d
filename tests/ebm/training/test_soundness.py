"""What stops a training, told from one another."""

import jax
import jax.numpy as jnp
import pytest

import effgen as eg
from effgen import ebm
from effgen.ebm.training.soundness import soundness
from tests.ebm.gaussians import SIZE, Shifted, data, populations


MODEL = Shifted(jnp.zeros(SIZE))


@pytest.mark.parametrize(
    ("gap", "model", "name"),
    [
        (9e3 * SIZE, MODEL, "successful"),
        (-1.1e4 * SIZE, MODEL, "energies_apart"),
        (0.0, lambda x: -MODEL(x), "unconfined"),
    ],
)
@pytest.mark.parametrize("outside", [False, True])
def test_a_run_stops_by_the_first_reason(gap, model, name, outside):
    walkers, x = populations(jax.random.key(0), 16), data(8)

    class Near(ebm.MALA):
        def admits(self, model, batch):
            return jnp.array(not outside)

    found = soundness(Near(0.1), model, walkers, jnp.array(gap), jnp.array(32), x)
    name = "data_outside" if outside else name
    assert bool(found == getattr(eg.RESULTS, name))


def test_a_model_is_looked_at_every_sixteenth_step():
    walkers, kernel = populations(jax.random.key(0), 16), ebm.MALA(0.1)
    found = [
        soundness(
            kernel, lambda x: -MODEL(x), walkers, jnp.zeros(()), jnp.array(i), data(8)
        )
        for i in (15, 16)
    ]
    assert bool(found[0] == eg.RESULTS.successful)
    assert bool(found[1] == eg.RESULTS.unconfined)
