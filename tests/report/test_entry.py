"""What a notebook of a report depends on, and what its first call gives it."""

import dataclasses

import pandas as pd
import pytest

from medkd.data.phantoms import glioma
from medkd.files import write_json
from medkd.report import entry as entries
from medkd.report.plan import plan
from medkd.report.session import begin
from medkd.stages import TeacherParams, stage_params
from medkd.stages.store import Unit, load_or_make


def test_a_notebook_is_stale_when_it_its_parameters_the_code_or_the_cohort_change(project, monkeypatch):
    (project / "notebooks").mkdir()
    path = project / "notebooks" / "02_teacher_training.ipynb"
    path.write_text("{}")
    entry = plan(["phantom-glioma"], report="r", overrides={})[1]
    keys = [entries.entry_key(entry, "a"), entries.entry_key(entry, "b")]
    keys.append(entries.entry_key(dataclasses.replace(entry, parameters=entry.parameters | {"seed": 9}), "a"))
    monkeypatch.setattr(entries, "code_digest", lambda: "other code")
    keys.append(entries.entry_key(entry, "a"))
    path.write_text("{ }")
    keys.append(entries.entry_key(entry, "a"))
    assert len(set(keys)) == 5
    moved = dataclasses.replace(entry, parameters=entry.parameters | {"report": "x", "root": "/y", "device": "cpu"})
    assert entries.entry_key(moved, "a") == keys[-1]


def test_a_notebook_is_stale_when_the_content_of_a_file_changes_and_not_when_it_moves(project, tmp_path, monkeypatch):
    (project / "notebooks").mkdir()
    (project / "notebooks" / "02_teacher_training.ipynb").write_text("{}")
    entry = plan(["phantom-glioma"], report="r", overrides={})[1]

    def key(name, content, **given):
        (tmp_path / name).write_text(content)
        parameters = {"split_file": str(tmp_path / name), "teacher": {"weights": str(tmp_path / name)}}
        return entries.entry_key(dataclasses.replace(entry, parameters=entry.parameters | parameters | given), "a")

    monkeypatch.setenv("HOME", str(tmp_path))
    first = key("a.csv", "1")
    assert key("b.csv", "1", split_file="~/b.csv") == first
    assert first == key("b.csv", "1") != key("b.csv", "2")
    assert key("b.csv", "3", split_file="none") != key("b.csv", "4", split_file="none"), "weights of the teacher"


def test_a_finished_notebook_is_run_again_when_what_it_made_is_gone(project):
    """Its runs, and those they were made from, its output or its index."""
    entry = plan(["phantom-glioma"], report="r", overrides={})[2]
    teacher = load_or_make(Unit("02_teacher_training", 1, {}, "c"), lambda folder: {})
    student = load_or_make(Unit("03_distillation", 1, {}, "c", [teacher]), lambda folder: {})
    folder = project / "reports" / "r"

    def finish():
        write = {"notebooks": {"state": "finished", "key": "k", "index": True}, "index": {"runs": [student.key]}}
        for place, content in write.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            write_json(folder / place / f"{entry.name}.json", content)
        (folder / "notebooks" / f"{entry.name}.ipynb").touch()
        assert entries.is_good(folder, entry, "k") and not entries.is_good(folder, entry, "other")

    for lost in (f"notebooks/{entry.name}.ipynb", f"index/{entry.name}.json", f"notebooks/{entry.name}.json"):
        finish()
        (folder / lost).unlink()
        assert not entries.is_good(folder, entry, "k"), lost
    finish()
    (folder / "index" / f"{entry.name}.json").write_text("{")
    assert not entries.is_good(folder, entry, "k")
    for run in (teacher, student):
        finish()
        kept = (run.folder / "run.json").rename(run.folder / "kept")
        assert not entries.is_good(folder, entry, "k"), run.stage
        kept.rename(run.folder / "run.json")


@pytest.mark.parametrize("simulated", [True, False])
def test_what_a_notebook_draws_is_marked_where_its_cohort_is_simulated(project, monkeypatch, simulated):
    cohort = dataclasses.replace(glioma.make(n_patients=10, image_size=16), simulated=simulated)
    monkeypatch.setattr("medkd.report.session.cohort_for", lambda params: cohort)
    _, out = begin(TeacherParams())
    assert out.simulated is simulated


def test_a_notebook_that_was_run_by_hand_into_a_report_no_longer_counts_as_its_own(project):
    entry = plan(["phantom-glioma"], report="r", overrides={})[0]
    folder = project / "reports" / "r"
    for place, content in {"notebooks": {"state": "finished", "key": "k", "index": True}, "index": {}}.items():
        (folder / place).mkdir(parents=True)
        write_json(folder / place / f"{entry.name}.json", content)
    (folder / "notebooks" / f"{entry.name}.ipynb").touch()
    assert entries.is_good(folder, entry, "k")
    _, out = begin(stage_params()[entry.notebook].checked({"report": "r"}))
    out.table(pd.DataFrame({"n": [1]}), "n", "Of a run by hand.")
    assert not entries.is_good(folder, entry, "k")
