import dataclasses
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest
from miniatures import write_jpeg
from typer.testing import CliRunner

from medkd.cli import app
from medkd.data import own
from medkd.data.folds import split_rows
from medkd.data.own_schema import SCHEMA_FILE, explain, infer, problem_of, read_schema, write_schema
from medkd.data.own_table import read_own_table
from medkd.data.registry import chain_of, load_cohort
from medkd.errors import DataError
from medkd.training.inputs import VectorModality

N = 24


@pytest.fixture
def pairs(tmp_path):
    """24 lesions of 12 patients with two images each; the grey value is 5 times the row, plus 1 in the second image."""
    root = tmp_path / "meine Fälle"
    rows = []
    for row in range(N):
        names = [f"bilder/Läsion {row} {kind}.jpg" for kind in ("a", "b")]
        for number, name in enumerate(names):
            write_jpeg(root / name, 5 * row + number)
        rows.append([f"P{row // 2}", *names, "malign" if row % 3 == 0 else "benign", row / 2, "Bein"])
    table = pd.DataFrame(rows, columns=["patient", "dermoscopy", "photo", "diagnosis", "age", "site"])
    table["site"] = ["Bein", "Arm", ""] * 8
    table.loc[4, "age"] = None
    table.to_csv(root / "fälle.csv", index=False)
    return root


def confirm(root, **changes):
    write_schema(root, infer(root).model_copy(update={"confirmed": True} | changes))


def rewrite(root, change, name="fälle.csv", **how):
    table = change(pd.read_csv(root / name, dtype=str, keep_default_na=False))
    table.to_csv(root / name, index=False, **how)


def test_two_image_columns_become_a_pair_and_the_rest_metadata(pairs):
    schema = infer(pairs)
    assert (schema.image, schema.second_image, schema.patient) == ("dermoscopy", "photo", "patient")
    assert (schema.label, schema.classes) == ("diagnosis", ["benign", "malign"])
    assert (schema.numbers, schema.categories, schema.flags) == (["age"], ["site"], [])
    assert (schema.chain, schema.confirmed, schema.title) == ("teacher-student", False, "meine Fälle")


def test_a_confirmed_folder_is_a_cohort(pairs, tmp_path):
    confirm(pairs)
    cohort = load_cohort("own", str(pairs), cache_dir=tmp_path / "cache")
    assert chain_of("own", str(pairs)) == "teacher-student"
    assert len(cohort) == N and cohort.table["patient"].tolist() == [f"P{row // 2}" for row in range(N)]
    for modality, extra in (("image", 0), ("second_image", 1)):
        grey = cohort.images[modality].load(8).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(grey, 5 * np.arange(N) + extra, atol=1.5)
    assert (cohort.main, cohort.second, cohort.group) == ("image", "second_image", "patient")
    vector = cohort.vectors["metadata"]
    assert vector.names == ("age", "site=Arm", "site=Bein")
    assert np.isnan(vector.values[4, 0])


def test_gaps_are_filled_from_training_rows_only(pairs):
    """The median of the training rows is 1.0 with their ages 0, 1 and 11; all rows would give another."""
    confirm(pairs)
    cohort = own.read(pairs)
    import torch

    filled = VectorModality(cohort.vectors["metadata"].values, np.array([0, 2, 22]), torch.device("cpu"))
    values = filled.plain(torch.tensor([4, 2]))
    assert values[0, 0].item() == pytest.approx(values[1, 0].item())


def test_an_unconfirmed_or_missing_schema_is_told_with_the_command(pairs):
    with pytest.raises(DataError, match=r"there is no medkd\.yaml in .*; run `medkd data prepare own --root FOLDER`"):
        own.read(pairs)
    write_schema(pairs, infer(pairs))
    with pytest.raises(DataError, match="is not confirmed; look at it, set confirmed: true"):
        own.read(pairs)


