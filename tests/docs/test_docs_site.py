"""The documentation site: no warnings, no network, no dead links within it, and a recipe that works."""

import importlib
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import recipes

import medkd
from medkd.data.registry import cohort_names
from medkd.report.plan import plan

ROOT = Path(medkd.__file__).parents[1]
DOCS = ROOT / "docs"
RESOURCES = {("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Links(HTMLParser):
    """Addresses, anchors and formulas of one page."""

    def __init__(self, path):
        super().__init__()
        self.resources, self.links, self.anchors, self.n_formulas = [], [], {""}, 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.add(given.get("id") or "")
        self.n_formulas += tag == "math"
        self.resources += [given[name] for kind, name in RESOURCES if kind == tag and given.get(name)]
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def build(source, target):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2", source, target]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def copy_of_docs(folder):
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("_build", "_generated", "__pycache__"))
    return folder


def small_site(folder, page):
    """A site of one page with the settings and extensions of ours, but without notebooks and modules."""
    copy_of_docs(folder)
    for other in [*folder.glob("*.md"), *folder.glob("*.rst")]:
        other.unlink()
    settings = (folder / "conf.py").read_text().replace('    "generated",\n', "")
    (folder / "conf.py").write_text(settings)
    (folder / "index.md").write_text(page)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    done = build(copy_of_docs(folder / "source"), folder / "html")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Links(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_the_site_builds_without_warnings(site):
    assert (site / "index.html").is_file()


@pytest.mark.slow
def test_no_page_takes_anything_from_another_host(site, pages):
    asked = {address for page in pages.values() for address in page.resources if not address.startswith("data:")}
    assert asked and not [address for address in asked if urlsplit(address).netloc or urlsplit(address).scheme]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_page_and_a_place(site, pages):
    broken = []
    for path, page in pages.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                broken.append(f"{path.relative_to(site)}: {address}")
    assert not broken


@pytest.mark.slow
def test_every_public_module_is_in_the_reference(site):
    shown = "".join(path.read_text() for path in (site / "_generated" / "api").glob("*.html"))
    names = [found.name for found in pkgutil.walk_packages(medkd.__path__, "medkd.") if "._" not in found.name]
    assert len(names) > 100
    assert not [name for name in names if f'id="module-{name}"' not in shown]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["method_gmcd", "method_hybrid"])
def test_every_numbered_equation_of_a_method_has_lines_that_compute_it(page):
    text = (DOCS / f"{page}.md").read_text()
    labels = re.findall(r"^:label: (\S+)$", text, re.MULTILINE)
    assert len(labels) > 8
    code = " ".join(re.findall(r"^Code: (.*?)\n\n", text, re.MULTILINE | re.DOTALL))
    totals = {"gmcd-stage1", "gmcd-stage2", "gmcd-kd", "hybrid-dicloss"}  # their section is one equation and its code
    assert not [label for label in labels if f"{{eq}}`{label}`" not in code and label not in totals]


@pytest.mark.slow
def test_a_listing_has_the_lines_of_its_file(site):
    text = (site / "_modules" / "medkd" / "losses" / "lowrank.html").read_text()
    source = (ROOT / "medkd" / "losses" / "lowrank.py").read_text().splitlines()
    number = next(n for n, line in enumerate(source, start=1) if line.startswith("class LowRankLoss"))
    assert re.search(rf'<a id="L{number}" class="line"></a>.*LowRankLoss', text)
    assert f'id="L{len(source)}"' in text and f'id="L{len(source) + 1}"' not in text


@pytest.mark.slow
def test_formulas_of_pages_notebooks_and_docstrings_are_mathml(site, pages):
    notebook = next((site / "_generated" / "notebooks").glob("02_teacher_training*.html"))
    losses = site / "_generated" / "api" / "medkd.losses.html"
    assert pages[site / "method_gmcd.html"].n_formulas > 40
    assert pages[notebook].n_formulas > 5 and pages[losses].n_formulas > 10


@pytest.mark.slow
def test_a_name_that_is_gone_fails_the_build(tmp_path):
    done = build(small_site(tmp_path / "a", "# A\n\n{lines}`medkd.losses.lowrank.squeeze`\n"), tmp_path / "html")
    assert done.returncode != 0 and "defines no squeeze" in done.stderr
    page = "# A\n\n{lines}`medkd.losses.lowrank.shrink : no such text`\n"
    done = build(small_site(tmp_path / "b", page), tmp_path / "html")
    assert done.returncode != 0 and "stands in 0 lines" in done.stderr


@pytest.mark.slow
def test_a_formula_that_cannot_be_drawn_fails_the_build(tmp_path):
    done = build(small_site(tmp_path / "a", "# A\n\n$$x = \\nosuchcommand y$$\n"), tmp_path / "html")
    assert done.returncode != 0 and "latex2mathml does not know" in done.stderr


def test_every_parameter_that_a_page_sets_is_known():
    checked = 0
    for page in DOCS.glob("*.md"):
        for command in re.findall(r"^\$ \S*medkd (report .*--dataset .*)$", page.read_text(), re.MULTILINE):
            words = shlex.split(command.partition("  #")[0])
            dataset = words[words.index("--dataset") + 1]
            given = dict(words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "-p")
            if dataset not in cohort_names() or dataset == "own":  # a recipe's, or one that needs its folder
                continue
            preset = words[words.index("--preset") + 1] if "--preset" in words else "quick"
            plan([dataset], report="x", overrides={name: _value(text) for name, text in given.items()}, preset=preset)
            checked += len(given) + (preset != "quick")
    assert checked > 8


def _value(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def test_an_executed_copy_is_shown_only_if_it_is_of_this_notebook(project, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    generated = importlib.import_module("generated")
    source = generated.NOTEBOOKS / "02_teacher_training.ipynb"
    executed = nbformat.read(source, as_version=4)
    folder = project / "reports" / "quick" / "notebooks"
    folder.mkdir(parents=True)
    name = "02_teacher_training.phantom-glioma"
    (folder / f"{name}.json").write_text('{"state": "finished"}')
    nbformat.write(executed, folder / f"{name}.ipynb")
    found = generated._copies(source, nbformat.read(source, as_version=4))
    assert list(found) == ["phantom-glioma"]
    assert "simulated" in found["phantom-glioma"].cells[0].source
    executed.cells[3].source += " changed since"
    nbformat.write(executed, folder / f"{name}.ipynb")
    assert list(generated._copies(source, nbformat.read(source, as_version=4))) == [""]


@pytest.fixture
def copy(tmp_path):
    for name in ("medkd", "notebooks", "studies", "tests"):
        shutil.copytree(ROOT / name, tmp_path / "medkd" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "medkd")
    (tmp_path / "medkd" / ".venv").symlink_to(sys.prefix)
    return tmp_path / "medkd"


@pytest.mark.slow
def test_the_recipe_for_a_loss_works_as_it_is_written(copy):
    recipes.follow(recipes.section(DOCS / "extending.md", "A distillation loss"), copy)
    assert len(list((copy / "reports" / "runs" / "03_distillation").glob("*/run.json"))) == 2


def test_every_block_of_the_other_recipes_has_its_place_and_the_package_knows_what_they_add(copy):
    for heading in ("A cohort", "A notebook with its stage"):
        recipes.follow(recipes.section(DOCS / "extending.md", heading), copy, commands=False)
    known = "assert CHAINS['rare'][2] == SHORT_NAMES['url_probe'] == stage_params()['04_url_probe'].stage"
    recipes.run(f'.venv/bin/python -c "from medkd.report.plan import *; {known}"', copy)
    found = "assert SOURCES['clinic'].instructions and 'clinic' in cohort_names()"
    recipes.run(
        f'.venv/bin/python -c "from medkd.data.sources import *; from medkd.data.registry import *; {found}"', copy
    )
