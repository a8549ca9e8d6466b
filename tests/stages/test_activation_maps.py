"""Activation maps come from the network that predicted the image, and from nothing else."""

import numpy as np
import pandas as pd
import pytest
import torch

from medkd.errors import DataError, ParameterError
from medkd.evaluation.activation import grad_cam
from medkd.models.encoders import build_image_encoder
from medkd.stages import EvaluationParams, evaluation_paired, evaluation_rare
from medkd.stages.activation import ActivationMaps
from medkd.stages.context import Context
from medkd.stages.networks import trained_network
from medkd.stages.paired import inputs_of, split_of, tensor_rows
from medkd.stages.pseudo_labelling import rows_by_id

pytestmark = pytest.mark.slow
TINY = {"epochs": 1, "batch_size": 64}
PAIRED = {"image_size": 16, "width": 0.125, "n_folds": 3, "folds": 2, "device": "cpu", "precision": "float32"}
PLAIN = TINY | {"low_rank_weight": 0.0, "momentum_views": False}  # what takes most of an epoch
PAIRED |= {"teacher": PLAIN, "distillation": TINY | {"methods": ["ce"]}}
RARE = {"dataset": "phantom-rare-skin", "image_size": 16, "width": 0.125, "device": "cpu", "precision": "float32"}
RARE |= {"k_shots": [5], "n_tasks": 1, "moco": {"epochs": 1, "batch_size": 128, "queue_size": 100}}
STUDENT = {"epochs": 1, "batch_size": 128, "queue_size": 100, "dic_every": 1, "methods": ["hybrid"]}


def samples_of(cohort, rows, part=0, setting=""):
    return pd.DataFrame({"id": cohort.table["id"].iloc[rows].to_numpy(), "setting": setting, "part": part})


@pytest.fixture(scope="module")
def paired(home):
    params = EvaluationParams(**PAIRED)
    sources = {(source.method, source.fold): source for source in evaluation_paired.sources_of(params)}
    return params, sources, ActivationMaps(params)


def test_each_image_is_explained_by_the_network_of_the_fold_that_tested_it(paired):
    _, sources, maps = paired
    for method, kind, head in (("teacher", "both", "logits_fused"), ("CE only", "main", "logits")):
        tables, expected, classes = [], [], np.array([0, 2, 1])
        for fold in (1, 0):
            source = sources[method, fold]
            split = split_of(source.context, fold)
            network, rows = trained_network(source.context, source.run, kind), split.test[5:8]
            inputs = inputs_of(source.context, split)[: 2 if kind == "both" else 1]
            expected.append(grad_cam(network, inputs, 0, tensor_rows(rows), torch.from_numpy(classes), head=head))
            tables.append(samples_of(source.context.cohort, rows, fold))
        order = [3, 0, 4, 1, 5, 2]  # the folds mixed
        samples = pd.concat(tables, ignore_index=True).iloc[order]
        found = maps(samples, method, np.tile(classes, 2)[order])
        assert list(found) == ["histology"]
        np.testing.assert_allclose(found["histology"], np.concatenate(expected)[order], atol=1e-4)


def test_a_method_without_an_image_has_no_maps_and_a_sentence(paired):
    _, sources, maps = paired
    samples = samples_of(sources["teacher", 0].context.cohort, split_of(sources["teacher", 0].context, 0).test[:2])
    assert maps(samples, "omic only", [0, 0]) == {}
    assert maps.left_out["omic only"] == "omic only has no activation maps: it sees no image"


def test_only_test_images_of_the_evaluation_are_explained(paired):
    _, sources, maps = paired
    context = sources["teacher", 0].context
    split = split_of(context, 0)
    with pytest.raises(DataError, match="is no test image of part 0"):
        maps(samples_of(context.cohort, split.train[:1]), "teacher", [0])
    with pytest.raises(DataError, match="not tested in part 7"):
        maps(samples_of(context.cohort, split.test[:1], 7), "teacher", [0])
    with pytest.raises(ParameterError, match='no method "GMCD" in this evaluation; known are teacher, CE only, omic'):
        maps(samples_of(context.cohort, split.test[:1]), "GMCD", [0])
    with pytest.raises(ParameterError, match="got 2 for 1"):
        maps(samples_of(context.cohort, split.test[:1]), "teacher", [0, 1])


def test_survival_has_no_classes_to_map(paired):
    with pytest.raises(ParameterError, match='task = "survival" predicts risks'):
        ActivationMaps(EvaluationParams(**PAIRED | {"task": "survival"}))


def test_frozen_encoders_are_explained_through_their_trunk(home, tmp_path):
    weights = tmp_path / "encoder.pt"
    torch.save(build_image_encoder("resnet12", dim=4, width=0.125).state_dict(), weights)
    frozen = {"frozen": True, "frozen_views": 0, "weights": str(weights), "folds": 1, "image_size": 32}
    params = EvaluationParams(**PAIRED | frozen | {"distillation": {"methods": ["ce"]}})
    maps = ActivationMaps(params)
    (source, *_) = evaluation_paired.sources_of(params)
    rows = split_of(source.context, 0).test[:4]
    samples = samples_of(source.context.cohort, rows)
    found = maps(samples, "teacher", [0, 1, 2, 0])["histology"]
    assert found.shape == (4, 32, 32) and found.min() >= 0 and found.max() == 1
    assert not np.allclose(found, maps(samples, "teacher", [1, 2, 0, 1])["histology"])
    explained = maps._explained(("teacher", "", 0))
    (front, _), images = explained.network.main.encoder, explained.inputs[0].plain(tensor_rows(rows))
    stored = inputs_of(source.context, split_of(source.context, 0))[0].plain(tensor_rows(rows))
    with torch.inference_mode():
        torch.testing.assert_close(front(images), stored, atol=1e-3, rtol=1e-3)  # what is stored is float16


def test_the_rare_chain_explains_students_and_the_teacher_on_its_support_set(home):
    params = EvaluationParams(**RARE, self_distillation=STUDENT)
    context = Context.of(params)
    predictions, _ = evaluation_rare.predict_all(context, evaluation_rare.sources_of(params))
    maps = ActivationMaps(params)
    assert maps.left_out == {}
    rows = predictions[predictions["method"] == "MoCo + LR"].head(40)
    for method in ("MoCo + LR", "Hbr.Dst."):
        explained = maps._explained((method, "K=5", 0))
        found = maps(rows, method, rows["label"])["dermoscopic"]
        assert found.shape == (40, 16, 16) and found.max() == 1
        given = explained.inputs[0].plain(tensor_rows(rows_by_id(context.cohort, rows["id"])))
        with torch.inference_mode():
            scores = explained.network(given).logits.softmax(dim=1).numpy()
        said = predictions[predictions["method"] == method].head(40)
        np.testing.assert_array_equal(said["id"], rows["id"])
        np.testing.assert_allclose(scores, said[["p_0", "p_1", "p_2"]], atol=2e-3)


def test_a_teacher_that_is_not_linear_in_the_features_is_left_out(home):
    ridge = {"self_distillation": STUDENT | {"methods": []}, "pseudo_labels": {"classifier": "ridge"}}
    maps = ActivationMaps(EvaluationParams(**RARE | ridge))
    assert maps.left_out["MoCo + ridge"].startswith("MoCo + ridge has no activation maps: it is not one network with")
