"""Miniature copies of the publishers' folders, with real JPEG files, and the real ones where they are here."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from miniatures import ISIC_COLUMNS, ISIC_ROWS, write_jpeg
from PIL import Image

from medkd.data.cohort import Cohort
from medkd.data.images import FileImages

MILK_COLUMNS = ["AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC"]
# lesion, class, clinical image, dermoscopic image; the order of the file names tells nothing
MILK_ROWS = [
    ("IL_3", "NV", "ISIC_31", "ISIC_39"),
    ("IL_1", "BCC", "ISIC_19", "ISIC_11"),
    ("IL_2", "MAL_OTH", "ISIC_20", "ISIC_21"),
    ("IL_4", "NV", "ISIC_48", "ISIC_40"),
]
# patient, grade; one without a grade, ids out of order on purpose
TCGA_ROWS = [("T-5", 4), ("T-1", 2), ("T-2", 3), ("T-4", None), ("T-3", 2)]


def one_hot(keys: list[str], names: list[str], key: str, columns: list[str]) -> pd.DataFrame:
    table = pd.DataFrame({column: [float(name == column) for name in names] for column in columns})
    table.insert(0, key, keys)
    return table


@pytest.fixture
def isic_folder(tmp_path):
    """Nine training images of the seven classes; the grey value of an image is 10 times its last digit."""
    root = tmp_path / "isic"
    for image, _, _ in ISIC_ROWS:
        write_jpeg(root / "ISIC2018_Task3_Training_Input" / f"{image}.jpg", 10 * int(image[-1]))
    images, names, lesions = map(list, zip(*ISIC_ROWS, strict=True))
    one_hot(images, names, "image", ISIC_COLUMNS).to_csv(root / "ISIC2018_Task3_Training_GroundTruth.csv", index=False)
    metadata = pd.DataFrame({"lesion_id": lesions, "image_id": images, "dx": [name.lower() for name in names]})
    metadata["age"] = [10.0 * int(image[-1]) for image in images]
    metadata["sex"], metadata["localization"] = "female", "back"
    metadata.iloc[::-1].to_csv(root / "HAM10000_metadata.csv", index=False)
    return root


@pytest.fixture
def milk_folder(tmp_path):
    """Four lesions, two images each; the grey value is the number in the image's name."""
    root = tmp_path / "milk"
    rows = []
    for number, (lesion, _, clinical, dermoscopic) in enumerate(MILK_ROWS):
        for image_type, image in (("clinical: close-up", clinical), ("dermoscopic", dermoscopic)):
            write_jpeg(root / "MILK10k_Training_Input" / lesion / f"{image}.jpg", int(image[5:]))
            rows.append({"lesion_id": lesion, "image_type": image_type, "isic_id": image, "age_approx": 10 * number})
    metadata = pd.DataFrame(rows).assign(sex="male", skin_tone_class=3, site="trunk", MONET_hair=0.5)
    metadata.to_csv(root / "MILK10k_Training_Metadata.csv", index=False)
    lesions, names = [row[0] for row in MILK_ROWS], [row[1] for row in MILK_ROWS]
    truth = one_hot(lesions, names, "lesion_id", MILK_COLUMNS)
    truth.to_csv(root / "MILK10k_Training_GroundTruth.csv", index=False)
    return root


@pytest.fixture
def tcga_folder(tmp_path):
    """Five patients with two mutations, one copy number and two expressions; a value is ten times the patient's number
    plus its column's, and the two tables are in different orders.
    """
    root = tmp_path / "tcga"
    root.mkdir()
    patients = pd.DataFrame(TCGA_ROWS, columns=["patient_id", "grade"])
    numbers = patients["patient_id"].str[2:].astype(int)
    patients["survival_months"], patients["event"] = 1.5 * numbers, numbers % 2
    patients = patients.assign(age_years=50.0, sex="female", histology="astrocytoma", idh_codel_subtype="IDHwt")
    patients.to_csv(root / "patients.csv", index=False)
    columns = ["A_mut", "B_mut", "A_cnv", "A_rnaseq", "C_rnaseq"]
    genomics = pd.DataFrame({column: 10 * numbers + i for i, column in enumerate(columns)})
    genomics.insert(0, "patient_id", patients["patient_id"])
    genomics.iloc[::-1].to_csv(root / "genomics.csv.gz", index=False)
    return root


@pytest.fixture
def real_folder():
    """A function: name of a set -> its folder, or the test is skipped."""

    def find(name: str) -> Path:
        base = os.environ.get("MEDKD_DATA")
        folder = (Path(base) if base else Path(__file__).parents[2].parent / "shared" / "data") / name
        if not folder.is_dir():
            pytest.skip(f"real data {name} is not here; set MEDKD_DATA to the folder that holds it")
        return folder

    return find


@pytest.fixture
def make_cohort():
    """A function: class names and groups of the rows -> a cohort without images, ids x000, x001, ..."""

    def make(
        names: list[str], groups: list[str], *, rare: tuple[str, ...] = (), images: FileImages | None = None
    ) -> Cohort:
        classes = tuple(dict.fromkeys(names))
        table = pd.DataFrame({"id": [f"x{i:03d}" for i in range(len(names))], "class": names, "patient": groups})
        table["label"] = [classes.index(name) for name in names]
        table["roi"] = table["id"]
        sources = {} if images is None else {"photo": images}
        return Cohort("toy", "Toy", False, classes, table, sources, rare_classes=rare, group="lesion")

    return make


@pytest.fixture
def image_folder(tmp_path):
    """Five different files: noise and gradients, colour, grey and palette, and sizes that are no squares."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (31, 47, 3), dtype=np.uint8)).save(folder / "a.jpg", quality=90)
    Image.fromarray(rng.integers(0, 256, (50, 20), dtype=np.uint8)).save(folder / "b.png")
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128), -1).astype(np.uint8)).save(
        folder / "sub" / "c.jpg"
    )
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).quantize(8).save(folder / "d.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "e.png")
    return folder