def test_the_schema_survives_its_file_and_explains_itself(pairs):
    schema = infer(pairs)
    path = write_schema(pairs, schema)
    assert read_schema(pairs) == schema
    text = path.read_text(encoding="utf-8")
    assert "# column that no split may cut" in text and "meine Fälle" in text
    told = explain(schema, pairs)
    assert "24 rows" in told and "benign (16), malign (8)" in told
    assert all(column in told for column in ("patient", "dermoscopy", "photo", "diagnosis", "age", "site"))


def test_mistakes_in_the_schema_are_told_with_file_and_key(pairs):
    confirm(pairs)
    path = pairs / SCHEMA_FILE
    good = path.read_text(encoding="utf-8")
    for change, message in (
        (lambda text: text.replace("patient:", "pateint:"), '"pateint": .*did you mean "patient"'),
        (lambda text: text.replace("chain: teacher-student", "chain: student"), '"chain": .*teacher-student'),
        (lambda text: text + "\n: [", "is no readable YAML in line [0-9]+: .*; correct or delete it"),
        (lambda text: text + "\nday: 2020-13-45\n", "is no readable YAML: month must be in 1..12"),
        (lambda text: text + "\nlabel: photo\n", 'is no readable YAML in line [0-9]+: "label" stands twice'),
        (lambda text: text.replace("label: diagnosis", "label: dignosis"), r"names the column\(s\) dignosis"),
        (
            lambda text: text.replace("[benign, malign]", "[benign, other]"),
            'has the diagnosis "malign", which is none of benign, other, for Läsion 0 a',
        ),
        (lambda text: text.replace("label: diagnosis", "lable: diagnosis"), '"lable": .*did you mean "label"'),
        (lambda text: text.replace("[benign, malign]", "[no, yes]"), r'"classes\.0": .*; put it in quotes'),
        (lambda text: "# nothing", '"the file": '),
        (
            lambda text: text.replace("categories: [site]", "categories: [diagnosis]"),
            "columns diagnosis are in metadata",
        ),
        (lambda text: text.replace("categories: [site]", "categories: [age]"), "columns age are in metadata twice"),
    ):
        assert change(good) != good
        path.write_text(change(good), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            own.read(pairs)


def test_a_label_that_is_not_there_is_no_class_and_one_class_alone_is_refused(pairs):
    def missing_last(table):
        return table.assign(diagnosis=[*table["diagnosis"][:-1], "NaN"])

    rewrite(pairs, missing_last)
    assert infer(pairs).classes == ["benign", "malign"]
    confirm(pairs)
    with pytest.raises(DataError, match='has the diagnosis "NaN", which is none of benign, malign'):
        own.read(pairs)
    rewrite(pairs, lambda table: table.assign(diagnosis="malign"))
    with pytest.raises(DataError, match="has rows of one class only, malign; medkd needs rows of two or more"):
        own.read(pairs)


def test_one_image_and_columns_make_a_teacher_with_metadata(pairs):
    rewrite(pairs, lambda table: table.drop(columns="photo"))
    confirm(pairs)
    cohort = own.read(pairs)
    assert (cohort.main, cohort.second) == ("image", "metadata")


def test_one_image_alone_is_proposed_for_the_rare_chain(pairs):
    def change(table):
        table["diagnosis"] = [*"aaaaaaaaaabbbbbbbbbb", "c", "c", "d", "d"]
        return table[["patient", "dermoscopy", "diagnosis"]]

    rewrite(pairs, change)
    schema = infer(pairs)
    assert (schema.chain, schema.rare_classes) == ("rare", ["c", "d"])
    confirm(pairs)
    cohort = own.read(pairs)
    assert (cohort.base_classes, cohort.rare_classes, cohort.main) == (("a", "b"), ("c", "d"), "")
    confirm(pairs, rare_classes=["c", "x"])
    with pytest.raises(DataError, match="rare_classes that are no classes: x"):
        own.read(pairs)


def test_a_split_column_is_not_taken_for_the_rare_chain_and_refused_there(pairs):
    def change(table):
        table["diagnosis"] = [*"aaaaaaaaaabbbbbbbbbb", "c", "c", "d", "d"]
        return table[["patient", "dermoscopy", "diagnosis"]].assign(part=["train"] * 12 + ["test"] * 12)

    rewrite(pairs, change)
    assert infer(pairs).split == ""
    assert "split: not used; chain rare draws support and query sets of its own" in explain(infer(pairs), pairs)
    confirm(pairs, split="part")
    with pytest.raises(DataError, match="chain rare draws support and query sets of its own; leave split empty"):
        own.read(pairs)


def test_columns_without_images_are_vectors(pairs):
    rewrite(pairs, lambda table: table.drop(columns=["photo", "dermoscopy"]))
    confirm(pairs)
    cohort = own.read(pairs)
    assert (chain_of("own", str(pairs)), cohort.main, cohort.second) == ("vector", "", "metadata")
    assert cohort.table["id"].iloc[0] == "row_00001"


def test_a_split_column_is_followed_and_a_patient_in_two_parts_refused(pairs):
    words = ["Train"] * 12 + ["val"] * 4 + ["test"] * 8
    rewrite(pairs, lambda table: table.assign(part=words))
    confirm(pairs)
    assert infer(pairs).split == "part"
    split = split_rows(own.read(pairs), fold=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [12, 4, 8]
    rewrite(pairs, lambda table: table.assign(part=["train"] * 11 + ["test"] * 13))
    with pytest.raises(DataError, match="puts P5 into several parts"):
        split_rows(own.read(pairs), fold=0)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_separators_marks_and_line_ends_do_not_matter(pairs, separator, encoding, ends):
    plain = read_own_table(pairs / "fälle.csv")
    rewrite(pairs, lambda table: table, sep=separator, encoding=encoding, lineterminator=ends)
    pd.testing.assert_frame_equal(read_own_table(pairs / "fälle.csv"), plain)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_points_where_commas_do_not_separate(tmp_path, separator):
    rows = (["thickness", "site"], ["0,5", "a, b"], ["1,25", "c"])
    (tmp_path / "table.csv").write_text("\n".join(separator.join(row) for row in rows))
    table = read_own_table(tmp_path / "table.csv")
    assert table["thickness"].tolist() == ["0.5", "1.25"] and table["site"].tolist() == ["a, b", "c"]


@pytest.mark.parametrize("blank", ["\n", "\r\n", ",,\n", " \n"])
def test_rows_are_named_by_their_line_also_behind_blank_ones(tmp_path, blank):
    write_jpeg(tmp_path / "a.jpg", 9)
    lines = [blank, "file,label,patient\n", blank, "a.jpg,x,p\n", blank, blank, "../b.jpg,y,q\n"]
    (tmp_path / "table.csv").write_text("".join(lines), newline="")
    assert read_own_table(tmp_path / "table.csv").attrs["lines"] == [4, 7]
    roles = {"image": "file", "patient": "patient", "categories": []}
    confirm(tmp_path, chain="rare", rare_classes=["x", "y"], classes=["x", "y", "z"], **roles)
    with pytest.raises(DataError, match=r'has "\.\./b\.jpg" as file in row 7, which is no file inside'):
        own.read(tmp_path)
    (tmp_path / "table.csv").write_text("".join(lines).replace("../b.jpg,y,q", "b.jpg,y,"), newline="")
    write_jpeg(tmp_path / "b.jpg", 9)
    with pytest.raises(DataError, match="has rows without patient, row 7; fill it"):
        own.read(tmp_path)


def test_names_whose_accents_macos_wrote_apart_are_found(pairs, tmp_path):
    for path in list((pairs / "bilder").iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert not (pairs / "bilder" / "Läsion 0 a.jpg").exists()
    assert infer(pairs).image == "dermoscopy"
    confirm(pairs)
    grey = own.read(pairs, cache_dir=tmp_path / "cache").images["image"].load(8).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(grey, 5 * np.arange(N), atol=1.5)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_told_with_the_cure(pairs, encoding):
    rewrite(pairs, lambda table: table, encoding=encoding)
    with pytest.raises(DataError, match='save it as "CSV UTF-8"'):
        infer(pairs)


def test_tables_that_are_none_are_named(tmp_path):
    path = tmp_path / "table.csv"
    for content, message in (
        ("", "is empty or no text"),
        ("a,b\n", "a header and no rows"),
        (";;;\n;;;\n", "separators and nothing between them"),
        ("a,a\n1,2\n", "several columns of the name a"),
        ("a,,b\n1,2,3\n", "no name for column 2; name it, or remove it"),
        ("a,b\n1,2\n1,2,3\n", "cannot be read as a CSV table"),
        ("a,b\n1,1.5\n2,2.5\n", "no column of .* looks like classes"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            infer(tmp_path)


def test_which_table_is_meant_must_be_clear(pairs, tmp_path):
    (pairs / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DataError, match=r"several CSV files \(fälle\.csv, other\.csv\); call the one to use table\.csv"
    ):
        infer(pairs)
    (pairs / "fälle.csv").rename(pairs / "table.csv")
    assert infer(pairs).table == "table.csv"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no CSV file"):
        infer(tmp_path / "empty")


def test_files_outside_the_folder_missing_files_and_repeated_ids_are_refused(pairs):
    for name in ("../secret.jpg", "/etc/secret.jpg", "..\\secret.jpg"):
        rewrite(pairs, lambda table, name=name: table.assign(photo=[name, *table["photo"][1:]]))
        confirm(pairs)
        with pytest.raises(DataError, match="as photo in row 2, which is no file inside"):
            own.read(pairs)
    rewrite(pairs, lambda table: table.assign(photo=["bilder/nobody.jpg", *table["photo"][1:]]))
    with pytest.raises(DataError, match=r"names images that are not in .*: bilder/nobody\.jpg"):
        own.read(pairs)
    rewrite(pairs, lambda table: table.assign(photo=table["dermoscopy"], image_id=["x"] * 2 + ["y"] * 22))
    confirm(pairs, id="image_id")
    with pytest.raises(DataError, match="no or several rows for image_id x, y"):
        own.read(pairs)


def test_rows_without_a_label_are_told_by_name(pairs):
    rewrite(pairs, lambda table: table.assign(diagnosis=[*table["diagnosis"][:5], "", *table["diagnosis"][6:]]))
    confirm(pairs)
    with pytest.raises(DataError, match="has no diagnosis for Läsion 5 a; fill or remove"):
        own.read(pairs)


def test_empty_image_files_are_found(pairs, tmp_path):
    confirm(pairs)
    (pairs / "bilder" / "Läsion 3 a.jpg").write_bytes(b"")
    cohort = own.read(pairs, cache_dir=tmp_path / "cache")
    assert list(cohort.images["image"].unreadable()) == ["bilder/Läsion 3 a.jpg"]


def test_images_in_a_subfolder_that_the_column_does_not_name_are_found(pairs):
    rewrite(
        pairs, lambda table: table.assign(**{c: table[c].str.removeprefix("bilder/") for c in ("dermoscopy", "photo")})
    )
    assert infer(pairs).image_folder == "bilder"
    confirm(pairs)
    assert len(own.read(pairs)) == N


def test_survival_columns_are_taken_over(pairs):
    rewrite(pairs, lambda table: table.assign(survival_months=[*["12.5"] * 23, ""], event=[*["1"] * 23, ""]))
    confirm(pairs)
    cohort = own.read(pairs)
    assert cohort.has_survival and np.isnan(cohort.table["survival_months"].iloc[-1])
    assert dataclasses.replace(cohort).fingerprint == cohort.fingerprint


def test_prepare_asks_for_the_folder_and_writes_into_no_other(pairs, project, monkeypatch):
    monkeypatch.chdir(pairs)
    refused = CliRunner().invoke(app, ["data", "prepare", "own", "--yes"])
    assert refused.exit_code == 2 and "own needs --root FOLDER" in refused.output
    assert not (pairs / "medkd.yaml").exists()


def test_prepare_shows_asks_and_writes(pairs, project):
    runner = CliRunner()
    refused = runner.invoke(app, ["data", "prepare", "own", "--root", str(pairs)], input="n\n")
    assert refused.exit_code == 0 and "24 rows" in refused.output and "edit" in refused.output
    assert not read_schema(pairs).confirmed
    agreed = runner.invoke(app, ["data", "prepare", "own", "--root", str(pairs), "--size", "16"], input="y\n")
    assert agreed.exit_code == 0 and "second_image at 16 px: 24 images" in agreed.output
    assert read_schema(pairs).confirmed


def test_the_published_rare_classes_of_isic_2018_would_be_proposed(tmp_path):
    counts = {"MEL": 111, "NV": 670, "BCC": 51, "AKIEC": 33, "BKL": 110, "DF": 12, "VASC": 14}
    rows = [name for name, count in counts.items() for _ in range(count)]
    pd.DataFrame({"image": [f"{row}.jpg" for row in range(len(rows))], "dx": rows}).to_csv(
        tmp_path / "isic.csv", index=False
    )
    assert infer(tmp_path).rare_classes == ["AKIEC", "VASC", "DF"]


def test_a_second_image_is_refused_in_the_rare_chain(pairs):
    schema = infer(pairs)
    names = list(schema.classes)
    rare = {"chain": "rare", "rare_classes": names[:2]} | ({"classes": [*names, "more"]} if len(names) < 3 else {})
    assert problem_of(schema.model_copy(update=rare)) == "chain rare takes one image; leave second_image empty"
    assert problem_of(schema.model_copy(update=rare | {"second_image": ""})) == ""


def test_too_few_classes_for_the_rare_chain_are_told_before_confirming(pairs):
    rewrite(pairs, lambda table: table[["dermoscopy", "diagnosis"]])
    schema = infer(pairs)
    assert "problem: chain rare needs an image, two or more rare_classes" in explain(schema, pairs)
    confirm(pairs)
    with pytest.raises(DataError, match=r"medkd\.yaml: chain rare needs an image"):
        own.read(pairs)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"table": "../table.csv"}, '"table": String should match pattern'),
        ({"table": "..\\table.csv"}, '"table": String should match pattern'),
        ({"table": "/etc/passwd"}, '"table": String should match pattern'),
        ({"classes": ["MEL", "NV", "MEL"]}, "it has one of the classes MEL, NV, MEL twice"),
    ],
)
def test_a_table_elsewhere_and_a_class_twice_are_refused(pairs, changes, told):
    confirm(pairs, **changes)
    with pytest.raises(DataError, match=told):
        own.read(pairs)


def test_numbers_are_finite(pairs):
    rewrite(pairs, lambda table: table.assign(thickness=["inf", *range(len(table) - 1)]))
    confirm(pairs)
    with pytest.raises(DataError, match="has the thickness inf, which is no number, or no finite one"):
        own.read(pairs)


def test_a_chain_without_images_ignores_the_image_columns(pairs):
    confirm(pairs, chain="vector")
    cohort = own.read(pairs)
    assert (cohort.main, cohort.second) == ("", "metadata")


def test_images_named_without_suffix_in_a_zip_archive_are_found(pairs, tmp_path):
    rewrite(pairs, lambda table: table.assign(dermoscopy=table["dermoscopy"].str[len("bilder/") : -len(".jpg")]))
    rewrite(pairs, lambda table: table.drop(columns="photo"))
    plain = infer(pairs)
    shutil.make_archive(str(pairs / "bilder"), "zip", pairs / "bilder")
    shutil.rmtree(pairs / "bilder")
    assert infer(pairs) == plain
    assert (plain.image, plain.image_folder, plain.suffix) == ("dermoscopy", "bilder", ".jpg")
    confirm(pairs)
    cohort = own.read(pairs, cache_dir=tmp_path / "cache")
    assert cohort.table["id"].iloc[3] == "Läsion 3 a"
    np.testing.assert_allclose(cohort.images["image"].load(8).mean(axis=(1, 2, 3)), 5 * np.arange(N), atol=1.5)


def test_numbers_that_happen_to_be_file_names_are_no_images(pairs):
    """12 different ages, each the name of a file, in 24 rows."""
    for row in range(N):
        write_jpeg(pairs / f"{row}.jpg", 0)
    rewrite(pairs, lambda table: table.assign(age=[str(row // 2) for row in range(N)]).drop(columns=["photo"]))
    assert (infer(pairs).image, infer(pairs).numbers) == ("dermoscopy", ["age"])
    rewrite(pairs, lambda table: table.drop(columns=["dermoscopy"]))
    assert (infer(pairs).image, infer(pairs).numbers) == ("", ["age"])


def test_what_a_spreadsheet_leaves_behind_is_no_row_column_or_class(tmp_path):
    text = '"Alter, Jahre";befund;;\r\n"1,5";a;;\r\n2;a;;\r\n;b;;\r\n"-0,25";;;\r\n;;;\r\n'
    (tmp_path / "table.csv").write_text(text, newline="")
    table = read_own_table(tmp_path / "table.csv")
    assert table.columns.tolist() == ["Alter, Jahre", "befund"]
    assert table.to_numpy().tolist() == [["1.5", "a"], ["2", "a"], ["", "b"], ["-0.25", ""]]
    schema = infer(tmp_path)
    assert (schema.numbers, schema.label, schema.classes) == (["Alter, Jahre"], "befund", ["a", "b"])
    assert "label (a guess)" in explain(schema, tmp_path)


def test_a_column_of_two_groups_is_no_patient_and_one_of_a_single_class_no_label(tmp_path):
    rows = {
        "Unnamed: 0": range(8),
        "group": ["case", "control"] * 4,
        "label": ["a", ""] * 4,
        "n": [row + 0.5 for row in range(8)],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    schema = infer(tmp_path)
    assert (schema.patient, schema.label, schema.classes) == ("", "group", ["case", "control"])
    assert (schema.id, schema.numbers) == ("Unnamed: 0", ["n"])


def test_ids_are_no_input_and_inputs_come_with_a_warning(pairs):
    rewrite(pairs, lambda table: table.assign(**{"Lesion ID": [str(row // 2) for row in range(N)]}))
    schema = infer(pairs)
    assert (schema.patient, schema.numbers) == ("patient", ["age"])
    told = explain(schema, pairs)
    assert "Lesion ID   not used" in told and "it gives the label away" in told


def test_an_explanation_names_columns_that_the_table_lacks(pairs):
    schema = infer(pairs).model_copy(update={"label": "dignosis"})
    with pytest.raises(DataError, match=r"names the column\(s\) dignosis"):
        explain(schema, pairs)


def test_one_class_and_gaps_are_no_classes(pairs):
    rewrite(pairs, lambda table: table.assign(diagnosis=["NaN", *["benign"] * (N - 1)])[["dermoscopy", "diagnosis"]])
    with pytest.raises(DataError, match=r"no column of .* looks like classes"):
        infer(pairs)


def test_images_may_lie_behind_a_link(pairs, tmp_path):
    (pairs / "bilder").rename(tmp_path / "elsewhere")
    (pairs / "bilder").symlink_to(tmp_path / "elsewhere")
    rewrite(pairs, lambda table: table.replace({"bilder/": "", ".jpg": ""}, regex=True))
    confirm(pairs)
    assert (read_schema(pairs).image_folder, read_schema(pairs).second_image) == ("bilder", "photo")
    assert len(own.read(pairs, cache_dir=tmp_path / "cache").images["image"].load(8)) == N


def test_an_image_name_that_is_too_long_for_a_file_is_told_as_missing(pairs):
    confirm(pairs)
    rewrite(pairs, lambda table: table.assign(photo=[f"{'a' * 300}.jpg", *table["photo"][1:]]))
    with pytest.raises(DataError, match="names images that are not in .*: a{300}"):
        own.read(pairs)
