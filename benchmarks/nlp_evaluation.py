"""One evaluation of a program, objective to Hessian, as nodes and parameters grow.

`python -m benchmarks.nlp_evaluation`. A Van der Pol oscillator with a network; CasADi
evaluates the same program by its virtual machine, and compiled from C where a compiler
is at hand. The last part shows what of Ipopt's time is its own.
"""

import shutil
import statistics
import tempfile

import jax
import numpy as np

import effgen as eg
from benchmarks import measure, odes, van_der_pol
from effgen import collocation as co
from effgen.collocation.program.evaluator import Evaluator
from effgen.collocation.program.violations import check_size


STAGES = 5
NODES = (100, 1_000, 10_000, 100_000)
WIDTHS = {1: 10, 8: 105, 24: 697, 42: 1_975}
LARGEST, LARGEST_PEER = 12_000_000, 1_000
# A C compiler takes five minutes for a program of this size, and memory beyond it.
LARGEST_C = 10_000


def level_of(nodes):
    """Return a level of about as many nodes, on one long trajectory."""
    intervals = max(nodes // STAGES, 1)
    ts = np.linspace(0, 7.0, 2 * intervals + 1)
    x = van_der_pol.truth(np.array([1.0, 0.0]), ts)
    problem = co.Problem(van_der_pol.enhanced, (ts, x), weight_decay=1e-6)
    return co.transcribe(problem, intervals=intervals, stages=STAGES)


def start_of(level, model):
    nlp = level.program(model)
    return nlp, nlp.joined(level.guess().positions)


def evaluation(nlp, z):
    """Return one evaluation of everything at a new point, as Ipopt asks for it."""
    functions = Evaluator(nlp, co.ExactHessian()).functions()
    rng = np.random.default_rng(0)
    multipliers = rng.normal(size=len(functions.constraints(z)))

    def evaluate():
        at = z + 1e-3 * rng.normal(size=len(z))
        return (
            functions.objective(at),
            functions.gradient(at),
            functions.constraints(at),
            functions.jacobian(at),
            functions.hessian(at, multipliers, 1.0),
        )

    return evaluate


def peers(level, width, z):
    """Return CasADi's evaluations, by its virtual machine and compiled."""
    import casadi as ca

    from benchmarks import casadi_peer as peer

    net, num = peer.network([2, width, width, 1])
    field = lambda x, u, p: ca.vertcat(x[1], net(x, p) - x[0])
    stated = peer.program(level, field, num)
    x, f, g = stated["x"], stated["f"], stated["g"]
    multipliers = ca.MX.sym("multipliers", g.shape[0])
    gradient = ca.gradient(f, x)
    second = ca.tril(ca.hessian(f + ca.dot(multipliers, g), x)[0])
    outputs = [f, gradient, g, ca.jacobian(g, x), second]
    whole = ca.Function("whole", [x, multipliers], outputs)
    rng = np.random.default_rng(0)
    given = rng.normal(size=g.shape[0])
    at = lambda: z + 1e-3 * rng.normal(size=len(z))
    found = {"CasADi's virtual machine": lambda: whole(at(), given)}
    if shutil.which("gcc") and len(level.mesh.ts) * num <= LARGEST_C:
        importer = ca.Importer(
            _code(whole), "shell", {"compiler": "gcc", "flags": "-O1"}
        )
        compiled = ca.external("whole", importer)
        found["CasADi, C"] = lambda: compiled(at(), given)
    return found


def _code(function):
    """Return the name of a file of CasADi's C."""
    import casadi as ca

    generator = ca.CodeGenerator("whole.c")
    generator.add(function)
    return generator.generate(tempfile.mkdtemp() + "/")


def scaling():
    rows = []
    for width, num in WIDTHS.items():
        for nodes in NODES:
            if nodes * num > LARGEST:
                continue
            jax.clear_caches()
            level = level_of(nodes)
            model = co.Model({}, odes.network([2, width, width, 1]))
            nlp, z = start_of(level, model)
            try:
                check_size(nlp, co.ExactHessian())
            except ValueError as error:
                rows.append({"nodes": nodes, "parameters": num, "refused": str(error)})
                print(rows[-1], flush=True)
                continue
            work = {"effgen": evaluation(nlp, z)}
            if nodes <= LARGEST_PEER and num <= 200:
                work |= peers(level, width, z)
            rounds = 5 if nodes * num > 1e6 else 11
            times = measure.interleaved(work, rounds=rounds)
            seconds = {name: statistics.median(t) for name, t in times.items()}
            count = len(np.asarray(nlp.flat()))
            rows.append({"nodes": nodes, "parameters": count, "seconds": seconds})
            print(rows[-1], flush=True)
            measure.write("nlp_evaluation", {"evaluations": rows})
    return rows


def shares():
    """Return Ipopt's own part of whole solves, of twelve iterations each."""
    rows = []
    for width in (8, 24):
        for nodes in (100, 1_000, 4_000):
            level = level_of(nodes)
            model = co.Model({}, odes.network([2, width, width, 1]))
            trainer = co.CollocationTrainer(max_iter=12)
            state = trainer.init(model, level.guess())
            for _ in range(2):  # the second is compiled
                _, history = eg.fit(trainer, state, [level], key=odes.KEY)
            seconds, ours = (float(history[k][-1]) for k in ("seconds", "evaluating"))
            count = sum(x.size for x in jax.tree.leaves(model) if hasattr(x, "size"))
            row = {"nodes": nodes, "parameters": count, "seconds": seconds}
            rows.append(row | {"share_of_ipopt": 1 - ours / seconds})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    figures = {"evaluations": scaling()}
    measure.write("nlp_evaluation", figures | {"solves": shares()})
