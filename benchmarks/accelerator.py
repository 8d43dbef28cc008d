"""What each trainer does on an accelerator: ours and a peer, in eight minutes.

`python -m benchmarks.accelerator`, or `make accelerator PYTHON=python3` where that
Python's JAX sees the device. Each section of `benchmarks.headlines` runs in a process
of its own, so that one that fails, hangs or runs out of memory loses the others
nothing, and the record is written after each. Without an accelerator the sizes are
small, and the record says that its figures are none of an accelerator's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


RESULT = Path(__file__).parent / "results" / "accelerator.json"
LIMIT = 480.0
# The least that is kept for each section still to come: a share of the limit.
SHARES = {"ebm": 0.2, "neural_sde": 0.25, "collocation": 0.15, "retrieval_cache": 0.4}
NONE = "no accelerator at hand: small sizes on a CPU, which show that the script works"
Launch = Callable[[str, float], dict[str, Any]]


def whole(launch: Launch, save: Callable[[dict[str, Any]], None], limit: float) -> None:
    """Launch every section with the time that is left for it; `save` after each."""
    began, record = time.perf_counter(), dict[str, Any](sections={})
    ahead = sum(SHARES.values())
    for name, share in SHARES.items():
        ahead -= share
        left = limit * (1 - ahead) - (time.perf_counter() - began)
        found = launch(name, left)
        described = {k: found.pop(k) for k in ("machine", "accelerator") if k in found}
        record = described | record
        record["sections"][name] = found
        record["seconds"] = time.perf_counter() - began
        save(record)


def launched(name: str, seconds: float, *, small: bool) -> dict[str, Any]:
    """Run a section in a process of its own; return what it saved, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.accelerator", "--section", name]
        command += ["--to", str(path), *(["--small"] if small else [])]
        # JAX takes three quarters of a device's memory by default.
        more = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        process = subprocess.Popen(
            command, env=more | os.environ, cwd=Path(__file__).parents[1]
        )
        try:
            code = process.wait(max(seconds, 1.0))
            end = {} if code == 0 else {"failed": f"its process ended with {code}"}
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            end = {"failed": f"stopped after its {seconds:.0f} seconds"}
        found = json.loads(path.read_text()) if path.exists() else {"figures": {}}
    return found | end


def section(name: str, path: Path, *, small: bool) -> None:
    """Measure one section in this process, and write `path` after each of its parts."""
    import jax

    from benchmarks import headlines, measure
    from benchmarks.headline_sizes import FULL, SEED, SMALL

    # What was compiled before would be read, and not compiled, this time.
    jax.config.update("jax_enable_compilation_cache", False)
    there = jax.default_backend() != "cpu"
    full = there and not small
    sizes = FULL if full else SMALL
    first = {"accelerator": there, "machine": measure.machine()}
    first |= {"seed": SEED, "sizes": "full" if full else "small"}
    headlines.measured(name, sizes, lambda found: written(path, first | found))


def written(path: Path, record: dict[str, Any]) -> None:
    """Write `record` as JSON, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(path)


def kept(path: Path, record: dict[str, Any]) -> Path:
    """Return where to write: a CPU's figures never replace an accelerator's."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("accelerator") and not record.get("accelerator"):
        return path.with_suffix(".small.json")
    return path


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("benchmarks.accelerator", description=__doc__)
    parser.add_argument("--to", type=Path, default=RESULT, help="the JSON to write")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for all")
    parser.add_argument("--commit", help="where the machine has no git to ask")
    parser.add_argument("--small", action="store_true", help="small sizes anyway")
    parser.add_argument("--section", choices=SHARES, help="this one, in this process")
    given = parser.parse_args(arguments)
    if given.section:
        section(given.section, given.to.absolute(), small=given.small)
        return

    def save(record: dict[str, Any]) -> None:
        record = {"benchmark": "accelerator"} | record
        if not record.get("accelerator"):
            record = {"note": NONE} | record
        if given.commit and "machine" in record:
            record["machine"] = record["machine"] | {"commit": given.commit}
        path = kept(given.to.absolute(), record)
        written(path, record)
        print(f"{', '.join(record['sections'])}: {path}", flush=True)

    whole(lambda n, left: launched(n, left, small=given.small), save, given.limit)


if __name__ == "__main__":
    main(sys.argv[1:])
