"""Imports between packages run one way: a package imports only from those below it."""

import ast
from pathlib import Path

import pytest

import dask_saga

ROOT = Path(dask_saga.__file__).parent
# From the lowest to the highest. Names that share a level do not import each other.
LEVELS = [
    {"execution", "losses", "penalties", "streams", "versions"},
    {"kernels"},
    {"data"},
    {"solver"},
    {"fitting"},
    {"estimators", "functional", "model_selection"},
    {"inference", "inspection"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imports_of(path):
    """Top-level names of this package that a file imports, those for the type checker and within functions as well."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "dask_saga":
                base = node.module.split(".")[1:]
            else:
                continue
            base = [part for part in base if part]
            found |= {base[0]} if base else {name.name for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("dask_saga.")}
    return parts[0], found - {parts[0], "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_from_below_only(path):
    own, imported = imports_of(path)
    assert own in LEVEL_OF, "a new package needs a level"
    above = {name for name in imported if LEVEL_OF[name] >= LEVEL_OF[own]}
    assert not above, f"{own} imports {above}, which are not below it"


def test_there_is_no_circle_within_a_package():
    graph = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) == 2 and parts[1] != "__init__":
            nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            graph[parts] = {
                (parts[0], target)
                for node in nodes
                if node.level == 1
                for target in ([node.module] if node.module else [name.name for name in node.names])
            }
    done = set()
    while len(done) < len(graph):
        free = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert free, f"circle among {sorted(set(graph) - done)}"
        done |= free
