"""What `import effgen` brings in, and that each method is there when asked for."""

import ast
import json
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

import effgen as eg
from effgen.core import names


ROOT = Path(__file__).parents[1]
METHODS = {"collocation", "ebm", "neural_sde", "retrieval_cache"}
SOLVERS = {"diffrax", "lineax", "optimistix"}

# In this order, each adds to what those before it brought.
BRINGS = {
    "effgen": set(),
    "effgen.ebm": set(),
    "effgen.retrieval_cache": set(),
    "effgen.neural_sde": SOLVERS,
    "effgen.collocation": {"scipy"},
}

# What takes time or memory to import, and the packages that only an extra brings.
HEAVY = SOLVERS | {
    *("blackjax", "cyipopt", "faiss", "grain", "IPython", "matplotlib", "orbax"),
    *("pandas", "pyarrow", "safetensors", "scipy", "sklearn", "tensorboardX"),
    *("tensorstore", "tokenizers", "torch", "tqdm"),
}

IMPORTS = """
import importlib, json, os, sys
import jax, equinox, optax

before, brought = set(sys.modules), {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    brought[name] = sorted(set(sys.modules) - before)
    before = set(sys.modules)
os.environ.pop("XLA_FLAGS", None)
jax.config.update("jax_num_cpu_devices", 3)  # too late once devices are there
assert jax.device_count("cpu") == 3
print(json.dumps(brought))
"""


def output(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def brought():
    """The modules that each import brings, in a process of its own."""
    return json.loads(output(IMPORTS, *BRINGS))


def test_each_import_brings_in_what_it_needs_and_no_more(brought):
    packages = {k: {m.split(".")[0] for m in found} for k, found in brought.items()}
    assert {name: found & HEAVY for name, found in packages.items()} == BRINGS
    own = {m.split(".")[1] for m in brought["effgen"] if m.startswith("effgen.")}
    assert own == {"core"}


ASKED = """
import pickle, sys
from jaxtyping import install_import_hook

rule = pickle.loads(bytes.fromhex(sys.argv[1]))
print(rule.initial)

import effgen as eg
assert "collocation" in dir(eg) and "collocation" not in vars(eg)
assert eg.ebm is sys.modules["effgen.ebm"] and "ebm" in vars(eg)
with install_import_hook("effgen.retrieval_cache", "beartype.beartype"):
    from effgen import retrieval_cache
try:
    retrieval_cache.recall("no ranks", {})
except Exception as error:
    print(type(error).__module__.split(".")[0])
"""


def test_methods_load_when_they_are_asked_for():
    rule = pickle.dumps(eg.ebm.TargetAcceptance(0.25))
    assert output(ASKED, rule.hex()).split() == ["0.25", "jaxtyping"]


def test_every_name_is_listed_and_there():
    assert METHODS < set(eg.__all__) < set(dir(eg))
    names = {}
    exec("from effgen import *", names)
    assert all(names[name] is getattr(eg, name) for name in eg.__all__)
    # Whatever is imported here under its own name is meant for users.
    text = (ROOT / "effgen" / "__init__.py").read_text()
    assert set(re.findall(r"(\w+) as \1\b", text)) < set(eg.__all__)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_door_exports_its_names_and_no_module(name):
    package = getattr(eg, name)
    text = Path(package.__file__).read_text()
    assert set(package.__all__) == set(re.findall(r"(\w+) as \1\b", text))
    assert not any(isinstance(getattr(package, n), ModuleType) for n in package.__all__)
    # And `effgen.<package>.<name>` is a name's, and not a file's beside it.
    # No more is `effgen.<package>.<room>.<name>`.
    inside = Path(package.__file__).parent
    rooms = {path.name for path in inside.iterdir() if path.is_dir()}
    assert not (rooms | {path.stem for path in inside.rglob("*.py")}) & {
        *package.__all__
    }


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'effgen' has no attribute 'ebms'"):
        eg.ebms  # noqa: B018
    assert not hasattr(eg, "Walkers")
    with pytest.raises(ImportError, match="cannot import name 'ebms'"):
        from effgen import ebms  # noqa: F401


def imported(path: Path) -> set[str]:
    """Return the packages that a file imports at its head, not in functions."""
    nodes = ast.parse(path.read_text()).body
    lines = [node for node in nodes if isinstance(node, ast.Import)]
    names = [alias.name for node in lines for alias in node.names]
    others = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [node.module or "" for node in others if not node.level]
    return {name.split(".")[0] for name in names}


def test_a_bare_install_has_what_is_imported(brought):
    text = (ROOT / "pyproject.toml").read_text()
    needed = tomllib.loads(text)["project"]["dependencies"]
    there = {re.split(r"[^\w-]", line)[0] for line in needed} | {"effgen"}
    ours = {m for found in brought.values() for m in found if m.startswith("effgen.")}
    for name in ours:
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert imported(path) - sys.stdlib_module_names <= there, path


def test_the_extra_of_all_joins_those_that_install_from_wheels():
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    (line,) = extras.pop("all")
    assert line == f"effgen-jax[{','.join(sorted(extras.keys() - {'collocation'}))}]"


class Other:
    version = "1.3.0"

    def __init__(self, *paths):
        self.files = [PurePosixPath(path) for path in paths]


def test_another_project_in_our_folder_is_told_of(monkeypatch):
    both = Other("effgen/__init__.py", "effgen-1.3.0.dist-info/RECORD")
    monkeypatch.setattr(names.metadata, "distribution", lambda name: both)
    with pytest.warns(RuntimeWarning, match="pip uninstall effgen effgen-jax"):
        names.warn_of_another()


def test_our_earlier_name_installed_in_place_is_no_other(monkeypatch):
    ours = Other("_effgen.pth", "effgen-0.1.0.dist-info/RECORD")
    monkeypatch.setattr(names.metadata, "distribution", lambda name: ours)
    names.warn_of_another()
