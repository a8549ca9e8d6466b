"""The run store: finished means run.json, and a key holds all that a result depends on."""

import json
import multiprocessing
import shutil
import threading
import time
from contextlib import ExitStack

import pandas as pd
import pytest
import torch

from medkd import parallel
from medkd.errors import DataError
from medkd.files import locked, write_json, write_table, write_tensors
from medkd.paths import runs_dir
from medkd.stages import store
from medkd.stages.store import Unit, load, load_or_make


def unit(**changes) -> Unit:
    return Unit(**({"stage": "02_teacher_training", "version": 1, "config": {"lr": 0.1}, "cohort": "abc"} | changes))


def test_a_made_run_is_loaded_the_second_time(project):
    calls = []

    def make(folder):
        calls.append(folder)
        write_table(folder / "history.csv", pd.DataFrame({"id": ["007"], "loss": [0.5]}))
        write_tensors(folder / "model.safetensors", {"w": torch.arange(3.0)})
        return {"auc": 0.75}

    first, second = load_or_make(unit(), make), load_or_make(unit(), make)
    assert len(calls) == 1
    assert (first.made, second.made) == (True, False)
    assert second.metrics == {"auc": 0.75}
    assert second.table("history")["id"].tolist() == ["007"]
    assert second.tensors("model")["w"].tolist() == [0.0, 1.0, 2.0]


def test_names_that_look_like_numbers_or_nothing_stay_texts(project):
    texts = pd.DataFrame({name: ["1", "None", ""] for name in ("class", "anchor", "candidate", "shortcut", "method")})
    table = texts.assign(id=["01", "NA", "3"], value=[0.5, None, 2.0], note=["NA", "x", ""])
    run = load_or_make(unit(), lambda folder: write_table(folder / "points.csv", table) or {})
    found = run.table("points")
    for name in (*texts, "id", "note"):
        assert found[name].tolist() == table[name].tolist(), name
    assert found["value"].isna().tolist() == [False, True, False] and found["value"].dtype == float


def test_a_failed_making_is_not_taken_for_finished_and_keeps_its_files(project):
    def fail(folder):
        (folder / "checkpoint.json").write_text("{}")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        load_or_make(unit(), fail)
    assert load(unit()) is None
    assert load_or_make(unit(), lambda folder: {"found": (folder / "checkpoint.json").exists()}).metrics == {
        "found": True
    }


def test_what_a_killed_attempt_left_goes_and_colleagues_may_read_the_rest(project):
    def make(folder):
        (folder / ".model.safetensors.123.part").write_text("half")
        write_tensors(folder / "model.safetensors", {"a": torch.zeros(2)})
        return {}

    folder = load_or_make(unit(), make).folder
    assert not list(folder.glob(".*.part"))
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == (folder / "run.json").stat().st_mode & 0o777


def test_checkpoints_go_when_the_run_is_finished_and_not_before(project):
    """What follows a training (predictions, features, tables) may fail, and must not cost it."""
    left = ["checkpoint.9.json", "checkpoint.9.safetensors"]

    def make(folder, error=None):
        for name in left:
            (folder / name).write_text("{}")
        if error:
            raise error
        return {}

    with pytest.raises(OSError):
        load_or_make(unit(), lambda folder: make(folder, OSError("disk full")))
    assert sorted(path.name for path in unit().folder.glob("checkpoint.*")) == left
    load_or_make(unit(), make)
    assert not list(unit().folder.glob("checkpoint.*"))


def test_a_half_written_record_does_not_count(project):
    unit().folder.mkdir(parents=True)
    (unit().folder / "run.json").write_text('{"stage": "02')
    assert load(unit()) is None


def test_files_of_a_finished_run_that_cannot_be_read_are_named_with_the_cure(project):
    def make(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / "history.csv").write_text("")
        return {}

    run = load_or_make(unit(), make)
    for read, name in (
        (run.tensors, "model"),
        (run.tensors, "features"),
        (run.table, "history"),
        (run.table, "ids"),
    ):
        with pytest.raises(DataError, match=f"{name}.* of the finished run .* cannot be read .*; delete the folder"):
            read(name)


def test_every_part_of_a_unit_changes_its_key(project):
    upstream = load_or_make(unit(stage="01"), lambda folder: {})
    keys = {
        unit().key,
        unit(version=2).key,
        unit(config={"lr": 0.2}).key,
        unit(cohort="abd").key,
        unit(stage="03_distillation").key,
        unit(upstream=[upstream]).key,
    }
    assert len(keys) == 6
    assert unit(title="another").key == unit().key


def _slow_make(folder):
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(0.3)
    return {}


def _make_in_process(home):
    import os

    os.environ["MEDKD_HOME"] = home
    load_or_make(unit(), _slow_make)


def test_two_processes_make_a_unit_once(project):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make_in_process, args=(str(project),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (unit().folder / "calls").read_text() == "x"


def test_who_waited_while_the_folder_was_cleared_away_makes_the_unit_in_a_new_one(project):
    unit().folder.mkdir(parents=True)
    with locked(unit().folder / ".lock"):
        waiting = threading.Thread(target=load_or_make, args=(unit(), _slow_make))
        waiting.start()
        time.sleep(0.3)
        shutil.rmtree(unit().folder)
    waiting.join()
    assert load(unit()) is not None


def test_several_processes_keep_talking_while_another_report_trains_their_unit(project, monkeypatch):
    """The others ended after half an hour without a word from the one that waited for the lock."""
    said = []

    def tell(value):
        said.append(value)
        if len(said) == 4:
            other.close()
        return value

    monkeypatch.setattr(store, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "is_main", lambda: True)
    monkeypatch.setattr(parallel, "barrier", lambda: None)
    monkeypatch.setattr(parallel, "told_by_main", tell)
    other = ExitStack()
    unit().folder.mkdir(parents=True)
    other.enter_context(locked(unit().folder / ".lock"))
    run = load_or_make(unit(), lambda folder: {})
    assert run.made and said[1:4] == [False] * 3, "waiting"
    assert said[-3:-1] == [True, None] and said[-1].key == run.key, "has it, found nothing finished, tells what it made"


def test_a_lock_file_that_another_made_anew_is_asked_for_again(tmp_path):
    path, held = tmp_path / ".lock", threading.Event()

    def hold():
        with locked(path):
            held.set()

    with locked(path):
        waiting = threading.Thread(target=hold)
        waiting.start()
        time.sleep(0.2)
        path.unlink()
        ours = locked(path)
        ours.__enter__()
    assert not held.wait(0.3), "two hold the lock"
    ours.__exit__(None, None, None)
    waiting.join()


def test_a_relative_project_folder_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("project", "~/project"):
        monkeypatch.setenv("MEDKD_HOME", named)
        assert runs_dir() == tmp_path.resolve() / "project" / "reports" / "runs"


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
