"""Every stored number of the methods, one test per file; files of the same form with other numbers pass as well.

MEDKD_ORACLES names another folder than tests/oracles.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medkd.evaluation.pseudo_labels import label_with_logistic_regression
from medkd.losses import distillation
from medkd.losses.lowrank import LowRankLoss, relation_matrix, shrink, tensor_nuclear_norm
from medkd.losses.memory import ContrastiveDistillation
from medkd.losses.modulation import GradientModulation
from medkd.losses.self_distillation import dispersion_temperatures, pseudo_label_loss, released_pseudo_label_loss
from medkd.models.fusion import BilinearFusion
from medkd.models.momentum import MoCo

FOLDER = Path(os.environ.get("MEDKD_ORACLES") or Path(__file__).parent / "oracles")
PATHS = sorted(FOLDER.glob("*.npz"))

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def test_the_folder_holds_oracles():
    assert PATHS, f"no .npz file in {FOLDER}; set MEDKD_ORACLES to the folder with the reference numbers"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_equals_the_stored_numbers(path):
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files} | {"stem": np.array(path.stem)}
    prefixes = [prefix for prefix in CHECKS if path.stem.startswith(prefix)]
    assert prefixes, f"{path.name}: no check for this kind of oracle; known prefixes: {', '.join(CHECKS)}"
    CHECKS[max(prefixes, key=len)](arrays)


def close(found: Tensor | np.ndarray | float, expected: np.ndarray, relative: float | None = None) -> None:
    """1e-5 relative for float32 arrays, 1e-10 for float64; relative to the largest entry, for sums near zero."""
    found = np.asarray(found.detach() if isinstance(found, Tensor) else found, np.float64)
    relative = relative or (1e-10 if expected.dtype == np.float64 else 1e-5)
    expected = np.asarray(expected, np.float64)
    assert found.size == expected.size
    scale = max(np.abs(expected).max(), 1e-300)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=relative, atol=relative * scale)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def keys_with(arrays: Arrays, prefix: str) -> dict[str, float]:
    """Keys `<prefix><number>` and their numbers."""
    found = {key: float(key.removeprefix(prefix)) for key in arrays if key.startswith(prefix)}
    assert found, f"the oracle has no {prefix}<number>"
    return found


def fusion_bilinear_skip(arrays: Arrays) -> None:
    x1, x2 = tensor(arrays["x1"]), tensor(arrays["x2"])
    dim1, dim2, out_dim = x1.shape[1], x2.shape[1], arrays["out"].shape[1]
    skip = arrays["w:encoder2.0.weight"].shape[1] != out_dim
    fusion = BilinearFusion(dim1, dim2, out_dim, skip=skip).eval()
    fusion.load_state_dict({key[2:]: tensor(value) for key, value in arrays.items() if key.startswith("w:")})
    close(fusion(x1, x2), arrays["out"])


def relation(arrays: Arrays) -> None:
    close(relation_matrix(tensor(arrays["features"])), arrays["adjacency"])


def tsvd_prox(arrays: Arrays) -> None:
    close(tensor_nuclear_norm(tensor(arrays["tensor"])), arrays["tnn_input"])
    for key, tau in keys_with(arrays, "prox_tau").items():
        found = shrink(tensor(arrays["tensor"]), tau, kind="plain")
        close(found, arrays[key])
        close(tensor_nuclear_norm(found), arrays[key.replace("prox", "tnn")])


def tsvd_weighted_shrink(arrays: Arrays) -> None:
    stacked = torch.stack([relation_matrix(view) for view in tensor(arrays["features"])], dim=2)
    close(stacked, arrays["tensor"])
    for key, rho in keys_with(arrays, "shrunk_rho").items():
        close(shrink(tensor(arrays["tensor"]), rho), arrays[key])


def m3lr_loss(arrays: Arrays) -> None:
    loss = LowRankLoss(weight=float(arrays["lambda_global"]), mu=float(arrays["mu_start"]))
    affinity = tensor(arrays["tensor"])
    for row in arrays["rho_mu_loss"]:
        rho = loss.weight / loss.mu.clone()
        found = loss.of_tensors(affinity)
        close(torch.stack([rho, loss.mu, found]), row)


def contrast_module(arrays: Arrays, *, dtype: torch.dtype) -> ContrastiveDistillation:
    state = {key[2:]: tensor(value) for key, value in arrays.items() if key.startswith("w:")}
    _, temperature, z1, z2, momentum, *_ = arrays["w:contrast.params"].astype(np.float64).round(6).tolist()
    bank, head_s, head_t = (
        state[key] for key in ("contrast.memory_v1", "embed_s.linear.weight", "embed_t.linear.weight")
    )
    settings = {"embed_dim": bank.shape[1], "temperature": temperature, "momentum": momentum}
    module = ContrastiveDistillation(len(bank), head_s.shape[1], head_t.shape[1], **settings).to(dtype)
    with torch.no_grad():
        for side, short, number in (("student", "s", 1), ("teacher", "t", 2)):
            getattr(module, f"embed_{side}").weight.copy_(state[f"embed_{short}.linear.weight"])
            getattr(module, f"embed_{side}").bias.copy_(state[f"embed_{short}.linear.bias"])
            getattr(module, f"bank_{side}").copy_(state[f"contrast.memory_v{number}"])
        for buffer, z in ((module.log_z_student, z1), (module.log_z_teacher, z2)):
            buffer.fill_(np.log(z) if z > 0 else float("nan"))
    return module


def crd_two_steps(arrays: Arrays) -> None:
    module = contrast_module(arrays, dtype=torch.float32)
    index, contrast_index = tensor(arrays["index"]), tensor(arrays["contrast_index"])
    student = tensor(arrays["student"]).requires_grad_()
    loss = module(student, tensor(arrays["teacher"]), index, contrast_index)
    close(loss, arrays["loss1"])
    close(torch.autograd.grad(loss, student)[0], arrays["grad1"])
    close(module.bank_student, arrays["after:contrast.memory_v1"])
    close(module.bank_teacher, arrays["after:contrast.memory_v2"])
    close(torch.stack([module.log_z_student, module.log_z_teacher]).exp(), arrays["after:contrast.params"][2:4])
    close(module(tensor(arrays["student2"]), tensor(arrays["teacher2"]), index, contrast_index), arrays["loss2"])


def dscd_hard(arrays: Arrays) -> None:
    module = contrast_module(arrays, dtype=torch.float64)
    n_negatives, *_, n_positives = arrays["w:contrast.params"].astype(int).tolist()
    index, contrast_index = tensor(arrays["index"]), tensor(arrays["contrast_index"])
    assert contrast_index.shape[1] == n_positives + n_negatives
    pick = {"n_positives": n_positives, "selection": "hard", "n_selected": arrays["selected1"].shape[1]}
    for step, suffix in ((1, ""), (2, "2")):
        student = tensor(arrays[f"student{suffix}"]).double().requires_grad_()
        loss = module(student, tensor(arrays[f"teacher{suffix}"]).double(), index, contrast_index, **pick)
        close(loss, arrays[f"loss{step}"])
        close(torch.autograd.grad(loss, student)[0], arrays[f"grad{step}"])
        assert module.last_selected.tolist() == arrays[f"selected{step}"].tolist()
        if step == 1:
            close(module.bank_student, arrays["bank_student1"])
            close(module.bank_teacher, arrays["bank_teacher1"])
    close(module.log_z_student.exp(), arrays["z_student"])
    close(module.log_z_teacher.exp(), arrays["z_teacher"])


def gkm_weights(arrays: Arrays) -> None:
    features = tensor(arrays["features"]).requires_grad_()
    logits = features @ tensor(arrays["head"])
    targets, hints = tensor(arrays["teacher_logits"]), tensor(arrays["teacher_features"])
    losses = [distillation.distillation_loss(logits, target, temperature=1.0) for target in targets]
    losses += [distillation.hint(features, target) for target in hints]
    main = F.cross_entropy(logits, tensor(arrays["labels"]))
    close(torch.stack(losses), arrays["losses"])
    close(main, arrays["main"])
    soft = GradientModulation(len(losses), threshold=None)
    close(soft(losses, main, features), arrays["weights_soft"][:-1])
    close(soft.last_cosine, arrays["gradient_cosine"])
    for key in (key for key in arrays if key.startswith("weights_threshold_")):
        threshold = float(key.removeprefix("weights_threshold_").replace("p", "."))
        counted = GradientModulation(len(losses), threshold=threshold)
        close(counted(losses, main, features), arrays[key][:-1])


def kd_kl(arrays: Arrays) -> None:
    temperature = float(str(arrays["stem"]).removeprefix("kd_kl_T"))
    student, teacher = tensor(arrays["student_logits"]), tensor(arrays["teacher_logits"])
    close(distillation.distillation_loss(student, teacher, temperature=temperature), arrays["loss"])


def zoo(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Arrays], None]:
    def check(arrays: Arrays) -> None:
        student = tensor(arrays["student"]).requires_grad_()
        found = loss(student, tensor(arrays["teacher"]))
        close(found, arrays["loss"])
        if "grad" in arrays:
            close(torch.autograd.grad(found, student)[0], arrays["grad"])

    return check


def moco_steps(arrays: Arrays) -> None:
    out_dim, in_dim = arrays["q_weight0"].shape
    encoder = nn.Linear(in_dim, out_dim)
    settings = {"momentum": float(arrays["momentum"]), "temperature": float(arrays["temperature"])}
    moco = MoCo(encoder, queue_size=arrays["queue0"].shape[1], dim=out_dim, **settings)
    with torch.no_grad():
        for linear, side in ((moco.query_encoder, "q"), (moco.key_encoder.module, "k")):
            linear.weight.copy_(tensor(arrays[f"{side}_weight0"]))
            linear.bias.copy_(tensor(arrays[f"{side}_bias0"]))
        moco.queue.keys.copy_(tensor(arrays["queue0"]).T)
    for key, step in keys_with(arrays, "logits_").items():
        assert key == f"logits_{step:.0f}"
        output = moco(tensor(arrays[f"query_{step:.0f}"]), tensor(arrays[f"key_{step:.0f}"]))
        close(output["logits"], arrays[key])
        close(output["loss"], arrays[f"loss_{step:.0f}"])
        close(moco.queue.keys.T, arrays[f"queue_{step:.0f}"])
        assert int(moco.queue.pointer) == int(arrays[f"pointer_{step:.0f}"].item())
        close(moco.key_encoder.module.weight, arrays[f"k_weight_{step:.0f}"])


def pseudo_label_lr(arrays: Arrays) -> None:
    names = ("support_features", "support_labels", "unlabelled_features")
    soft = label_with_logistic_regression(*(arrays[name] for name in names), n_way=arrays["soft"].shape[1])
    close(soft, arrays["soft"])
    assert soft.argmax(axis=1).tolist() == arrays["hard"].tolist()


def self_distillation(arrays: Arrays) -> None:
    logits, mix = tensor(arrays["logits"]), float(arrays["alpha"])
    target = F.one_hot(tensor(arrays["hard"]), logits.shape[1]).to(logits.dtype)
    close(pseudo_label_loss(logits, target, mix=mix), arrays["loss_paper"])
    close(released_pseudo_label_loss(logits, target, mix=mix), arrays["loss_released_code"])


def dic_temperature(arrays: Arrays) -> None:
    spread, gamma = tensor(arrays["variance"]), float(arrays["gamma"])
    close(dispersion_temperatures(spread, gamma=gamma), arrays["tau_paper"])
    close(dispersion_temperatures(spread, gamma=gamma, form="released"), arrays["tau_released_code"])


def grading_metrics(arrays: Arrays) -> None:
    from medkd.evaluation.metrics import classification_metrics

    found = classification_metrics(arrays["labels"], arrays["probabilities"])
    for name in ("auc_micro", "auc_macro", "ap_micro", "f1_micro", "f1_macro"):
        close(found[name], arrays[name])
    close(found["f1_per_class"][2], arrays["f1_grade_iv"])


CHECKS: dict[str, Callable[[Arrays], None]] = {
    "crd_two_steps": crd_two_steps,
    "dic_temperature": dic_temperature,
    "dscd_hard": dscd_hard,
    "fusion_bilinear_skip": fusion_bilinear_skip,
    "gkm_weights": gkm_weights,
    "grading_metrics": grading_metrics,
    "kd_kl_T": kd_kl,
    "m3lr_loss": m3lr_loss,
    "moco_three_steps": moco_steps,
    "pseudo_label_lr": pseudo_label_lr,
    "relation_matrix": relation,
    "self_distillation_alpha": self_distillation,
    "tsvd_prox": tsvd_prox,
    "tsvd_weighted_shrink": tsvd_weighted_shrink,
    "zoo_attention": zoo(distillation.attention_transfer),
    "zoo_cc": zoo(distillation.correlation_congruence),
    "zoo_fitnet_hint": zoo(distillation.hint),
    "zoo_nst": zoo(distillation.neuron_selectivity),
    "zoo_pkt": zoo(distillation.probabilistic_transfer),
    "zoo_rkd": zoo(distillation.relational),
    "zoo_similarity": zoo(distillation.similarity_preserving),
}
