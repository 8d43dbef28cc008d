"""Errors of a run travel: they can be copied and pickled with what they hold."""

import concurrent.futures
import copy
import multiprocessing
import pickle
import threading

import equinox as eqx
import jax
import numpy as np
import pytest

import effgen as eg
from tests.cases import KEY


def failure(state=None, **rest):
    metrics = {"loss": np.full((), np.nan)}
    result = eg.RESULTS.nonfinite
    return eg.TrainingError(
        "step 3 failed", result=result, step=3, state=state, metrics=metrics, **rest
    )


def network(activation=jax.nn.relu):
    model = eqx.nn.MLP(2, 1, 4, 1, activation, key=KEY)
    return eg.TrainState.start(model, None, jax.random.key(7))


WAYS = {
    "pickled": lambda x: pickle.loads(pickle.dumps(x)),
    "pickled, first protocol": lambda x: pickle.loads(pickle.dumps(x, 0)),
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.silu, jax.numpy.tanh])
def test_an_error_travels_with_all_it_holds(way, activation):
    state = network(activation)
    history = eg.History({"loss": np.ones(2)}, np.arange(1, 3))
    error = failure(state, attempt=state, history=history, position={"at": 5})
    error.add_note("seen on rank 1")
    other = way(error)
    assert type(other) is eg.TrainingError
    assert str(other) == "step 3 failed"
    assert other.__notes__ == ["seen on rank 1"]
    assert (other.step, other.position) == (3, {"at": 5})
    assert other.result == eg.RESULTS.nonfinite
    assert eg.state_digest(other.state) == eg.state_digest(state)
    assert eg.state_digest(other.attempt) == eg.state_digest(state)
    np.testing.assert_array_equal(other.history["loss"], np.ones(2))
    assert other.history.result == eg.RESULTS.successful
    assert np.isnan(other.metrics["loss"])
    np.testing.assert_array_equal(
        jax.vmap(other.state.model)(np.ones((3, 2), np.float32)),
        jax.vmap(state.model)(np.ones((3, 2), np.float32)),
    )


def test_functions_of_a_script_travel_by_their_code():
    scale = 3.0
    state = network(lambda x, *, by=2.0: by * scale * x)
    other = pickle.loads(pickle.dumps(failure(state)))
    assert other.state.model.activation(5.0) == 30.0


def test_what_cannot_be_pickled_is_left_behind_with_a_note():
    error = failure({"lock": threading.Lock()})
    other = pickle.loads(pickle.dumps(error))
    assert other.state is None
    assert other.step == 3
    (note,) = other.__notes__
    assert note.startswith("`state` was left behind")
    assert not hasattr(error, "__notes__")


def test_an_error_s_other_attributes_are_empty_until_set():
    error = failure()
    assert (error.attempt, error.history, error.position) == (None, None, None)
    error.history = eg.History({}, np.arange(0))
    assert len(copy.copy(error).history) == 0


@pytest.mark.parametrize("name", ["successful", "nonfinite", "terminated"])
def test_results_travel(name):
    item = getattr(eg.RESULTS, name)
    for way in WAYS.values():
        assert way(item) == item
        assert eg.RESULTS[way(item)] == eg.RESULTS[item]


def test_an_error_of_another_thread_or_process_arrives():
    def work():
        raise failure(network())

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        caught = pool.submit(work).exception()
    assert isinstance(caught, eg.TrainingError)
    # What a pool of processes does to an exception, without a second JAX.
    sender, receiver = multiprocessing.Pipe()
    sender.send(caught)
    assert receiver.recv().step == 3
