"""What the linear algebra of an iteration costs: orderings, and a condensed border.

`python -m benchmarks.linear_solves`. Ipopt's own seconds an iteration with MUMPS's
orderings and scalings; and one KKT system solved by SuperLU, and by eliminating all
intervals side by side, then their interfaces in turn, and the parameters last (a Schur
complement), in one compiled function. Ipopt cannot be given the latter through cyipopt:
it shows what there is to gain.
"""

import itertools
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

import effgen as eg
from benchmarks import measure, odes, van_der_pol
from effgen import collocation as co
from effgen.collocation.derivatives import exact_blocks, jacobian_blocks
from effgen.collocation.evaluator import Evaluator


STAGES, SHIFT = 4, 1e-3
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
            "max_iter": 6,
        }
        trainer = co.CollocationTrainer(options=options)
        seconds = []
        for _ in range(3):
            state = trainer.init(model, level.guess())
            _, history = eg.fit(trainer, state, [level], key=odes.KEY)
            own = float(history["seconds"][-1] - history["evaluating"][-1])
            seconds.append(own / int(history["iterations"][-1]))
        rows[f"{name}, {scaled}"] = statistics.median(seconds)
    return rows


def matrix_of(nlp, z, multipliers):
    """Return the KKT matrix, its diagonal shifted, as SuperLU wants it."""
    functions = Evaluator(nlp, co.ExactHessian()).functions()
    first, second = functions.jacobian_pattern, functions.hessian_pattern
    size, rows = len(z), len(multipliers)
    values = functions.hessian(z, multipliers, 1.0)
    half = scipy.sparse.coo_matrix((values, (second.rows, second.columns)), (size,) * 2)
    half = half.tocsr()
    whole = half + scipy.sparse.tril(half, -1).T + SHIFT * scipy.sparse.eye(size)
    values = functions.jacobian(z)
    jacobian = scipy.sparse.coo_matrix(
        (values, (first.rows, first.columns)), (rows, size)
    )
    return scipy.sparse.bmat([[whole, jacobian.T], [jacobian, None]], format="csc")


@partial(jax.jit, static_argnums=(2, 3))
def condensed(blocks, right, stages, shift):
    """Return the solution of the KKT system: states, parameters, multipliers."""
    (first, second, inner, starts, is_first), (x, p, y) = blocks, right
    intervals, size = inner.shape[0], x.shape[1]
    num = p.shape[0]
    eye = jnp.eye(size)
    left = jnp.where(is_first[:, None, None], second.nodes[starts] + shift * eye, 0.0)
    nodes = second.nodes[inner] + shift * eye
    wide, tall = (1 + stages) * size, stages * size
    upper = jnp.zeros((intervals, wide, wide)).at[:, :size, :size].set(left)
    jac = jnp.zeros((intervals, stages, size, 1 + stages, size))
    for n in range(size):
        jac = jac.at[:, :, n, :, n].set(first.slopes[:, :, :, n])
    for k in range(stages):
        here = slice((1 + k) * size, (2 + k) * size)
        upper = upper.at[:, here, here].set(nodes[:, k])
        jac = jac.at[:, k, :, 1 + k].set(first.field_states[:, k])
    jac = jac.reshape(intervals, tall, wide)
    whole = jnp.zeros((intervals, wide + tall, wide + tall))
    whole = whole.at[:, :wide, :wide].set(upper).at[:, wide:, :wide].set(jac)
    whole = whole.at[:, :wide, wide:].set(jnp.swapaxes(jac, 1, 2))
    at_start = jnp.where(is_first[:, None, None], second.border[starts], 0.0)
    border = jnp.concatenate(
        [
            at_start,
            second.border[inner].reshape(intervals, tall, num),
            first.field_model.reshape(intervals, tall, num),
        ],
        axis=1,
    )
    known = jnp.concatenate(
        [
            jnp.where(is_first[:, None], x[starts], 0.0),
            x[inner].reshape(intervals, tall),
            y.reshape(intervals, tall),
        ],
        axis=1,
    )
    links = jnp.zeros((intervals, wide + tall, 2 * size))
    links = links.at[:, :size, :size].set(jnp.where(is_first[:, None, None], 0, eye))
    goes_on = ~jnp.append(is_first[1:], True)
    last = slice(wide - size, wide)
    links = links.at[:, last, size:].set(jnp.where(goes_on[:, None, None], -eye, 0))
    given = jnp.concatenate([border, links, known[..., None]], axis=2)
    found = jnp.linalg.solve(whole, given)
    by_links = jnp.swapaxes(links, 1, 2) @ found
    into, out = by_links[:, :size], by_links[:, size:]
    before = jnp.roll(out, 1, axis=0)
    absent = is_first[:, None, None]
    pick = lambda a, s: a[..., s]
    own, later = slice(num, num + size), slice(num + size, num + 2 * size)
    diagonal = pick(into, own) + pick(before, later)
    diagonal = jnp.where(absent, eye, diagonal)
    lower = jnp.where(absent, 0, pick(before, own))
    above = jnp.where(goes_on[:, None, None], pick(into, later), 0)
    above = jnp.where(absent, 0, above)
    rest = jnp.concatenate([into[..., :num], into[..., -1:]], axis=2)
    rest += jnp.concatenate([before[..., :num], before[..., -1:]], axis=2)
    rest = jnp.where(absent, 0, rest)
    solved = _tridiagonal(lower, diagonal, above, rest)
    # Interfaces: nu = solved_r - solved_B p, as their rows are E^T w = 0.
    joined = jnp.concatenate([solved, jnp.roll(solved, -1, axis=0)], axis=1)
    link_part = found[..., num : num + 2 * size]
    w_border = found[..., :num] - link_part @ joined[..., :num]
    w_known = found[..., -1] - (link_part @ joined[..., num:])[..., 0]
    schur = second.model + shift * jnp.eye(num)
    schur -= jnp.einsum("ikp,ikq->pq", border, w_border)
    p = jnp.linalg.solve(schur, p - jnp.einsum("ikp,ik->p", border, w_known))
    w = w_known - w_border @ p
    states = (
        jnp.zeros_like(x)
        .at[inner]
        .set(w[:, size:wide].reshape(intervals, stages, size))
    )
    firsts = jnp.where(is_first, starts, x.shape[0])
    states = states.at[firsts].set(w[:, :size], mode="drop")
    return states, p, w[:, wide:]


