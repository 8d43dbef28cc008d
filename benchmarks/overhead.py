"""What the core costs: `train` against a hand-written scan, and peers' own loops.

The work is one: a small multilayer perceptron, adam, minibatches drawn on the device.
Ours runs with its bar, its log and its guard; the hand-written loop has none of them.
"""

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import effgen as eg
from benchmarks import measure


ROUNDS = 11
KEY = jax.random.key(0)


class Regression(eg.AbstractTrainer):
    """Least squares."""

    optim: optax.GradientTransformation

    def init(self, model, memory=None):
        return eg.TrainState.start(model, eg.init_opt_state(self.optim, model), memory)

    def step(self, state, batch, *, key):
        loss, gradients = eqx.filter_value_and_grad(mean_square)(state.model, batch)
        model, opt_state = eg.apply_gradients(
            self.optim, gradients, state.opt_state, state.model
        )
        return state.advance(model, opt_state, state.memory), {"loss": loss}


def mean_square(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def problem(width: int) -> tuple[Any, Any, Any]:
    """Return a model, data and batches; 64 rows of 4 numbers a batch."""
    keys = jax.random.split(KEY, 2)
    x = jax.random.normal(keys[0], (4096, 4))
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    model = eqx.nn.MLP(4, 1, width, 2, key=keys[1])
    return model, (x, y), eg.Minibatches((x, y), 64)


def ours(width: int, num_steps: int) -> Callable[[], Any]:
    """Return our run, with everything on that a user would have on."""
    model, _, batches = problem(width)
    trainer = Regression(optax.adam(1e-3))
    state = trainer.init(model)
    folder = Path(tempfile.mkdtemp())

    def work() -> Any:
        run = eg.train(
            trainer, state, batches, key=KEY, num_steps=num_steps, every=num_steps // 4
        )
        with redirect_stderr(io.StringIO()):
            run = eg.logged(eg.progress(run), folder / "log.jsonl")
            return eg.drain(run)[0].model

    return work


def by_hand(width: int, num_steps: int) -> Callable[[], Any]:
    """Return what one would write in a notebook: one scan, nothing else."""
    model, _, batches = problem(width)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optim = optax.adam(1e-3)

    @partial(jax.jit, donate_argnums=0)
    def loop(carry, batches):
        def body(carry, step):
            params, opt_state = carry
            batch = batches.batch_at(step, key=KEY)
            loss, gradients = jax.value_and_grad(
                lambda p: mean_square(eqx.combine(p, static), batch)
            )(params)
            updates, opt_state = optim.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(body, carry, jnp.arange(num_steps))

    def work() -> Any:
        carry = jax.tree.map(jnp.copy, (params, optim.init(params)))
        carry, losses = loop(carry, batches)
        jax.device_get(losses)
        return carry

    return work


def equinox_loop(width: int, num_steps: int) -> Callable[[], Any]:
    """Return the loop of equinox's documentation: one `filter_jit` call a step."""
    model, arrays, _ = problem(width)
    optim = optax.adam(1e-3)

    @eqx.filter_jit
    def step(model, opt_state, batch):
        loss, gradients = eqx.filter_value_and_grad(mean_square)(model, batch)
        updates, opt_state = optim.update(
            gradients, opt_state, eqx.filter(model, eqx.is_inexact_array)
        )
        return eqx.apply_updates(model, updates), opt_state, loss

    def work() -> Any:
        trained, losses = model, []
        opt_state = optim.init(eqx.filter(model, eqx.is_inexact_array))
        for i in range(num_steps):
            rows = slice(i * 64 % 4096, i * 64 % 4096 + 64)
            batch = tuple(a[rows] for a in arrays)
            trained, opt_state, loss = step(trained, opt_state, batch)
            losses.append(loss.item())
        return eqx.filter(trained, eqx.is_array)

    return work


def flowjax_loop(width: int, num_steps: int) -> Callable[[], Any]:
    """Return flowjax's `fit_to_data` on the same problem: 63 batches an epoch."""
    from flowjax.train import fit_to_data

    model, (x, y), _ = problem(width)
    epochs = max(1, num_steps // 63)

    def loss(params, static, x, y, *, key=None):
        return mean_square(eqx.combine(params, static), (x, y))

    def work() -> Any:
        trained, _ = fit_to_data(
            KEY,
            model,
            data=(x, y),
            loss_fn=loss,
            optimizer=optax.adam(1e-3),
            max_epochs=epochs,
            max_patience=epochs + 1,
            batch_size=64,
            val_prop=0.015,
            show_progress=False,
        )
        return eqx.filter(trained, eqx.is_array)

    return work


def dynamax_loop(width: int, num_steps: int) -> Callable[[], Any]:
    """Return dynamax's `run_sgd` on the same problem: 64 batches an epoch."""
    from dynamax.utils.optimize import run_sgd

    model, arrays, _ = problem(width)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, batch):
        return mean_square(eqx.combine(params, static), batch)

    def work() -> Any:
        return run_sgd(
            loss,
            params,
            arrays,
            optimizer=optax.adam(1e-3),
            batch_size=64,
            num_epochs=max(1, num_steps // 64),
        )

    return work


def against_by_hand() -> list[dict[str, Any]]:
    """Return the ratios over the hand-written scan at several step costs."""
    rows = []
    for width, num_steps in ((16, 200_000), (80, 60_000), (640, 4_000)):
        contestants = {
            "ours": ours(width, num_steps),
            "by_hand": by_hand(width, num_steps),
        }
        times = measure.interleaved(contestants, rounds=ROUNDS)
        per_step = {
            n: 1e6 * sorted(t)[len(t) // 2] / num_steps for n, t in times.items()
        }
        ratio = measure.paired_ratio(times["ours"], times["by_hand"])
        rows.append({"width": width, "microseconds_per_step": per_step, "ratio": ratio})
    return rows


def against_peers() -> dict[str, Any]:
    """Return microseconds a step of each loop on a small problem, and the ratios."""
    width, num_steps = 32, 1_280
    makers = {"ours": ours, "equinox_readme": equinox_loop}
    makers |= {"flowjax": flowjax_loop, "dynamax": dynamax_loop}
    contestants = {name: make(width, num_steps) for name, make in makers.items()}
    contestants["ours"] = ours(width, 20 * num_steps)
    times = measure.interleaved(contestants, rounds=5)
    steps = {name: num_steps for name in makers} | {"ours": 20 * num_steps}
    steps["flowjax"] = 63 * (num_steps // 63)
    medians = {n: 1e6 * sorted(t)[2] / steps[n] for n, t in times.items()}
    ratios = {n: m / medians["ours"] for n, m in medians.items() if n != "ours"}
    return {"microseconds_per_step": medians, "times_ours": ratios}


if __name__ == "__main__":
    measure.write("overhead", {"by_hand": against_by_hand(), "peers": against_peers()})
