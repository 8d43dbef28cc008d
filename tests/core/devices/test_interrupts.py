"""Signals: held while a run computes, told to every run, given back at its end."""

import os
import signal
import threading
import time
import warnings

import jax.numpy as jnp
import pytest

import effgen as eg
from effgen.core.devices.interrupts import Interrupts
from tests.cases import KEY
from tests.core.tiny import OnHost, Total, ones


def made(num_steps=5, data=ones, every=1):
    return eg.train(
        Total(), Total().init(), data, key=KEY, num_steps=num_steps, every=every
    )


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert before == [signal.getsignal(number) for number in numbers]


def sigterm_is_held():
    return signal.getsignal(signal.SIGTERM) not in (
        signal.SIG_DFL,
        signal.default_int_handler,
    )


def test_a_run_holds_sigterm_from_its_first_step_to_its_last():
    run = made(2)
    assert not sigterm_is_held()
    next(run)
    assert sigterm_is_held()
    next(run)
    assert list(run) == []
    assert not sigterm_is_held()


def test_a_run_that_fails_gives_signals_back():
    run = made(data=[jnp.ones(1), jnp.full(1, jnp.nan)])
    with pytest.raises(eg.TrainingError):
        list(run)
    assert not sigterm_is_held()


def test_a_run_that_is_dropped_gives_signals_back():
    run = made()
    next(run)
    del run
    assert not sigterm_is_held()


def test_what_a_run_was_wrapped_from_has_no_signals_to_give_back():
    inner = made()
    outer = eg.progress(inner)
    next(outer)
    del inner
    assert sigterm_is_held()
    list(outer)


def test_runs_side_by_side_share_the_signals():
    short, long = made(2), made(4)
    pairs = zip(short, long, strict=False)
    assert [(int(a[0].step), int(b[0].step)) for a, b in pairs] == [(1, 1), (2, 2)]
    assert sigterm_is_held()
    signal.raise_signal(signal.SIGTERM)
    with pytest.warns(eg.RunWarning, match="SIGTERM"):
        assert list(long) == []
    assert long.result == eg.RESULTS.terminated
    assert short.result == eg.RESULTS.successful


def test_a_run_inside_another_s_loop_tells_both():
    outer = made()

    def steps():
        for state, _ in outer:
            yield int(state.step)
            if int(state.step) == 2:
                inner = made(100)
                for mine, _ in inner:
                    if int(mine.step) == 3:
                        signal.raise_signal(signal.SIGTERM)
                assert inner.result == eg.RESULTS.terminated

    with pytest.warns(eg.RunWarning, match="SIGTERM"):
        assert list(steps()) == [1, 2]
    assert outer.result == eg.RESULTS.terminated


def test_a_second_sigterm_acts_at_once():
    run = made()
    next(run)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert not sigterm_is_held()


class Interrupted(OnHost):
    """Its step takes so long that somebody interrupts it, twice."""

    def step(self, state, batch, *, key):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")


def test_a_second_ctrl_c_acts_at_once():
    trainer = Interrupted()
    run = eg.train(trainer, trainer.init(), ones, key=KEY, num_steps=3)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert not sigterm_is_held()


def test_the_data_s_wait_hears_ctrl_c():
    waits = threading.Event()

    def interrupting():
        yield jnp.ones(1)
        os.kill(os.getpid(), signal.SIGINT)
        waits.wait(20)

    run = made(data=interrupting())
    with pytest.warns(eg.RunWarning, match="Ctrl-C"):
        assert len(list(run)) <= 1  # the source is read ahead of the steps
    waits.set()
    assert run.result == eg.RESULTS.interrupted


def test_what_is_ignored_stays_ignored():
    # As under `nohup`, or in the background of a script.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = made(3)
        next(run)

        def ignored():
            signal.raise_signal(signal.SIGINT)
            return jnp.ones(1)

        data = (ignored() if i == 1 else jnp.ones(1) for i in range(3))
        state, history = eg.drain(made(3, data=data))
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(state.step) == 3
    assert history.result == eg.RESULTS.successful


def test_a_handler_set_in_the_loop_is_left():
    def mine(number, frame):
        pass

    before = signal.getsignal(signal.SIGTERM)
    run = made()
    next(run)
    signal.signal(signal.SIGTERM, mine)
    list(run)
    assert signal.signal(signal.SIGTERM, before) is mine


def test_a_forked_worker_can_be_terminated():
    # Loaders fork their workers while a run holds signals, and terminate them later.
    run = made()
    next(run)
    ready, say = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork
        worker = os.fork()
    if worker == 0:
        os.write(say, b".")
        time.sleep(20)
        os._exit(0)
    assert os.read(ready, 1) == b"."
    os.close(ready)
    os.close(say)
    os.kill(worker, signal.SIGTERM)
    _, status = os.waitpid(worker, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
    list(run)
    assert run.result == eg.RESULTS.successful


def test_a_run_in_a_forked_process_hears_its_own_signals():
    run = made()
    next(run)  # the parent's holds signals while it forks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork
        worker = os.fork()
    if worker == 0:
        mine = Interrupts()
        mine.hold(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        os._exit(7 if mine.result is not None else 1)
    _, status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    list(run)
    assert run.result == eg.RESULTS.successful


def test_a_run_in_another_thread_leaves_signals_alone():
    held, run = [], made(3)

    def body():
        for _ in run:
            held.append(sigterm_is_held())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert held == [False] * 3


@pytest.mark.parametrize("wrap", [eg.progress, lambda run: eg.guarded(run, eg.Skip())])
def test_a_run_that_started_is_wrapped_no_more(wrap):
    run = made(2)
    next(run)
    with pytest.raises(RuntimeError, match="this run has started: wrap it before"):
        wrap(run)
    assert [int(state.step) for state, _ in run] == [2]
