"""Class-activation maps of the networks that stage 07 compares, for the images that it tests them on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from medkd.data.cohort import Cohort
from medkd.data.episodes import FewShotTask
from medkd.data.registry import chain_of
from medkd.data.views import GMCD
from medkd.errors import DataError, ParameterError
from medkd.evaluation.activation import grad_cam
from medkd.models.device import to_device
from medkd.models.encoders import trunk
from medkd.models.teacher import MultimodalTeacher, SingleModalityNet
from medkd.stages import evaluation_paired, evaluation_rare
from medkd.stages.context import Context
from medkd.stages.evaluation import EvaluationParams
from medkd.stages.evaluation_rare import LABELLED_METHODS, URL_METHODS
from medkd.stages.networks import trained_network
from medkd.stages.paired import split_of, tensor_rows, width_of
from medkd.stages.pseudo_labelling import classify, drawn_task, rows_by_id, url_features
from medkd.stages.rare import build_encoder, only_image, trained_encoder
from medkd.stages.rare_baselines import baseline_network
from medkd.stages.self_distillation import METHODS
from medkd.stages.store import Run
from medkd.training.inputs import ImageModality, Modality, modality

Key = tuple[str, str, int]
"""Method, setting and part of the table of predictions."""


class Explained(NamedTuple):
    """A network that can be explained.

    Attributes:
        network: in eval mode on the device.
        inputs: what it is fed, in the order of its arguments.
        shown: position in `inputs` -> image modality that is there.
        head: attribute of its output that holds the scores.
        cohort: whose rows the inputs count.
        rows: row numbers that it was tested on.
    """

    network: nn.Module
    inputs: Sequence[Modality]
    shown: dict[int, str]
    head: str
    cohort: Cohort
    rows: np.ndarray


class ActivationMaps:
    """Grad-CAM of every image by the network that predicted it: of the fold or task in whose test images it lies.

    Networks are those of `evaluate(params)`. Like every stage it makes what the store lacks, so call it after
    `evaluate`: then all are found. A network is read when its first map is asked for.

    Args:
        params: of stage 07.

    Attributes:
        left_out: method -> the sentence that says why it has no maps; grows when an encoder turns out to have none.

    Raises:
        ParameterError: of the survival task.
    """

    def __init__(self, params: EvaluationParams) -> None:
        if params.task == "survival":
            raise ParameterError(
                'task = "survival" predicts risks, not classes: there is no confusion matrix and no class to map; '
                'evaluate with task = "classification"'
            )
        self.left_out: dict[str, str] = {}
        self._ready: dict[Key, Explained] = {}
        self._images: dict[tuple[str, int], ImageModality] = {}
        is_rare = chain_of(params.dataset, params.root) == "rare"
        self._makers = self._rare(params) if is_rare else self._paired(params)

    def __call__(self, samples: pd.DataFrame, method: str, classes: Sequence[int]) -> dict[str, np.ndarray]:
        """Maps of some test images.

        Args:
            samples: rows of stage 07's table `predictions`: id, setting and part are read; at least one.
            method: name in that table.
            classes: the class whose score is explained, as `label` counts them, shape (n,).

        Returns:
            Image modality that the method sees -> maps, shape (n, size, size), float32, 0 to 1, see `grad_cam`; a
            teacher of two image modalities has maps on both. Empty for a method of `left_out`.

        Raises:
            ParameterError: if the method is unknown, or the number of classes is not that of the samples.
            DataError: if a sample is none of the test images of its setting and part.
        """
        known = dict.fromkeys([*(name for name, _, _ in self._makers), *self.left_out])
        if method not in known:
            raise ParameterError(f'no method "{method}" in this evaluation; known are {", ".join(known)}')
        if len(classes) != len(samples):
            raise ParameterError(f"classes must name one class per sample; got {len(classes)} for {len(samples)}")
        found: dict[str, np.ndarray] = {}
        samples = samples.fillna({"setting": ""})  # what a CSV makes of the empty name
        for (setting, part), places in samples.groupby(["setting", "part"]).indices.items():
            if method in self.left_out:
                return {}
            explained = self._explained((method, setting, int(part)))
            rows = tensor_rows(_test_rows(explained, samples["id"].iloc[places].tolist(), setting, part))
            wanted = torch.from_numpy(np.asarray(classes, np.int64)[places])
            for slot, name in explained.shown.items():
                try:
                    maps = grad_cam(explained.network, explained.inputs, slot, rows, wanted, head=explained.head)
                except ParameterError:  # told by the first image of the first call, so that nothing is half done
                    self.left_out[method] = (
                        f"{method} has no activation maps: its image encoder is a transformer, or its last feature "
                        "maps have one pixel at this image_size"
                    )
                    return {}
                found.setdefault(name, np.zeros((len(samples), *maps.shape[1:]), np.float32))[places] = maps
        return found

    def _explained(self, key: Key) -> Explained:
        if key not in self._makers:
            raise DataError(
                f'{key[0]} was not tested in part {key[2]} of setting "{key[1]}"; pass rows of the predictions of '
                "evaluate(params) with the same params"
            )
        if key not in self._ready:
            self._ready[key] = self._makers[key]()
        return self._ready[key]

    def _image(self, context: Context, name: str) -> ImageModality:
        """The images of a modality, which go to the device once for all networks."""
        size = context.params.image_size
        if (name, size) not in self._images:
            self._images[name, size] = ImageModality(context.cohort.images[name].load(size), GMCD, context.device)
        return self._images[name, size]

    def _paired(self, params: EvaluationParams) -> dict[Key, Callable[[], Explained]]:
        makers = {}
        for source in evaluation_paired.sources_of(params):
            names, images = _modalities(source.kind, source.context.cohort)
            if set(names) & set(images):
                makers[source.method, "", source.fold] = lambda source=source: self._pair(source)
            else:
                self.left_out[source.method] = f"{source.method} has no activation maps: it sees no image"
        return makers

    def _pair(self, source: evaluation_paired.Source) -> Explained:
        context, cohort, params = source.context, source.context.cohort, source.context.params
        split = split_of(context, source.fold)
        names, images = _modalities(source.kind, cohort)
        where = {"size": params.image_size, "augment": GMCD, "train_rows": split.train, "device": context.device}
        inputs = [self._image(context, name) if name in images else modality(cohort, name, **where) for name in names]
        network = trained_network(context, source.run, source.kind)
        shown = {slot: name for slot, name in enumerate(names) if name in images}
        if params.frozen:  # what was trained begins behind the frozen trunk
            branches = [network.main, network.second] if isinstance(network, MultimodalTeacher) else [network]
            front = to_device(trunk(params.encoder, params.weights, width=width_of(params))[0], context.device).eval()
            for slot in shown:
                branches[slot].encoder = nn.Sequential(front, branches[slot].encoder)
        head = "logits_fused" if source.kind == "both" else "logits"
        return Explained(network, inputs, shown, head, cohort, split.test)

    def _rare(self, params: EvaluationParams) -> dict[Key, Callable[[], Explained]]:
        """Students with a classifier of their own, and encoders under a logistic regression on the support set."""
        sources = evaluation_rare.sources_of(params)
        students = params.of("self_distillation")
        labelling = Context.of(students.of("pseudo_labels"))
        tasks = [
            (k_shot, task) for _, method, k_shot, task in sources if method == evaluation_rare.REFERENCE and k_shot
        ]
        is_linear = labelling.params.classifier == "lr" and labelling.params.normalize == "none"
        makers = {}
        for run, method, k_shot, task in sources:
            if method == evaluation_rare.REFERENCE and k_shot:
                continue  # a labelling, which stands for its task
            own = method in evaluation_rare.DIRECT and method != METHODS["oracle"]
            fitted = method in (*URL_METHODS, *LABELLED_METHODS) or method.endswith(evaluation_rare.REFIT)
            name = evaluation_rare.shown_name(method, labelling.params.classifier)
            if not (own or (fitted and is_linear)):
                self.left_out[name] = (
                    f"{name} has no activation maps: it is not one network with a linear classifier on the image"
                )
                continue
            for key in [(k_shot, task)] if k_shot else tasks:
                makers[name, f"K={key[0]}", key[1]] = lambda run=run, method=method, key=key: self._of_task(
                    labelling, students, run, method, drawn_task(labelling, *key)
                )
        return makers

    def _of_task(self, labelling: Context, students: object, run: Run, method: str, drawn: FewShotTask) -> Explained:
        cohort, student = labelling.cohort, method.removesuffix(evaluation_rare.REFIT)
        context = dataclasses.replace(labelling, params=students)
        if method in URL_METHODS:
            encoder = trained_encoder(labelling, run, evaluation_rare.url_params(students, method))
            network = _under_regression(labelling, encoder, url_features(cohort, run), drawn)
        elif method in LABELLED_METHODS or method == METHODS["scratch"]:
            n_classes = len(drawn.classes if method == METHODS["scratch"] else cohort.base_classes)
            baselines = dataclasses.replace(labelling, params=students.baseline_params())
            network = baseline_network(baselines, n_classes, "explained")
            network.load_state_dict(run.tensors("model"))
            if method in LABELLED_METHODS:
                plain = evaluation_rare.with_plain_supports(labelling)
                network = _under_regression(plain, network.encoder, url_features(cohort, run), drawn)
        else:
            network = _student(context, run, len(drawn.classes))
            if student != method:
                features = evaluation_rare.features_of(cohort, [run])
                network = _under_regression(
                    evaluation_rare.with_plain_supports(labelling), network.encoder, features, drawn
                )
        name = only_image(cohort)
        query = rows_by_id(cohort, drawn.query_ids, f"task {drawn.name}")
        return Explained(network.eval(), [self._image(context, name)], {0: name}, "logits", cohort, query)


def _modalities(kind: str, cohort: Cohort) -> tuple[list[str], list[str]]:
    """Modalities that a network of this kind sees, and those of the cohort that are images."""
    slots = {"both": (cohort.main, cohort.second), "main": (cohort.main,), "second": (cohort.second,)}
    return list(slots[kind]), list(cohort.images)


def _test_rows(explained: Explained, ids: list[str], setting: str, part: int) -> np.ndarray:
    rows = rows_by_id(explained.cohort, ids, "samples")
    if (strange := ~np.isin(rows, explained.rows)).any():
        raise DataError(
            f'{ids[int(strange.argmax())]} is no test image of part {part} of setting "{setting}"; pass rows of the '
            "predictions of evaluate(params) with the same params"
        )
    return rows


def _student(context: Context, run: Run, n_way: int) -> SingleModalityNet:
    """Query encoder and classifier of a finished student (of "con + L1", which has none, an untrained one)."""
    encoder, _, n_features = build_encoder(context.params)
    network = SingleModalityNet(encoder, n_features, n_way)
    weights = run.tensors("model")
    state = {name.replace("moco.query_encoder.", "encoder."): value for name, value in weights.items()}
    network.load_state_dict(network.state_dict() | state)
    return to_device(network, context.device)


def _under_regression(
    labelling: Context, encoder: nn.Module, features: np.ndarray, drawn: FewShotTask
) -> SingleModalityNet:
    """The encoder under the logistic regression that the labelling stage fits to the support set of a task.

    Its centred log-probabilities are linear in the features, so those at 0 and at the unit vectors are its weights.
    """
    n_features = features.shape[1]
    probes = np.concatenate([features, np.zeros((1, n_features)), np.eye(n_features)])
    rows = np.arange(len(features), len(probes))
    logs = np.log(classify(labelling, probes, {0: drawn}, rows, encoder)[0])
    logs -= logs.mean(axis=1, keepdims=True)  # as scikit-learn's coefficients, which sum to 0 over the classes
    network = SingleModalityNet(encoder, n_features, len(drawn.classes))
    weights = {"classifier.weight": (logs[1:] - logs[0]).T, "classifier.bias": logs[0]}
    state = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in weights.items()}
    network.load_state_dict(network.state_dict() | state)
    return to_device(network, labelling.device)
