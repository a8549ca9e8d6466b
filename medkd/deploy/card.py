"""The model card: what model.json says, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medkd.deploy.runtime import ONNX, PROGRAM, RESEARCH_ONLY
from medkd.evaluation.words import metric_words
from medkd.text import with_interval

GMCD = (
    "Xing, Chen, Hou, Yuan. Gradient modulated contrastive distillation of low-rank multi-modal knowledge for disease "
    "diagnosis. Medical Image Analysis 88, 102874, 2023."
)
SUN_2021 = (
    "Sun, Wei, Ma, Wang, Zheng. Unsupervised representation learning meets pseudo-label supervised self-distillation: "
    "a new approach to rare disease classification. MICCAI 2021, arXiv:2110.04558."
)
SUN_2024 = "Sun et al. Medical Image Analysis 93, 103102, 2024 (hybrid self-distillation with DIC)."
PAPERS = {
    "gmcd": [GMCD],
    "feature_kl": [GMCD],
    "kd": ["Hinton, Vinyals, Dean. Distilling the knowledge in a neural network. arXiv:1503.02531, 2015."],
    "hint": ["Romero et al. FitNets: hints for thin deep nets. arXiv:1412.6550, 2015."],
    "at": ["Zagoruyko, Komodakis. Paying more attention to attention. arXiv:1612.03928, 2017."],
    "sp": ["Tung, Mori. Similarity-preserving knowledge distillation. arXiv:1907.09682, 2019."],
    "rkd": ["Park et al. Relational knowledge distillation. arXiv:1904.05068, 2019."],
    "pkt": ["Passalis, Tefas. Learning deep representations with probabilistic knowledge transfer. arXiv:1803.10837."],
    "cc": ["Peng et al. Correlation congruence for knowledge distillation. arXiv:1904.01802, 2019."],
    "vid": ["Ahn et al. Variational information distillation for knowledge transfer. arXiv:1904.05835, 2019."],
    "nst": ["Huang, Wang. Like what you like: knowledge distill via neuron selectivity transfer. arXiv:1707.01219."],
    "crd": ["Tian, Krishnan, Isola. Contrastive representation distillation. arXiv:1910.10699, 2020."],
    **dict.fromkeys(("cls", "hybrid"), [SUN_2021, SUN_2024]),
    **dict.fromkeys(("hybrid_dic", "hybrid_ddl"), [SUN_2024, SUN_2021]),
}
"""What to cite for a network that a method made; "ce" and single modalities learned from labels alone."""
LABELS_ALONE = "It learned from labels alone; there is no paper of a method to cite."
GUO = "Guo, Pleiss, Sun, Weinberger. On calibration of modern neural networks. arXiv:1706.04599, 2017 (temperature)."


def model_card(record: Mapping[str, Any]) -> str:
    """The card in Markdown.

    Args:
        record: content of model.json, see `medkd.deploy.export.export_run`.
    """
    parts = [
        f"# Model card: {_plain(record['title'])}",
        f"**{RESEARCH_ONLY.capitalize()}.** {_simulated(record)}".strip(),
        "## Model",
        _model(record),
        "## Data",
        _data(record),
        "## Calibration",
        _calibration(record),
        "## Metrics",
        _metrics(record),
        "## Intended use",
        "Research on the images of this card's data set and on images taken and labelled in the same way: comparison "
        "of methods, error analysis, teaching. Not for the diagnosis, triage or treatment of anybody; no authority has "
        "cleared it for that, and no clinical study stands behind it.",
        "## Limits",
        _bullets(_limits(record)),
        "## How to use it",
        _usage(record),
        "## Checks at export",
        _checks(record),
        "## Citation",
        _bullets([*(record["papers"] or [LABELS_ALONE]), *([GUO] if record["calibration"]["n"] else [])]),
    ]
    return "\n\n".join(parts) + "\n"


def _simulated(record: Mapping[str, Any]) -> str:
    if not record["simulated"]:
        return ""
    return "**Trained on simulated data**, in which there is no real patient: it knows nothing about patients."


def _model(record: Mapping[str, Any]) -> str:
    size, run = record["image_size"], record["run"]
    return _bullets(
        [
            f"Method: {_plain(record['method'])}; encoder {run['encoder']}; {record['n_parameters']:,} parameters.",
            f'Sees one image of the modality "{_plain(record["modality"])}", and tells apart {len(record["classes"])} '
            f"classes: {', '.join(map(_plain, record['classes']))}.",
            f"Input `images`: uint8 RGB, shape (n, 3, h, w), h and w from 1 to {record['max_side']} px. Output "
            "`probabilities`: float32, shape (n, n_classes), classes in the order above, rows sum to 1.",
            f"Inside: resizing to {size} x {size} px (bilinear, antialiased, aspect ratio not kept, as in training), "
            "scaling, normalisation, the network, the temperature. An image is to be decoded upright and to 8-bit RGB.",
            f'Made by run `{run["stage"]}/{run["key"]}` ("{_plain(run["title"])}") of medkd '
            f"{record['versions']['medkd']}.",
        ]
    )


def _data(record: Mapping[str, Any]) -> str:
    cohort = record["cohort"]
    lines = [f"{_plain(cohort['title'])}, content `{cohort['fingerprint']}`."]
    lines += [
        f"{word}: {_plain(cohort[key])}."
        for word, key in (("Licence", "licence"), ("Credit", "attribution"))
        if cohort[key]
    ]
    return " ".join(lines) + "\n\n" + _table(record["data"])


def _calibration(record: Mapping[str, Any]) -> str:
    found = record["calibration"]
    text = f"Temperature {found['temperature']:.3f}, {found['how']}."
    if not found["n"]:
        return (
            f"{text} The probabilities are those of the network as it was trained, and may be too sure or too unsure."
        )
    text += (
        f" On these {found['n']} images it moved the negative log-likelihood from {found['nll_before']:.4f} to "
        f"{found['nll_after']:.4f} and the expected calibration error from {found['ece_before']:.3f} to "
        f"{found['ece_after']:.3f}."
    )
    if test := record["metrics"]["test"]:
        text += f" On the test images the latter went from {test['ece_before']:.3f} to {test['ece']:.3f}."
    return text


def _metrics(record: Mapping[str, Any]) -> str:
    """Validation and test numbers, or why there are none."""
    validation, test = record["metrics"]["validation"], record["metrics"]["test"]
    group = record["cohort"]["group"]
    parts = [f"Of single images, with 95% intervals in brackets (bootstrap over {group}s)."]
    if test:
        parts += [f"### Test, opened by evaluation `{test['evaluation']}`", _numbers(test, group)]
    else:
        parts.append("No finished evaluation (07_evaluation) has this run, so there are no test numbers.")
    if validation:
        parts += [
            "### Validation",
            f"{'Epoch and temperature were' if record['run']['keep'] == 'best' else 'The temperature was'} chosen on "
            "this split, so that its numbers flatter.",
            _numbers(validation, group),
        ]
    return "\n\n".join(parts)


def _numbers(found: Mapping[str, Any], group: str) -> str:
    overall = [
        {"metric": metric_words(row["metric"]), "value": _interval(row, "value", "")} for row in found["overall"]
    ]
    per_class = [
        {
            "class": row["class"],
            "images": row["n"],
            "recall": _interval(row, "recall", "recall_"),
            "F1": _interval(row, "f1", "f1_"),
        }
        for row in found["per_class"]
    ]
    return f"{found['n']} images of {found['n_groups']} {group}s.\n\n{_table(overall)}\n\n{_table(per_class)}"


def _limits(record: Mapping[str, Any]) -> list[str]:
    frequencies = (
        "a training that counted all classes alike, and give a rare one more than its share"
        if record["run"]["balanced"]
        else "how frequent the classes are in its data"
    )
    limits = [
        "It names one of its classes for every image, also for one that shows none of them or is no such image at all.",
        "It was trained on one data set; other devices, stains, sites and populations were not looked at.",
        f"Its probabilities follow {frequencies}; elsewhere classes are more or less frequent.",
        "It is one training run; another seed or split gives other numbers.",
    ]
    if record["rare"]:
        limits.append(
            "It tells rare classes from each other only: an image of a common class gets the name of a rare one. "
            f"Of each rare class {record['run']['k_shot']} labelled images were used."
        )
    if record["cohort"]["regions"]:
        limits.append(
            "Its images are parts of larger regions; give it parts of the same extent and magnification, and average "
            f"the probabilities over a region or {record['cohort']['group']}."
        )
    if record["simulated"]:
        limits.append("Its data are simulated: on real images its answers mean nothing.")
    return limits


def _usage(record: Mapping[str, Any]) -> str:
    return (
        "`medkd predict FOLDER images...` gives a table and a contact sheet. It decodes files and resizes them with "
        "Pillow, as the training data were; the resizing inside differs from that by one grey level at most. "
        f"`{ONNX}` runs in any ONNX runtime:\n\n"
        "```python\n"
        "import numpy as np, onnxruntime\n"
        "from PIL import Image, ImageOps\n\n"
        f'session = onnxruntime.InferenceSession("{ONNX}")\n'
        'image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")\n'
        "pixels = np.asarray(image).transpose(2, 0, 1)[None]\n"
        'probabilities = session.run(None, {"images": np.ascontiguousarray(pixels)})[0]\n'
        "```\n\n"
        "Make images of 16 bits or with transparency plain before that: `convert` clips and uncovers.\n\n"
        f'`{PROGRAM}` is a torch.export program: `torch.export.load("{PROGRAM}").module()`. PyTorch may unpickle parts '
        "of such a file, so load it only if you trust who gave it to you."
    )


def _checks(record: Mapping[str, Any]) -> str:
    found, versions = record["parity"], record["versions"]
    return (
        f"Against the network in PyTorch {versions['torch']}, on {found['n_images']} images that it was not trained on "
        f"and {found['n_enlarged']} of them enlarged, the largest difference of a probability was {found['onnx']:.1e} "
        f"for `{ONNX}` (onnxruntime {versions['onnxruntime']}) and {found['torch_export']:.1e} for `{PROGRAM}` as "
        f"loaded again; {found['limit']:.0e} is allowed. From the probabilities that the run itself had stored those "
        f"of the rebuilt network differ by {found['stored_mean']:.1e} on average and {found['stored_max']:.1e} at most "
        "(training may run in lower precision)."
    )


def _interval(row: Mapping[str, Any], name: str, prefix: str) -> str:
    value, low, high = row[name], row[f"{prefix}low"], row[f"{prefix}high"]
    if value is None:
        return "not known"
    return f"{value:.3f}" if low is None or high is None else with_interval(value, low, high)


def _table(rows: list[Mapping[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row[name] for name in head] for row in rows)]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(value: object) -> str:
    """A name out of somebody's table as text of one line that Markdown does not take for markup."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "|`*[]\\" else letter for letter in text)
