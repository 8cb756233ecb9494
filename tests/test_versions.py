"""The versions that pyproject.toml and ci/ name agree with each other."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def constraints(name):
    first, *lines = (ROOT / "ci" / "constraints" / f"{name}.txt").read_text().splitlines()
    return first.removeprefix("# Python ").split(), dict(line.split("==") for line in lines if line[0] != "#")


def required():
    """What the package and its tests require: {name: (operator, version)}."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(rf"^{key} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)[1] for key in ("dependencies", "test")]
    found = re.findall(r'"([\w-]+)(?:\[[\w,]+\])?([>=]=)([\d.]+)"', "".join(lists))
    return {name: (operator, version) for name, operator, version in found}


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_all_that_is_required_is_constrained(name):
    _, versions = constraints(name)
    for package, (operator, version) in required().items():
        if operator == ">=":
            assert package in versions
            if name == "oldest":  # the very version that is admitted, of 1.26 some 1.26.x
                assert f"{versions[package]}.".startswith(f"{version}.")


def test_the_workflow_runs_the_pythons_that_are_supported():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    text = (ROOT / "pyproject.toml").read_text()
    supported = re.findall(r"Python :: (3\.\d+)", text)
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == supported
    assert f'requires-python = ">={supported[0]}"' in text
    for row in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]:
        assert row["python"] in constraints(row["versions"])[0]


def test_pre_commit_runs_the_pinned_checkers():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = {repository["repo"].split("/")[-1]: repository["rev"] for repository in repositories}
    assert required()["ruff"] == ("==", pinned["ruff-pre-commit"].removeprefix("v"))
    assert required()["mypy"] == ("==", pinned["mirrors-mypy"].removeprefix("v"))
