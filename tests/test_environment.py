"""environment.yml, pyproject.toml and the lock file agree."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}


def wanted() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    specs = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    return dict(re.fullmatch(r"([a-z0-9-]+)\s*(.*)", spec).groups() for spec in specs)


def test_conda_environment_has_the_same_packages_and_bounds():
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(item["pip"] for item in items if isinstance(item, dict))
    # what conda-forge lacks comes by pip; the package itself is no dependency
    assert from_pip.count("-e .") == 1  # pip takes no other option beside -e in a file, and conda writes it one
    listed = [item for item in items if isinstance(item, str)] + [item for item in from_pip if item != "-e ."]
    found = dict(re.fullmatch(r"([a-z0-9-]+)(.*)", item).groups() for item in listed)
    assert found.pop("pip") == ""
    assert found.pop("python") == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert found == {CONDA_NAMES.get(name, name): bound for name, bound in wanted().items()}


def test_lock_file_pins_every_dependency_and_names_no_index():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {line.split("==")[0].strip() for line in lines if "==" in line}
    assert wanted().keys() <= pinned
    strange = [line for line in lines if not re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ]+( ; .*)?$", line)]
    assert not strange, f"the lock file should hold pinned packages only: {strange}"


def test_citation_file_names_this_version_and_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [cited[name] for name in ("title", "version", "license", "abstract")] == [
        project[name] for name in ("name", "version", "license", "description")
    ]
    assert len(cited["references"]) == 4
