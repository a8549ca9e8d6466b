"""The benchmarks: their statistics, their table, and that each of them runs; no time is asserted."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ belongs to the project, not to the package

from benchmarks import bench_moco, harness, machine, quick_preset  # noqa: E402
from benchmarks.__main__ import TOPICS, main  # noqa: E402
from benchmarks.harness import Row, Scale  # noqa: E402
from medkd.data.views import HYBRID  # noqa: E402
from medkd.training.inputs import ImageModality  # noqa: E402

TINY = Scale("tiny", peers=False)


def test_calls_are_made_in_turn_and_in_reverse_order_every_other_time():
    made = []
    seconds = harness.alternate({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, repeats=3, warm_up=1)
    assert "".join(made) == "ab" + "ba" + "ab" + "ba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_short_calls_are_made_often_enough_to_be_timed():
    made = []
    found = harness.repeat_for({"a": lambda: made.append(1)}, repeats=2, least_seconds=0.01)
    assert len(found["a"]) == 2 and len(made) > 100
    assert max(found["a"]) < 0.01, "seconds of one call, not of all"


def test_a_ratio_is_the_median_over_repeats_with_its_quartiles():
    found = harness.ratio([2.0, 9.0, 8.0, 10.0, 6.0], [1.0, 3.0, 2.0, 2.0, 2.0])  # 2, 3, 4, 5, 3
    assert found == {"value": 3.0, "low": 3.0, "high": 4.0}


def test_load_that_slows_both_alike_leaves_the_ratio_as_it_is():
    over, under = np.array([4.0, 6.0, 5.0]), np.array([2.0, 3.0, 2.5])
    load = np.array([1.0, 7.0, 3.0])
    assert harness.ratio(list(over * load), list(under * load)) == harness.ratio(list(over), list(under))


def test_the_training_that_is_timed_trains_each_time(monkeypatch):
    made = []
    monkeypatch.setattr(
        bench_moco,
        "fit",
        lambda *given, folder, **named: made.append(list(folder.iterdir()) or 1) or (folder / "x").touch(),
    )
    params = quick_preset.moco_params(width=0.05)
    images = ImageModality(
        np.zeros((4, params.image_size, params.image_size, 3), np.uint8), HYBRID, torch.device("cpu")
    )
    run, _ = bench_moco.training(images, params)
    run(), run()
    assert made == [1, 1], "a folder that holds a checkpoint makes a training of nothing"


def test_one_repeat_has_no_spread_and_does_not_fail():
    assert harness.spread([2.0]) == {"value": 2.0, "low": 2.0, "high": 2.0}


@pytest.mark.parametrize(
    ("value", "limits", "met"),
    [
        (10.0, {"at_least": 10}, True),
        (9.9, {"at_least": 10}, False),
        (1.2, {"at_most": 1.15}, False),
        (1.15, {"at_most": 1.15}, True),
        (5.0, {}, None),
        (None, {"at_least": 3}, None),
    ],
)
def test_a_target_is_met_missed_or_not_known(value, limits, met):
    assert Row("1 x", "what", value, **limits).met is met


def test_the_table_says_what_was_missed_and_why_something_is_lacking():
    rows = [
        Row("2 MoCo", "slow thing", 1.234, low=1.2, high=1.3, at_most=1.15, medians={"medkd": 0.012, "views/s": 812.4}),
        Row("10 GPU", "images/s", None, note="no GPU"),
    ]
    head, slow, lacking = harness.table(rows).splitlines()
    assert head.split()[:3] == ["item", "measured", "value"]
    for part in ("1.23 x", "1.2 to 1.3", "<= 1.15", " NO ", "medkd 12 ms", "views/s 812"):
        assert part in slow
    assert lacking.endswith("no GPU") and " - " in lacking


def test_the_file_is_named_after_processor_cores_and_gpu_only():
    name = machine.file_name({"cpu": "AMD EPYC 7763 (x2)", "cores": 2, "gpu": "NVIDIA H100"})
    assert name == "amd-epyc-7763-x2-2-cores-nvidia-h100.json"


def test_the_machine_is_told_without_host_user_or_path():
    import getpass
    import platform

    text = json.dumps(machine.describe())
    assert platform.node() not in text and str(Path.home()) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


@pytest.mark.parametrize("topic", TOPICS)
def test_every_benchmark_runs_without_peers(topic, project):
    rows = importlib.import_module(f"benchmarks.bench_{topic}").run(TINY)
    assert rows and len({(row.item, row.what) for row in rows}) == len(rows)
    for row in rows:
        assert row.value is not None or row.note, f"{row.what}: neither a number nor a reason"
        assert row.value is None or np.isfinite(row.value)


def test_results_are_written_with_machine_load_and_every_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    assert main(["--only", "lowrank", "--output", str(tmp_path / "found.json")], TINY) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["size"] == "tiny" and len(found["load_before"]) == 3 and found["machine"]["torch"]
    assert all(row["item"] == "4 low rank" for row in found["rows"])
    assert found["rows"][0]["what"] in capsys.readouterr().out


def test_a_part_of_the_benchmarks_does_not_replace_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    monkeypatch.setattr("benchmarks.__main__.RESULTS", tmp_path / "results")
    main(["--only", "gpu"], TINY)
    assert not (tmp_path / "results").exists()


def test_a_benchmark_that_fails_is_a_row_and_an_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    monkeypatch.setattr("benchmarks.bench_lowrank.run", lambda scale: 1 / 0)
    assert main(["--only", "lowrank"], TINY) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
