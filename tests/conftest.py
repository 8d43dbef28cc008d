"""Every test sees eight CPU devices, and NumPy's silent rank promotion is an error."""

import os
import signal
import sys
from pathlib import Path


# The suite's time is compilation: without fusion emitters it takes half as long. Other
# releases of XLA, on later Pythons, may end at a flag that they do not know.
FASTER = "--xla_cpu_use_fusion_emitters=false" if sys.version_info < (3, 12) else ""
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FASTER}")

# A sum over simulated devices holds one thread for each until all are there: with a few
# threads a core, sums that do not depend on each other can wait for ever.
os.environ.setdefault("PJRT_NPROC", "64")

import jax  # noqa: E402
import pytest  # noqa: E402


jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts its background jobs with Ctrl-C ignored, and runs keep it so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def few_programs():
    """Forget compiled programs in time: a process may hold 65,530 pieces of memory.

    Each program holds several, and one piece too many ends the process without a word.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture
def driver(request, monkeypatch):
    """Force the device loop or per-step dispatch (parametrize indirectly)."""
    from effgen.core import program

    monkeypatch.setattr(program, "choose_driver", lambda _: request.param)
    program.compiled_program.cache_clear()
    yield request.param
    program.compiled_program.cache_clear()


both_drivers = pytest.mark.parametrize("driver", ["scan", "dispatch"], indirect=True)
