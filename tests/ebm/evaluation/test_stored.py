"""A density in a file: what is loaded is what was saved, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effgen import ebm


TO = ebm.Standardized.of(np.random.default_rng(0).normal(5.0, [1.0, 100.0], (50, 2)))


def energy(key=0, **settings):
    settings = {"width_size": 8, "coordinates": TO} | settings
    return ebm.mlp_energy((2,), key=jax.random.key(key), **settings)


def density(key=0):
    walkers = ebm.Walkers.from_gaussian(jax.random.key(1), 512, (2,), coordinates=TO)
    return ebm.NormalizedEnergy.from_walkers(energy(key), walkers.in_blocks(16))


@pytest.mark.slow
def test_what_is_loaded_is_what_was_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = density()
    for _ in range(2):  # it may be written over
        saved.save("density.eqx")
    found = ebm.NormalizedEnergy.load("density.eqx", energy(key=3))
    x = jnp.array([[5.0, 90.0], [4.0, -100.0]])
    np.testing.assert_array_equal(found.log_prob(x), saved.log_prob(x))
    for name in ("log_partition", "standard_error", "ess", "spread", "imbalance"):
        assert float(getattr(found, name)) == float(getattr(saved, name)), name
    assert found.shape == (2,)
    assert [path.name for path in tmp_path.iterdir()] == ["density.eqx"]


def test_a_density_that_you_make_yourself_is_saved_too(tmp_path):
    by_hand = ebm.NormalizedEnergy(energy(), jnp.array(1.5), jnp.array(0.1), shape=(2,))
    by_hand.save(tmp_path / "density")
    found = ebm.NormalizedEnergy.load(tmp_path / "density", energy())
    assert float(found.log_partition) == 1.5
    assert float(found.pareto_k) == -np.inf


def test_a_setting_that_is_no_array_must_be_the_same(tmp_path):
    def saved(scale, temperature):
        model = ebm.TemperedEnergy(energy(scale=scale), temperature)
        return ebm.NormalizedEnergy(model, jnp.zeros(()), jnp.zeros(()), (2,))

    saved(2, 3).save(tmp_path / "density")
    found = ebm.NormalizedEnergy.load(tmp_path / "density", saved(2.0, 3.0).energy)
    assert found.energy.temperature == 3.0
    for scale, temperature, named in (
        (1.0, 3.0, r"in 2 setting\(s\): energy.energy.network.unit: 2.0 was saved"),
        (2.0, 1.0, r"in 1 setting\(s\): energy.temperature: 3.0 was saved, .* has 1.0"),
    ):
        with pytest.raises(ValueError, match=named):
            ebm.NormalizedEnergy.load(
                tmp_path / "density", saved(scale, temperature).energy
            )


def test_another_energy_or_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "density.eqx"
    density().save(path)
    with pytest.raises(ValueError, match=r"in 5 array\(s\).*float32\[8, 2\] was saved"):
        ebm.NormalizedEnergy.load(path, energy(width_size=9))
    with pytest.raises(ValueError, match=r"the one given has nothing"):
        ebm.NormalizedEnergy.load(path, energy(coordinates=None))
    with pytest.raises(FileNotFoundError):
        ebm.NormalizedEnergy.load(tmp_path / "none", energy())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for damaged in (bytes(content), content[:-1], b"", b"{}\n", b"[1]\nx"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged, or no saved density"):
            ebm.NormalizedEnergy.load(path, energy())
