"""Features of several networks in one plane, as the notebooks show them."""

import dataclasses

import numpy as np
import pandas as pd
import torch

from medkd.files import write_table, write_tensors
from medkd.report.artifacts import Artifacts
from medkd.report.looks_features import embedding_caption, plane, rare_features, validation_features
from medkd.report.paper import redraw
from medkd.stages.store import Run


def run_in(folder, **tensors):
    folder.mkdir()
    write_tensors(folder / "features.safetensors", {name: torch.from_numpy(rows) for name, rows in tensors.items()})
    return Run(folder, "06", folder.name, {}, {}, (), cohort="c", seconds=0.0)


def test_validation_features_stand_beside_the_rows_of_their_images(cohort, tmp_path):
    features = np.arange(30.0).reshape(10, 3)
    run = run_in(tmp_path / "teacher", validation=features)
    write_table(run.folder / "validation.csv", cohort.table.iloc[[7, 3, 40, 1, 5, 9, 11, 13, 15, 47]][["id"]])
    rows, found = validation_features(cohort, {"teacher": run})["teacher"]
    assert rows.tolist() == [7, 3, 40, 1, 5, 9, 11, 13, 15, 47]
    np.testing.assert_array_equal(found, features)


def test_the_url_encoder_is_shown_on_the_images_that_a_student_kept(cohort, tmp_path):
    rng = np.random.default_rng(0)
    url = run_in(tmp_path / "url", features=rng.normal(size=(48, 5)))
    write_table(url.folder / "ids.csv", cohort.table[["id"]])
    kept = rng.permutation(48)[:40]
    student = run_in(tmp_path / "student", features=rng.normal(size=(40, 5)))
    write_table(student.folder / "ids.csv", cohort.table.iloc[kept][["id"]])
    found = rare_features(cohort, url, {"Hbr.Dst. K=5": student})
    assert list(found) == ["URL", "Hbr.Dst. K=5"]
    assert all(rows.tolist() == kept.tolist() for rows, _ in found.values())
    np.testing.assert_array_equal(found["URL"][1], url.tensors("features")["features"].numpy()[kept])
    alone, _ = rare_features(cohort, url, {})["URL"]
    assert set(cohort.rows_of(("d", "v"))) <= set(alone.tolist())


def test_labels_of_closed_classes_are_neither_shown_nor_counted(cohort):
    rng = np.random.default_rng(1)
    found, other = {"URL": (np.arange(48), rng.normal(size=(48, 5)))}, cohort.table.copy()
    other.loc[40:, ["class", "label"]] = other.loc[40:, ["class", "label"]].to_numpy()[::-1]
    shuffled = dataclasses.replace(cohort, table=other)
    tables = [plane(each, found, "URL", closed=("d", "v"))[0] for each in (cohort, shuffled)]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["class"]) == {"n", "m", "rare"}


def test_a_plane_is_drawn_with_the_rare_classes_on_top_and_again_from_its_table(cohort, tmp_path):
    rng = np.random.default_rng(1)
    found = {"URL": (np.arange(48), rng.normal(size=(48, 5))), "student": (np.arange(48), rng.normal(size=(48, 5)))}
    table, about = plane(cohort, found, "URL", closed=("d", "v"))
    assert table.groupby("method")["on_top"].sum().to_dict() == {"URL": 8, "student": 8}
    assert "fitted on the features of URL" in about
    out = Artifacts(tmp_path, "06", simulated=True)
    fig = out.drawn("umap", table, "umap", about)
    sizes = {points.get_label(): points.get_sizes()[0] for points in fig.axes[0].collections}
    assert sizes["rare"] > sizes["n"] == sizes["m"]
    before = (tmp_path / "figures" / "06-umap.png").read_bytes()
    (tmp_path / "figures" / "06-umap.png").unlink()
    redraw(tmp_path)
    assert (tmp_path / "figures" / "06-umap.png").read_bytes() == before


def test_caption_of_an_embedding_holds_every_parameter_and_says_where_methods_were_fitted_alone():
    embedding = pd.DataFrame({"method": ["teacher", "KD"] * 20, "reference": "teacher"})
    caption = embedding_caption(embedding, seed=7)
    for part in (
        "n_neighbors 15",
        "min_dist 0.1",
        "init pca",
        "seed 7",
        "n = 20 images",
        "fitted on the features of teacher",
    ):
        assert part in caption, part
    alone = embedding_caption(embedding.assign(reference="").iloc[:-21], seed=7)
    assert "fitted alone" in alone and "n = 9 to 10 images per method" in alone and "n_neighbors 9" in alone
