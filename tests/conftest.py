"""Every test sees eight CPU devices, and NumPy's silent rank promotion is an error."""

import contextlib
import ctypes
import functools
import gc
import os
import signal
import sys
import threading
from pathlib import Path


# The suite's time is compilation: without fusion emitters it takes half as long, and to
# cut each program into 32 parts pays where there are as many cores. Other releases of
# XLA, on later Pythons, end at a flag that they do not know.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if sys.version_info < (3, 12):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

# A sum over simulated devices holds one thread for each until all are there: with a few
# threads a core, sums that do not depend on each other can wait for ever.
os.environ.setdefault("PJRT_NPROC", "64")

# Nor need programs be fast that run once: this is XLA's lowest level of optimization,
# here and in what tests start. `optimized` marks tests that compute more than compile.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

# Linear algebra here is of a few rows: more threads than one wait, at full speed.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import jaxlib.mlir.ir  # noqa: E402
import pytest  # noqa: E402


# In megabytes: how much memory grows before some is forgotten, and the most that stays.
GROWTH, MOST = 300, 1_150
MOST_PIECES = 40_000
FLOOR = [0]

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects that live on: to look through them often finds little.
gc.set_threshold(20_000, 10, 10)

# A shell starts its background jobs with Ctrl-C ignored, and runs keep it so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes longest goes first, so that no worker is left with it at the end.
FIRST = ("test_examples_run", "test_notebooks_run", "test_distributed.py")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
    """Put first what takes long; of `one_case` tests all cases but one are slow."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in FIRST))
    cases = [item for item in items if item.get_closest_marker("one_case")]
    stays = {item for item in cases if item.callspec.id == one_case(item)}
    for item in set(cases) - stays:
        item.add_marker(pytest.mark.slow)
    named = {item.function for item in stays}
    lost = {item.nodeid for item in cases if item.function not in named}
    if lost and not any("::" in chosen for chosen in config.args):
        raise pytest.UsageError(f"`one_case` names no case of {sorted(lost)}")


def one_case(item):
    """Return the name of the case that `make test` runs."""
    return item.get_closest_marker("one_case").args[0]


def pytest_collection_finish():
    """Look no more through what was imported: it stays."""
    gc.collect()
    gc.freeze()


def pytest_configure():
    """Lower a hundred programs into one context of MLIR, where JAX makes one for each.

    To make one takes half as long as to lower a small program, and JAX keeps it as long
    as the program, a megabyte each.
    """
    from jax._src.interpreters import mlir

    made = getattr(mlir, "make_ir_context", None)
    if made is not None:
        mlir.make_ir_context = functools.partial(shared, made, threading.local())


def shared(made, here):
    """Return this thread's context, or another where a program is lowered in one."""
    with contextlib.suppress(ValueError):  # as some releases say that there is none
        if jaxlib.mlir.ir.Context.current is not None:
            return made()
    here.programs = getattr(here, "programs", 0) + 1
    if here.programs % 100 == 1:
        here.context = made()
    return here.context


@pytest.fixture(autouse=True)
def few_programs():
    """Keep a worker below two gigabytes: forget what programs were lowered from.

    JAX keeps it beside each program, and it is nine tenths of their memory. Where the
    rest is too much, or is in too many pieces (a process may hold 65,530, and one too
    many ends it without a word), all programs are forgotten.
    """
    yield
    if resident() < FLOOR[0] + GROWTH:
        return
    forget(*lowerings())
    pieces = Path("/proc/self/maps").read_bytes().count(b"\n")
    if resident() > MOST or pieces > MOST_PIECES:
        forget(jax.clear_caches)
    FLOOR[0] = resident()


def resident():
    """Return the megabytes that this process holds; zero where nothing tells."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) >> 8 if pages.exists() else 0


def lowerings():
    """Return what empties JAX's caches of lowered programs, where there are such."""
    from jax._src import pjit
    from jax._src.interpreters import pxla

    names = (pjit, "_pjit_lower"), (pxla, "_cached_lowering_to_hlo")
    found = [
        getattr(getattr(where, name, None), "cache_clear", None)
        for where, name in names
    ]
    return found if all(found) else [jax.clear_caches]


def forget(*clears):
    """Empty caches, and give the memory back."""
    for clear in clears:
        clear()
    gc.collect()
    returned_memory()


def returned_memory():
    """Give freed memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(autouse=True)
def optimization(request):
    """Compile what a test marked `optimized` runs as users have it compiled."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# One function for each: programs are kept by it, and so serve more than one test.
DRIVERS = {"scan": lambda _: "scan", "dispatch": lambda _: "dispatch"}


@pytest.fixture
def driver(request, monkeypatch):
    """Force the device loop or per-step dispatch (parametrize indirectly)."""
    from effgen.core.running import program

    monkeypatch.setattr(program, "choose_driver", DRIVERS[request.param])
    return request.param


both_drivers = pytest.mark.parametrize("driver", ["scan", "dispatch"], indirect=True)
