"""What the linear algebra of an iteration costs: MUMPS's orderings and scalings.

`python -m benchmarks.linear_solves`. Ipopt's own seconds an iteration.
"""

import itertools
import statistics

import jax

import effgen as eg
from benchmarks import measure, odes, van_der_pol
from effgen import collocation as co


STAGES = 4
PROGRAMS = ((25, 8), (100, 8), (25, 20))
ORDERINGS = {"Ipopt's choice": 7, "minimum degree": 0, "quasi-dense": 6}
SCALINGS = {"scaled": (7, 77), "not permuted": (0, 77), "not scaled": (0, 0)}


def level_of(intervals):
    """Return a level whose samples are at nodes, so that blocks are of one interval."""
    problem = van_der_pol.problem_of(van_der_pol.enhanced, num=intervals + 1)
    return co.transcribe(problem, intervals=intervals, stages=STAGES)


def orderings(level, model):
    """Return Ipopt's own seconds an iteration, of six; the median of three."""
    rows = {}
    choices = itertools.product(ORDERINGS.items(), SCALINGS.items())
    for (name, order), (scaled, (permute, scaling)) in choices:
        options = {
            "mumps_pivot_order": order,
            "mumps_permuting_scaling": permute,
            "mumps_scaling": scaling,
        }
        trainer = co.CollocationTrainer(max_iter=6, solver=co.Ipopt(options=options))
        seconds = []
        for _ in range(3):
            state = trainer.init(model, level.guess())
            _, history = eg.fit(trainer, state, [level], key=odes.KEY)
            own = float(history["seconds"][-1] - history["evaluating"][-1])
            seconds.append(own / int(history["iterations"][-1]))
        rows[f"{name}, {scaled}"] = statistics.median(seconds)
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    rows = []
    for intervals, width in PROGRAMS:
        jax.clear_caches()
        level, model = level_of(intervals), van_der_pol.model_of(1, width)
        row = {"nodes": level.mesh.num_nodes, "width": width}
        row["ipopt_seconds_per_iteration"] = orderings(level, model)
        rows.append(row)
        print(row, flush=True)
        measure.write("linear_solves", {"programs": rows})
