"""`medkd export`: files give the run's probabilities, the temperature helps, the card says the run's numbers."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from medkd.bundle.models import export_models, latency
from medkd.cli_export import export
from medkd.data.images import FileImages
from medkd.deploy.card import model_card
from medkd.deploy.deployed import TEMPERATURES, Deployed, fit_temperature, negative_log_likelihood, resized
from medkd.deploy.export import agreement, compare, export_run, write_programs
from medkd.deploy.predict import predict_images
from medkd.deploy.trained import load_trained
from medkd.errors import DataError, ParameterError
from medkd.evaluation.adaptation import soften
from medkd.evaluation.metrics import classification_metrics
from medkd.evaluation.predict import predict
from medkd.files import write_table
from medkd.models.encoders import build_image_encoder
from medkd.stages import (
    DistillationParams,
    SelfDistillationParams,
    TeacherParams,
    self_distil,
    train_students,
    train_teachers,
)
from medkd.stages.context import Context, cohort_of
from medkd.stages.networks import trained_network
from medkd.stages.paired import inputs_of, split_of, tensor_rows
from medkd.stages.store import Run, Unit, load_or_make

pytest.importorskip("onnxruntime", reason="medkd[export]")
pytest.importorskip("onnxscript", reason="medkd[export]")
pytestmark = pytest.mark.slow
TINY = {"image_size": 16, "encoder": "conv4", "device": "cpu", "precision": "float32"}
PAIRED = TINY | {"n_folds": 3, "folds": 1, "epochs": 2, "batch_size": 64}
RARE = TINY | {"dataset": "phantom-rare-skin", "width": 0.5}
MOCO = {"epochs": 1, "batch_size": 128, "queue_size": 100}


@pytest.fixture(scope="module")
def params(home):
    return DistillationParams(**PAIRED, methods=["ce"])


@pytest.fixture(scope="module")
def student(params):
    return train_students(params)["ce", 0]


@pytest.fixture(scope="module")
def tested(params, student):
    """A finished evaluation of two runs, the student the second one; the first is always wrong."""
    context = Context.of(params)
    rows = split_of(context, 0).test
    table = context.cohort.table.iloc[rows][["id", "roi", "patient", "label"]].reset_index(drop=True)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(rows)).round(6)
    own = pd.concat([table, pd.DataFrame(probabilities, columns=["p_0", "p_1", "p_2"])], axis=1)
    wrong = np.eye(3)[(table["label"] + 1) % 3]
    other = table.assign(**{f"p_{index}": wrong[:, index] for index in range(3)})
    both = pd.concat([other.assign(method="KD", part=0), own.assign(method="CE only", part=0)]).assign(setting="")
    first = Run(student.folder, "03_distillation", "0" * 16, {}, {}, (), student.cohort, 0.0)
    unit = Unit("07_evaluation", 3, {}, student.cohort, [first, student])
    load_or_make(unit, lambda folder: write_table(folder / "predictions.csv", both) or {})
    return own


@pytest.fixture(scope="module")
def exported(student, tested):
    return export_run(student.key[:6])


@pytest.fixture(scope="module")
def program(exported):
    return torch.export.load(exported / "model.pt2").module()


def record_of(folder):
    return json.loads((folder / "model.json").read_text())


def invoke(*arguments):
    app = typer.Typer()
    app.command()(export)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def onnx_probabilities(folder, images):
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, {"images": images})[0]


@pytest.mark.parametrize("shape", [(24, 24), (96, 160), (37, 301), (16, 3), (1, 1), (50, 40)])
def test_resizing_inside_is_that_of_the_image_cache_but_for_one_grey_level(shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = FileImages(["a.png"], root=tmp_path, cache_dir=tmp_path).load(24)[0].astype(int)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], 24)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= (0 if shape == (24, 24) else 1)


def test_temperature_is_the_one_that_scores_were_sharpened_with():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (4000, 3))
    labels = np.array([rng.choice(3, p=row) for row in np.exp(scores) / np.exp(scores).sum(1, keepdims=True)])
    assert fit_temperature(3 * scores, labels) == pytest.approx(3, rel=0.1)
    assert fit_temperature(scores / 4, labels) == pytest.approx(0.25, rel=0.1)


def test_temperature_of_scores_without_an_error_stays_in_its_range_and_of_useless_ones_too():
    labels = np.arange(30) % 3
    assert fit_temperature(np.eye(3)[labels], labels) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(TEMPERATURES[1], rel=1e-3)
    assert fit_temperature(np.zeros((30, 3)), labels) == 1.0


def test_tempered_probabilities_are_those_of_divided_scores():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = (scores / 2.5).softmax(1).numpy()
    np.testing.assert_allclose(soften(scores.softmax(1).numpy(), 2.5), expected, atol=1e-6)
    assert np.isfinite(soften(np.array([[1.0, 0.0]]), 3.0)).all()


def test_both_files_give_the_probabilities_of_the_run_on_held_out_images(exported, program, params, student):
    """Against the network as notebooks build it, not against the module that was exported."""
    context = Context.of(params)
    split = split_of(context, 0)
    rows, inputs = tensor_rows(split.test), inputs_of(context, split)[:1]
    cpu = torch.device("cpu")
    network = trained_network(context, student, "main")
    expected = predict(network, inputs, rows, device=cpu, precision="float32").probabilities
    expected = soften(expected, record_of(exported)["calibration"]["temperature"])
    images = np.ascontiguousarray(context.cohort.images["histology"].load(16)[split.test].transpose(0, 3, 1, 2))
    found = onnx_probabilities(exported, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(program(torch.from_numpy(images)).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(onnx_probabilities(exported, images[:1]), found[:1], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (5, 3, 33, 70), (1, 3, 900, 16)])
def test_any_number_of_images_of_any_size_is_taken(exported, program, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = onnx_probabilities(exported, images)
    assert found.shape == (shape[0], 3)
    np.testing.assert_allclose(program(torch.from_numpy(images)).numpy(), found, atol=1e-5)


def test_the_difference_from_pytorch_is_recorded_and_small(exported):
    parity = record_of(exported)["parity"]
    assert 0 <= parity["onnx"] <= 1e-5 and 0 <= parity["torch_export"] <= 1e-5
    assert parity["stored_max"] < 1e-4  # trained in float32 on the CPU
    assert f"{parity['onnx']:.1e} for `model.onnx`" in (exported / "MODEL_CARD.md").read_text()


def test_temperature_lowers_the_validation_likelihood_and_is_fitted_on_nothing_else(exported, student):
    calibration = record_of(exported)["calibration"]
    table = student.table("validation")
    labels, scores = table["label"].to_numpy(), np.log(table.filter(like="p_").to_numpy())
    assert calibration["nll_after"] < calibration["nll_before"]
    assert negative_log_likelihood(scores, labels) == pytest.approx(calibration["nll_before"], abs=1e-4)
    assert fit_temperature(scores, labels) == pytest.approx(calibration["temperature"], rel=1e-3)
    assert calibration["n"] == len(table)


def test_the_card_says_the_numbers_of_the_run_and_of_its_test_samples(exported, student, tested):
    record, card = record_of(exported), (exported / "MODEL_CARD.md").read_text()
    for name, table in {"validation": student.table("validation"), "test": tested}.items():
        expected = classification_metrics(table["label"].to_numpy(), table.filter(like="p_").to_numpy())
        found = record["metrics"][name]
        assert (found["n"], found["n_groups"]) == (len(table), table["patient"].nunique())
        assert [row["recall"] for row in found["per_class"]] == pytest.approx(expected["recall_per_class"])
        assert [row["f1"] for row in found["per_class"]] == pytest.approx(expected["f1_per_class"])
        assert all(row["recall_low"] <= row["recall"] <= row["recall_high"] for row in found["per_class"])
        for row in found["per_class"]:
            told = f"{row['recall']:.3f} ({row['recall_low']:.3f} to {row['recall_high']:.3f})"
            assert f"| {row['class']} | {row['n']} | {told} |" in card
    before = classification_metrics(tested["label"].to_numpy(), tested.filter(like="p_").to_numpy())
    assert record["metrics"]["test"]["ece_before"] == pytest.approx(before["ece"])


def test_the_card_says_what_data_and_what_use(exported, student):
    card = (exported / "MODEL_CARD.md").read_text()
    assert "Research only, not a medical device" in card and "Trained on simulated data" in card
    assert f"03_distillation/{student.key}" in card and student.cohort in card
    assert "It learned from labels alone" in card
    assert "Its probabilities follow how frequent the classes are in its data" in card
    assert "Epoch and temperature were chosen on this split" in card
    split = split_of(Context.of(DistillationParams(**PAIRED)), 0)
    rows = [line.split("|") for line in card.splitlines() if line.startswith("| grade") and line.count("|") == 8]
    assert [sum(int(row[column]) for row in rows) for column in (2, 4, 6)] == [
        len(split.train),
        len(split.val),
        len(split.test),
    ]


def test_a_card_survives_names_with_markup_and_classes_without_images(exported):
    record = record_of(exported)
    for split in ("validation", "test"):
        record["metrics"][split]["per_class"][0] |= {"class": "a|b <i>", "n": 0}
        record["metrics"][split]["per_class"][0] |= dict.fromkeys(("recall", "f1", "recall_low", "f1_low"))
    assert r"| a\|b &lt;i> | 0 | not known | not known |" in model_card(record)
    record["metrics"] = {"validation": record["metrics"]["validation"], "test": None}
    assert "there are no test numbers" in model_card(record)


def test_files_hold_no_path_of_this_machine(exported, student):
    here = str(sys.prefix).encode(), b"medkd/deploy/", str(student.folder.parent).encode()
    for path in exported.iterdir():
        assert not any(place in path.read_bytes() for place in here), path.name


def test_an_exported_student_predicts_png_files_as_the_cohorts_images(exported, params, student, tmp_path):
    images = cohort_of("phantom-glioma", "").images["histology"].load(16)[:3]
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    done = predict_images(exported, [tmp_path], tmp_path / "out")
    expected = onnx_probabilities(exported, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(done.table.filter(like="p_").to_numpy(), expected, atol=1e-6)
    assert list(done.table)[2:] == ["p_grade II", "p_grade III", "p_grade IV"]


def test_weights_that_do_not_give_what_the_run_stored_are_refused(student, tmp_path):
    folder = tmp_path / student.key
    shutil.copytree(student.folder, folder)
    table = student.table("validation")
    table[["p_0", "p_1", "p_2"]] = table[["p_1", "p_2", "p_0"]].to_numpy()
    write_table(folder / "validation.csv", table)
    changed = load_trained(dataclasses.replace(student, folder=folder))
    assert not np.allclose(changed.stored, load_trained(student).stored)
    scores = np.log(load_trained(student).stored)
    assert agreement(load_trained(student), scores)["stored_max"] < 1e-5
    with pytest.raises(DataError, match="gives other probabilities than the run stored"):
        agreement(changed, scores)


@pytest.mark.parametrize(
    ("stage", "config", "message"),
    [
        ("02_teacher_training", {"inputs": "both"}, "multi-modal teacher.*export a student"),
        ("02_teacher_training", {"inputs": "second"}, "sees omic, a vector; only networks that see an image"),
        ("03_distillation", {"task": "survival"}, "predicts a risk"),
        ("06_self_distillation", {"variant": "reg"}, r'\("con \+ L1"\) learned features and has no classifier'),
        ("04_moco_url", {}, "holds no classifier of one image"),
        ("05_pseudo_labelling", {}, "holds no classifier of one image"),
    ],
)
def test_runs_without_a_classifier_of_one_image_are_refused_in_one_sentence(tmp_path, stage, config, message):
    base = TeacherParams(**PAIRED).config() if stage.startswith("02") else {}
    run = Run(
        tmp_path, stage, "abc", base | {"fold": 0} | config, {}, (), cohort_of("phantom-glioma", "").fingerprint, 0
    )
    with pytest.raises(ParameterError, match=message) as found:
        load_trained(run)
    assert "\n" not in str(found.value)


def test_a_run_of_other_data_is_refused(student):
    with pytest.raises(DataError, match="was made on another content of phantom-glioma"):
        load_trained(dataclasses.replace(student, cohort="0" * 16))


def test_a_missing_package_is_one_sentence_that_names_the_extra(student, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ParameterError, match=r'need the package onnxscript.*pip install "medkd\[export\]"'):
        export_run(student.key)


def test_a_network_of_stage_02_on_its_second_image_is_exported(home, tmp_path):
    params = TeacherParams(**(PAIRED | {"dataset": "phantom-paired-skin", "epochs": 1}))
    run = train_teachers(params, ("second",))["second", 0]
    trained = load_trained(run)
    assert (trained.modality, trained.method) == ("dermoscopic", "dermoscopic only")
    scores = Deployed(trained.network, trained.size).scores(torch.from_numpy(trained.pixels()))
    np.testing.assert_allclose(scores.softmax(1).numpy(), trained.stored, atol=1e-5)


def test_a_frozen_encoder_goes_along_and_files_of_another_model_are_found(home, tmp_path):
    """What is exported starts at pixels, though the head was trained on stored features."""
    torch.manual_seed(0)
    weights = str(tmp_path / "weights.pt")
    torch.save(build_image_encoder("conv4", dim=16, width=0.25).state_dict(), weights)
    frozen = {"frozen": True, "frozen_views": 0, "weights": weights, "methods": ["ce"], "width": 0.25}
    run = train_students(DistillationParams(**PAIRED, **frozen))["ce", 0]
    with pytest.raises(ParameterError, match="name that file as weights"):
        load_trained(run)
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(DataError, match="is not the file that run"):
        load_trained(run, weights=str(tmp_path / "other.pt"))
    trained = load_trained(run, weights=weights)
    pixels = trained.pixels()
    scores = Deployed(trained.network, trained.size).scores(torch.from_numpy(pixels))
    np.testing.assert_allclose(scores.softmax(1).numpy(), trained.stored, atol=2e-3)  # features are kept in float16
    write_programs(Deployed(trained.network, trained.size, temperature=0.5), trained.classes, tmp_path)
    assert compare(Deployed(trained.network, trained.size, temperature=0.5), pixels, tmp_path)["onnx"] < 1e-5
    with pytest.raises(DataError, match=r"model\.onnx gives probabilities that differ from PyTorch's by .*1e-04"):
        compare(Deployed(trained.network, trained.size), pixels, tmp_path)


def test_the_command_exports_a_rare_disease_student_whose_card_says_why_its_temperature_is_1(exported, tmp_path):
    """Into a folder of another export, which it replaces."""
    own = {"epochs": 1, "batch_size": 128, "queue_size": 100}
    params = SelfDistillationParams(**RARE, **own, k_shots=[1], n_tasks=1, methods=["hybrid"], moco=MOCO)
    run = self_distil(params)["hybrid", 1, 0]
    folder = shutil.copytree(exported, tmp_path / "out")
    done = invoke(run.key, "--to", folder)
    assert done.exit_code == 0, done.output
    assert "Hbr.Dst. on Simulated dermoscopy: temperature 1.000" in done.stdout and done.stdout.strip().endswith("out")
    assert sorted(path.name for path in folder.iterdir()) == ["MODEL_CARD.md", "model.json", "model.onnx", "model.pt2"]
    record, card = record_of(folder), (folder / "MODEL_CARD.md").read_text()
    assert record["classes"] == list(cohort_of("phantom-rare-skin", "").rare_classes)
    assert record["calibration"]["temperature"] == 1.0 and record["metrics"] == {"validation": None, "test": None}
    assert "Temperature 1.000, not fitted: a rare-disease student has no validation split" in card
    assert "an image of a common class gets the name of a rare one" in card
    assert "Its probabilities follow a training that counted all classes alike" in card
    assert "arXiv:2110.04558" in card and "Of each rare class 1 labelled images" in card
    assert record["parity"]["stored_max"] < 1e-4 and record["parity"]["onnx"] < 1e-5


def test_a_bundle_gets_the_networks_of_one_image_of_the_first_fold_with_parity_and_latency(student, tested, tmp_path):
    other = load_or_make(Unit("03_distillation", 1, {"fold": 1}, student.cohort, [], "CE only, fold 1"), lambda _: {})
    both = TeacherParams(**PAIRED).config() | {"inputs": "both", "fold": 0}
    teacher = load_or_make(Unit("02_teacher_training", 1, both, student.cohort, [], "teacher, fold 0"), lambda _: {})
    evaluation = Run(tmp_path, "07_evaluation", "e", {}, {}, (student.key, other.key, teacher.key), student.cohort, 0)
    said = []
    table = export_models({"a": evaluation, "b": evaluation}, {"a": "", "b": ""}, tmp_path / "models", said.append)
    assert list(table["model"]) == [student.key] == [path.name for path in (tmp_path / "models").iterdir()]
    row, parity = table.iloc[0], record_of(tmp_path / "models" / student.key)["parity"]
    assert (row["title"], row["cell"]) == (student.title, "a") and student.title.endswith("fold 0")
    assert (row["parity_onnx"], row["parity_torch_export"]) == (parity["onnx"], parity["torch_export"])
    assert row["parity_onnx"] < 1e-5 and min(row["ms_batch_1"], row["ms_batch_64"]) > 0
    assert sorted(line.split(":")[0] for line in said) == ["exported", "not exported", "not exported"]
    assert all("teacher, fold 0: run" in line for line in said if line.startswith("not"))


def test_latency_is_the_median_of_nine_batches_after_a_warm_up(monkeypatch):
    """By a clock that the model moves: a tenth call that is slow, or a slow first one, must not count."""
    clock, took = [0.0], {1: [5.0] + [0.002] * 8 + [7.0], 64: [5.0] + [0.03] * 5 + [9.0] * 4}

    class Model:
        record = SimpleNamespace(image_size=24)

        def probabilities(self, images):
            assert images.shape[1:] == (3, 24, 24) and images.dtype == np.uint8
            clock[0] += took[len(images)].pop(0)

    monkeypatch.setattr("medkd.bundle.models.time.perf_counter", lambda: clock[0])
    assert latency(Model()) == {"ms_batch_1": 2.0, "ms_batch_64": 30.0} and not any(took.values())


def test_an_unknown_run_is_one_sentence(home):
    done = invoke("ffffffffff")
    assert done.exit_code == 2 and "`medkd runs list`" in done.stderr