def _tridiagonal(lower, diagonal, above, right):
    """Solve for blocks in turn (Thomas)."""

    def down(carry, row):
        top, value = carry
        low, own, high, there = row
        here = jnp.linalg.solve(
            own - low @ top, jnp.concatenate([high, there - low @ value], axis=1)
        )
        size = own.shape[0]
        carry = here[:, :size], here[:, size:]
        return carry, carry

    zero = jnp.zeros_like(lower[0]), jnp.zeros_like(right[0])
    _, (tops, values) = jax.lax.scan(down, zero, (lower, diagonal, above, right))

    def up(later, row):
        top, value = row
        here = value - top @ later
        return here, here

    _, found = jax.lax.scan(up, jnp.zeros_like(right[0]), (tops, values), reverse=True)
    return found


def systems(level, model):
    """Return the seconds of one system by SuperLU and condensed, and their distance."""
    nlp = level.program(model)
    shape = level.guess().positions.shape
    z = nlp.joined(level.guess().positions)
    rng = np.random.default_rng(0)
    multipliers = 1e-3 * rng.normal(size=level.mesh.inner.size * 2)
    matrix = matrix_of(nlp, z, multipliers)
    right = rng.normal(size=matrix.shape[0])
    nodes, num = int(np.prod(shape)), len(nlp.flat())
    given = (jnp.asarray(z), jnp.asarray(multipliers), jnp.asarray(1.0))
    first = jax.jit(lambda z: jacobian_blocks(nlp, z))(given[0])
    second = jax.jit(lambda *a: exact_blocks(nlp, *a, ()))(*given)
    mesh = level.mesh
    is_first = np.isin(mesh.left, mesh.starts)
    blocks = (first, second, *map(jnp.asarray, (mesh.inner, mesh.left, is_first)))
    parts = (
        jnp.asarray(right[:nodes].reshape(shape)),
        jnp.asarray(right[nodes : nodes + num]),
        jnp.asarray(right[nodes + num :]),
    )
    ours = lambda: condensed(blocks, parts, STAGES, SHIFT)
    theirs = lambda: scipy.sparse.linalg.splu(matrix).solve(right)
    found = np.concatenate([np.asarray(part).ravel() for part in ours()])
    distance = np.abs(found - theirs()).max() / np.abs(found).max()
    times = measure.interleaved({"condensed": ours, "SuperLU": theirs}, rounds=11)
    medians = {name: statistics.median(t) for name, t in times.items()}
    return {"seconds": medians, "distance": float(distance)}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    rows = []
    for intervals, width in PROGRAMS:
        jax.clear_caches()
        level, model = level_of(intervals), van_der_pol.model_of(1, width)
        row = {"nodes": level.mesh.num_nodes, "width": width}
        row["systems"] = systems(level, model)
        print(row, flush=True)
        row["ipopt_seconds_per_iteration"] = orderings(level, model)
        rows.append(row)
        print(row, flush=True)
        measure.write("linear_solves", {"programs": rows})
