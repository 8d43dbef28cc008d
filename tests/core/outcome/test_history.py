"""Histories: tables and pictures, and what is said where there is nothing to draw."""

import pickle
import sys
from io import BytesIO

import jax.numpy as jnp
import numpy as np
import pytest

import effgen as eg
from tests.core.watched_runs import made


STEPS = np.arange(1, 4)


def test_scalars_are_real_numbers_a_step_under_flat_names():
    history = eg.History(
        {
            "loss": np.ones(3),
            "parts": {"a": np.zeros(3), "b": np.zeros((3, 2))},
            "wave": np.ones(3, complex),
            "words": np.array(["a", "b", "c"]),
        },
        STEPS,
    )
    assert list(history.scalars) == ["loss", "parts/a"]
    assert list(history.to_pandas()) == ["loss", "parts/a"]
    assert [axes.get_title() for axes in history.plot().axes] == ["loss", "parts/a"]


@pytest.mark.parametrize("dtype", [bool, np.int8, jnp.bfloat16, jnp.float8_e4m3fn])
def test_every_real_dtype_is_drawn_and_tabled(dtype):
    history = eg.History({"loss": np.ones(3, dtype)}, STEPS)
    assert history.to_pandas()["loss"].sum() == 3
    (axes,) = history.plot("loss").axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), np.ones(3))


def test_a_picture_is_shown_by_notebooks_and_unknown_to_pyplot():
    from matplotlib import pyplot

    picture = eg.History({"loss": np.ones(3)}, STEPS).plot()
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []
    picture.savefig(BytesIO(), format="svg")
    assert len(pickle.loads(pickle.dumps(picture)).axes) == 1


def test_nothing_to_draw_is_said():
    _, history = eg.drain(made(0))
    with pytest.raises(ValueError, match=r"took no steps.*num_steps=100"):
        history.plot()
    with pytest.raises(ValueError, match=r"none of the metrics \['vector'\]"):
        eg.History({"vector": np.ones((3, 2))}, STEPS).plot()
    with pytest.raises(KeyError, match="'accuracy'"):
        eg.History({"loss": np.ones(3)}, STEPS).plot("loss", "accuracy")


@pytest.mark.parametrize(
    ("package", "use"),
    [("matplotlib", lambda h: h.plot()), ("pandas", lambda h: h.to_pandas())],
)
def test_a_missing_package_is_named_with_its_extra(package, use, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    history = eg.History({"loss": np.ones(3)}, STEPS)
    with pytest.raises(ImportError, match=rf"{package}: .*'\.\[plots\]'"):
        use(history)


def test_without_tensorboardx_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[tensorboard\]'"):
        eg.tensorboard(made(), tmp_path / "board")
    assert not (tmp_path / "board").exists()
