"""Every test sees eight CPU devices, and NumPy's silent rank promotion is an error."""

import os
import signal


os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest


jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts its background jobs with Ctrl-C ignored, and runs keep it so.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def driver(request, monkeypatch):
    """Force the device loop or per-step dispatch (parametrize indirectly)."""
    from effgen.core import program

    monkeypatch.setattr(program, "choose_driver", lambda _: request.param)
    program.compiled_program.cache_clear()
    yield request.param
    program.compiled_program.cache_clear()


both_drivers = pytest.mark.parametrize("driver", ["scan", "dispatch"], indirect=True)
