"""Every Python block of the README, the quickstart and the user guide runs, page by page from top to bottom."""

import re
import warnings
from pathlib import Path

import pytest
from dask.distributed import Client

import dask_saga
from dask_saga import inference, inspection, losses, model_selection, penalties, streams
from dask_saga.solver.step_rule import StepRule

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
SLOW = {"own_loss"}  # its classes are compiled
PROSE = {"index", "troubleshooting", "when_not"}  # pages that may do without code


@pytest.mark.joins
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in SLOW else ()) for page in PAGES]
)
def test_page(page, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        warnings.filterwarnings("ignore", "Port 8787 is already in use")  # by another cluster
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)
    for value in list(names.values()):
        if isinstance(value, Client):
            value.close()
    assert blocks or page.stem in PROSE


@pytest.mark.parametrize("module", [dask_saga, losses, penalties, streams, model_selection, inference, inspection])
def test_the_reference_has_every_public_name(module):
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    named = set(re.findall(r"^   (\w+)$", page, re.MULTILINE))
    # All but dicts of names, and functions that only other modules of the package call.
    internal = {"prox", "penalty_values"}
    assert {name for name in module.__all__ if not name.isupper()} - internal <= named


def test_the_page_of_the_step_rule_names_every_constant():
    page = (ROOT / "docs" / "algorithm" / "step_size.md").read_text()
    assert [name for name in StepRule._fields if f"`{name}` (" not in page] == []
