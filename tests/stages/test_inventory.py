"""The run store looked into and cleared up."""

import json

import pytest
from typer.testing import CliRunner

from medkd.cli import app
from medkd.files import locked
from medkd.paths import reports_dir, runs_dir
from medkd.stages.inventory import all_runs, compared, find_run, leftovers, remove
from medkd.stages.store import Unit, load_or_make


def made(stage, lr, upstream=(), **metrics):
    unit = Unit(stage, 1, {"lr": lr, "epochs": 3}, "cohort", list(upstream), f"{stage} {lr}")
    return load_or_make(unit, lambda folder: (folder / "model.bin").write_bytes(b"x" * 1000) and metrics)


@pytest.fixture
def runs(project):
    teacher = made("02_teacher_training", 0.1, val_balanced_accuracy=0.5)
    other = made("02_teacher_training", 0.2, val_balanced_accuracy=0.75)
    student = made("03_distillation", 0.1, [teacher], val_auc_macro=0.875)
    return teacher, other, student


def refer(run, name="07_evaluation.x"):
    index = reports_dir() / "quick" / "index" / f"{name}.json"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(json.dumps({"entries": [], "metrics": {}, "runs": [run.key]}))


def names(items):
    return sorted(item.folder.name for item in items)


def invoke(*arguments, **options):
    return CliRunner().invoke(app, ["runs", *arguments], **options)


def test_runs_are_listed_with_one_metric_each(runs):
    table = all_runs()
    assert sorted(table["key"]) == sorted(run.key for run in runs)
    assert set(table["metric"]) == {"balanced_accuracy 0.500", "balanced_accuracy 0.750", "auc_macro 0.875"}
    assert len(all_runs("03")) == 1
    assert runs[1].key in invoke("list", "02").stdout
    assert runs[2].key not in invoke("list", "02").stdout


def test_a_run_is_found_by_the_start_of_its_key_and_shown(runs):
    assert find_run(runs[0].key[:12]).key == runs[0].key
    shown = invoke("show", runs[2].key[:12]).stdout
    assert f"made from: {runs[0].key}" in shown and "lr: 0.1" in shown and "model.bin" in shown
    for key in ("", "zzzz"):
        failed = invoke("show", key)
        assert failed.exit_code == 2 and "no single finished run" in failed.stderr


def test_settings_that_differ_in_late_digits_are_shown(project):
    found = compared([made("02_teacher_training", lr) for lr in (1.23441e-4, 1.23444e-4)])[0]
    assert found.iloc[0, 1:].tolist() == [1.23441e-4, 1.23444e-4] or found.iloc[0, 1:].tolist() == [
        "0.000123441",
        "0.000123444",
    ]


def test_runs_are_compared_by_what_differs(runs):
    told = invoke("compare", runs[0].key, runs[1].key).stdout
    assert "lr" in told and "epochs" not in told
    assert "0.5" in told and "0.75" in told
    assert "all settings are the same" in invoke("compare", runs[0].key, runs[0].key).stdout


def test_what_a_report_needs_stays_with_all_it_was_made_from(runs):
    teacher, other, student = runs
    refer(student)
    assert names(leftovers()) == [other.key]
    assert names(leftovers(keep_days=1, now=other.folder.stat().st_mtime + 3600)) == []


def test_unfinished_folders_go_unless_somebody_works_on_them(runs):
    for name in ("aaaa", "bbbb"):
        (runs_dir() / "02_teacher_training" / name).mkdir()
    with locked(runs_dir() / "02_teacher_training" / "bbbb" / ".lock"):
        unfinished = [item for item in leftovers() if item.reason == "unfinished"]
    assert names(unfinished) == ["aaaa"]


def test_while_a_training_runs_what_it_may_stand_on_stays(runs):
    (runs_dir() / "03_distillation" / "bbbb").mkdir(parents=True)
    with locked(runs_dir() / "03_distillation" / "bbbb" / ".lock"):
        assert leftovers() == []
        told = invoke("gc", "--yes")
    assert "03_distillation/bbbb is being made: until that has ended, every finished run stays" in told.stdout
    assert all(run.folder.exists() for run in runs) and "0 folders" in told.stdout


def test_stages_are_listed_by_their_short_names_and_unknown_ones_told(runs):
    assert invoke("list", "teacher").stdout == invoke("list", "02").stdout != invoke("list").stdout
    refused = invoke("list", "teachers")
    assert (
        refused.exit_code == 2 and 'there is no stage "teachers"' in refused.stderr and "distillation" in refused.stderr
    )


def test_what_was_taken_up_or_finished_since_it_was_listed_stays(runs):
    for name in ("aaaa", "bbbb", "cccc"):
        (runs_dir() / "02_teacher_training" / name).mkdir()
    listed = [item for item in leftovers() if item.reason == "unfinished"]
    (listed[1].folder / "run.json").write_text("{}")
    with locked(listed[0].folder / ".lock"):
        removed = remove(listed)
    assert names(removed) == ["cccc"]
    assert listed[0].folder.exists() and listed[1].folder.exists() and not listed[2].folder.exists()


def test_what_a_report_that_ended_since_it_was_listed_needs_stays(runs):
    listed = leftovers()
    refer(runs[2])
    assert names(remove(listed)) == [runs[1].key]
    assert runs[0].folder.exists() and runs[2].folder.exists()


def test_what_a_report_behind_a_link_needs_stays(runs, tmp_path_factory):
    refer(runs[2])
    disk = tmp_path_factory.mktemp("disk")
    (reports_dir() / "quick").rename(disk / "quick")
    (reports_dir() / "quick").symlink_to(disk / "quick")
    assert names(leftovers()) == [runs[1].key]
    (disk / "quick").rename(disk / "unmounted")
    refused = invoke("gc", "--yes")
    assert refused.exit_code == 2 and "quick is a link to a folder that is not there now" in refused.stderr
    assert all(run.folder.exists() for run in runs)


def test_gc_says_asks_and_removes(runs):
    refer(runs[2])
    dry = invoke("gc", "--dry-run")
    assert runs[1].key in dry.stdout and "1 folders" in dry.stdout and runs[1].folder.exists()
    invoke("gc", input="n\n")
    assert runs[1].folder.exists()
    assert invoke("gc", "--yes").exit_code == 0
    assert not runs[1].folder.exists()
    assert runs[0].folder.exists() and runs[2].folder.exists()
    assert "0 folders" in invoke("gc").stdout


def test_gc_waits_for_reports_and_studies_that_are_running(runs):
    (reports_dir() / "night").mkdir()
    with locked(reports_dir() / "night" / ".lock"):
        refused = invoke("gc", "--yes")
    assert refused.exit_code == 2 and "night is running" in refused.stderr
    assert runs[1].folder.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"runs": ["0'])
def test_gc_removes_nothing_while_an_index_is_damaged(runs, content):
    refer(runs[2])
    (index,) = reports_dir().rglob("index/*.json")
    index.write_text(content)
    refused = invoke("gc", "--yes")
    assert refused.exit_code == 2 and f"{index.name} is damaged" in refused.stderr
    assert all(run.folder.exists() for run in runs)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff\x00", b'{"stage": '])
def test_a_damaged_record_counts_as_unfinished_and_hides_no_other(runs, content):
    (runs[1].folder / "run.json").write_bytes(content)
    assert sorted(all_runs()["key"]) == sorted(run.key for run in (runs[0], runs[2]))
    assert invoke("list").exit_code == 0 and invoke("gc", "--dry-run").exit_code == 0
