"""The notebooks as they lie in git: in order, stripped, with parameters that come from the stages' classes."""

import ast
import importlib
from importlib.util import find_spec

import nbformat
import papermill
import pytest

from medkd.report.notebooks import is_stripped, run_notebook
from medkd.report.sync import notebook_paths, parameters_cell
from medkd.stages import stage_params

NOTEBOOKS = notebook_paths()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_is_one_notebook_a_stage_in_order():
    assert [path.stem for path in NOTEBOOKS] == list(stage_params())


@each
def test_outputs_are_stripped(path):
    assert is_stripped(path), f"run `make sync`: {path.name} holds outputs or traces of a run"


@each
def test_parameters_cell_is_rendered_from_the_stage(path):
    assert parameters_cell(read(path)).source == stage_params()[path.stem].cell(), "run `make sync`"


@each
def test_papermill_sees_typed_and_explained_parameters(path):
    found = papermill.inspect_notebook(str(path))
    assert list(found) == list(stage_params()[path.stem].model_fields)
    for name, parameter in found.items():
        assert parameter["help"], name
        assert parameter["inferred_type_name"] in {"str", "int", "float", "bool", "list", "dict"}, name


@each
def test_code_cells_are_short_and_every_section_has_prose(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {path.stem[:2]} ")
    for cell in cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 16, cell.source
    assert "result" in cells[-1].metadata.get("tags", []) or path.stem.startswith("01")


@each
def test_no_training_code_lives_in_a_notebook(path):
    """No function, class or loop over epochs is defined there, and what is imported from medkd exists."""
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.While)), cell.source
            if isinstance(node, ast.ImportFrom) and node.module.startswith("medkd"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    known = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                    assert known, f"{node.module} has no {alias.name}"


@pytest.mark.slow
def test_a_comparison_without_students_passes_through_the_notebook_that_trains_them(project):
    path = next(path for path in NOTEBOOKS if path.stem == "06_self_distillation")
    run_notebook(path, project / "06.ipynb", {"methods": ["moco_v1", "oracle"]}, cwd=path.parent)
    printed = [
        output.text
        for cell in read(project / "06.ipynb").cells
        for output in cell.get("outputs", [])
        if "text" in output
    ]
    assert any("no student among methods" in text for text in printed)
    assert not (project / "reports" / "runs").exists(), "something was trained"
