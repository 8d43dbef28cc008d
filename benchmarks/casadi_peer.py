"""The same program as effgen's, stated by hand in CasADi, on SX graphs."""

import time

import casadi as ca
import numpy as np

from effgen.collocation.states.radau_points import radau


def network(sizes):
    """Return a tanh network of raveled weights, in Equinox's order, and how many."""
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    num = sum(o * i + o for o, i in shapes)
    flat, x = ca.SX.sym("flat", num), ca.SX.sym("x", sizes[0])
    value, at = x, 0
    for k, (o, i) in enumerate(shapes):
        weight = ca.reshape(flat[at : at + o * i], i, o).T
        bias = flat[at + o * i : at + o * i + o]
        at += o * i + o
        value = weight @ value + bias
        value = ca.tanh(value) if k < len(shapes) - 1 else value
    return ca.Function("network", [x, flat], [value]), num


def program(transcription, field, num_model, observe=lambda x: x):
    """Return CasADi's program of `field(x, u, flat)`, states scaled."""
    problem, mesh, samples = (
        transcription.problem,
        transcription.mesh,
        transcription.samples,
    )
    size, nominal = problem.num_states, problem.nominal
    states = ca.MX.sym("states", size, mesh.num_nodes)
    flat = ca.MX.sym("flat", num_model)
    x = ca.SX.sym("x", size)
    p = ca.SX.sym("p", num_model)
    u = ca.SX.sym("u", mesh.inputs.shape[1])
    right = ca.Function("right", [x, u, p], [field(x * nominal, u, p) / nominal])
    inner = mesh.inner.reshape(-1).tolist()
    slopes = right.map(len(inner))(
        states[:, inner], ca.DM(mesh.inputs[inner].T), ca.repmat(flat, 1, len(inner))
    )
    table = radau(mesh.stages).differentiation
    defects = []
    for i, (left, nodes) in enumerate(zip(mesh.left, mesh.inner, strict=True)):
        points = states[:, [int(left), *nodes.tolist()]]
        first = i * mesh.stages
        here = slopes[:, first : first + mesh.stages]
        defects.append(ca.vec(points @ table.T - mesh.lengths[i] * here))
    all_points = np.concatenate([mesh.left[:, None], mesh.inner], axis=1)
    found = [
        states[:, all_points[i].tolist()] @ basis
        for i, basis in zip(samples.interval, samples.basis, strict=True)
    ]
    measured = ca.Function("measured", [x], [ca.vcat([observe(x * nominal)])])
    outputs = measured.map(len(found))(ca.horzcat(*found))
    error = (outputs - samples.ys.T) / problem.scale[:, None]
    loss = 0.5 * ca.sumsqr(error * samples.mask.T) / samples.mask.sum()
    loss += 0.5 * problem.weight_decay * ca.sumsqr(flat)
    z = ca.vertcat(ca.vec(states), flat)
    return {"x": z, "f": loss, "g": ca.vertcat(*defects)}


def solved(build, start, limits, *, tol, max_iter=1_000):
    """Build, solve, and return the result with the seconds of each."""
    began = time.perf_counter()
    nlp = build()
    options = {
        "ipopt.tol": tol,
        "ipopt.max_iter": max_iter,
        "ipopt.print_level": 0,
        "ipopt.sb": "yes",
        "print_time": False,
    }
    solver = ca.nlpsol("solver", "ipopt", nlp, options)
    built = time.perf_counter() - began
    found = solver(x0=start, lbx=limits.lower, ubx=limits.upper, lbg=0, ubg=0)
    stats = solver.stats()
    return {
        "objective": float(found["f"]),
        "seconds_to_build": built,
        "seconds_to_solve": time.perf_counter() - began - built,
        "iterations": stats["iter_count"],
        "status": stats["return_status"],
        "z": np.asarray(found["x"]).ravel(),
    }
