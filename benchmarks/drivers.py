"""Never the slow loop: our choice against each loop there is, on convolutions.

An image energy's step is compiled as `train` compiles it, with the loop it chooses and
with each one forced. On a CPU a compiled loop over convolutions is the slow one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import effgen as eg
from benchmarks import measure
from effgen import ebm
from effgen.core.contract.static import Static, arrays_of
from effgen.core.running import loops, program
from effgen.core.running.job import run_keys


KEY = jax.random.key(0)
NUM_STEPS = 16


def problem() -> tuple[Any, Any, Any]:
    """Return a trainer of two Langevin moves a step, its state and its data."""
    keys = jax.random.split(KEY, 3)
    shape = (1, 28, 28)
    energy = ebm.image_energy(shape, key=keys[0], channels=(8, 16))
    walkers = ebm.Walkers.from_gaussian(keys[1], 16, shape)
    optim = optax.adam(1e-4)
    trainer = ebm.JarzynskiTrainer(optim, kernel=ebm.ULA(1e-3), num_moves=2)
    data = eg.Minibatches(jax.random.normal(keys[2], (64, *shape)), 16)
    return trainer, trainer.init(energy, walkers), data


def compiled(outer: str | None, inner: str | None) -> program.Program:
    """Return the program with its loops forced, or, for `None`, chosen."""
    trainer, state, data = problem()
    choose, detect = program.choose_driver, loops.has_convolution
    if outer is not None:
        program.choose_driver = lambda _: outer
    if inner is not None:
        loops.has_convolution = lambda _: inner == "unrolled"
    inputs = program.Inputs(arrays_of((trainer, data)), *run_keys(KEY))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (arrays_of(state), inputs)
    )
    statics = Static(state), Static((trainer, data))
    program.compiled_program.cache_clear()
    try:
        return program.compiled_program(statics, shapes, None, None)
    finally:
        program.choose_driver, loops.has_convolution = choose, detect


def unrolled() -> Any:
    """Return all steps as one program without a loop."""
    trainer, state, data = problem()
    data_key, noise_key = run_keys(KEY)

    @jax.jit
    def steps(arrays: Any) -> Any:
        current, reported = Static(state).combine(arrays), []
        for _ in range(NUM_STEPS):
            batch = data.batch_at(current.step, key=data_key)
            key = jax.random.fold_in(noise_key, current.step)
            current, metrics = trainer.step(current, batch, key=key)
            reported.append(metrics)
        return arrays_of(current), reported

    def work() -> Any:
        arrays, reported = steps(arrays_of(state))
        jax.device_get(reported)
        return arrays

    return work


def main() -> None:
    """Measure, and write the ratios of our choice over each."""
    trainer, state, data = problem()
    inputs = program.Inputs(arrays_of((trainer, data)), *run_keys(KEY))
    forced = {
        "chosen": (None, None),
        "scan": ("scan", "loop"),
        "scan_unrolled_moves": ("scan", "unrolled"),
        "dispatch_looped_moves": ("dispatch", "loop"),
        "dispatch": ("dispatch", "unrolled"),
    }
    programs = {name: compiled(*loops_) for name, loops_ in forced.items()}

    def advance(made: program.Program) -> Any:
        arrays = tuple(map(jnp.asarray, arrays_of(state)))
        return lambda: made.advance(arrays, inputs, None, 0, NUM_STEPS).state

    contestants = {name: advance(made) for name, made in programs.items()}
    contestants["unrolled_steps"] = unrolled()
    times = measure.interleaved(contestants, rounds=9)
    best = [min(t) for t in zip(*(v for k, v in times.items() if k != "chosen"))]
    measure.write(
        "drivers",
        {
            "chosen_driver": programs["chosen"].driver,
            "milliseconds_per_step": {
                name: 1e3 * sorted(t)[len(t) // 2] / NUM_STEPS
                for name, t in times.items()
            },
            "chosen_over_best_of_round": measure.paired_ratio(times["chosen"], best),
            "chosen_over": {
                name: measure.paired_ratio(times["chosen"], t)
                for name, t in times.items()
                if name != "chosen"
            },
        },
    )


if __name__ == "__main__":
    main()
