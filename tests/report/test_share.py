"""A copy of a report to give away: nothing of patients' photographs and of the machine is in it."""

import base64
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from medkd.cli import app
from medkd.errors import DataError
from medkd.files import write_json
from medkd.report.artifacts import Artifacts
from medkd.report.index import state_file
from medkd.report.share import Cleaner, share

STAGE = "07_evaluation.isic2018"


@pytest.fixture
def report(tmp_path, monkeypatch):
    """A report with a curve, a figure of photographs, a table, and a stage that is no longer part of it."""
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    folder = tmp_path / "reports" / "isic2018"
    out = Artifacts(folder, STAGE, simulated=False)
    for name, credit in (("curves", ""), ("examples", "HAM10000, CC BY-NC 4.0.")):
        fig, ax = plt.subplots()
        ax.plot([0, 1])
        ax.set_facecolor("black" if credit else "white")
        out.figure(fig, name, f"What {name} show.", attribution=credit)
    out.table(pd.DataFrame({"accuracy": [0.5]}), "results", "Results.", summary=True)
    Artifacts(folder, "old", simulated=False).table(pd.DataFrame({"x": [1]}), "x", "Gone.")
    write_json(
        folder / "manifest.json",
        {
            "report": "isic2018",
            "simulated": False,
            "cohorts": {"isic2018": {"title": "ISIC 2018", "attribution": "see https://example.org/a/b"}},
            "notebooks": [{"name": STAGE, "state": "finished", "seconds": 1.0, "error": ""}],
            "parameters": {
                STAGE: [
                    {"parameter": "root", "value": "/home/ann/data/isic2018", "default": "", "meaning": "folder"},
                    {"parameter": "teacher", "value": "{'split_file': '/home/ann/splits.csv'}", "default": ""},
                ]
            },
        },
    )
    state_file(folder, STAGE).parent.mkdir()
    write_json(state_file(folder, STAGE), {"state": "finished"})
    return folder


def test_a_report_into_which_a_notebook_was_run_by_hand_is_not_given_away(report, tmp_path):
    state_file(report, STAGE).unlink()
    with pytest.raises(DataError, match=f"{STAGE} was run by hand into .*run `medkd report` again"):
        share("isic2018", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_photographs_links_and_folders_stay_at_home(report, tmp_path):
    page = share("isic2018", tmp_path / "given" / "isic2018.html")
    html = page.read_text(encoding="utf-8")
    (embedded,) = re.findall(r"data:image/png;base64,([^\"]+)", html)
    shown = Image.open(io.BytesIO(base64.b64decode(embedded))).convert("RGB")
    files = [report / "figures" / f"{STAGE}-{name}.png" for name in ("curves", "examples")]
    pictures = [Image.open(file).convert("RGB") for file in files]
    apart = [np.abs(np.asarray(shown, int) - np.asarray(each, int)).mean() for each in pictures]
    assert apart[0] < 1 < apart[1]  # the same picture in fewer colours, and another one
    assert len(base64.b64decode(embedded)) < files[0].stat().st_size
    assert "Figures that show photographs are left out of this copy of the report (1)." in html
    assert 'href="figures/' not in html and 'href="tables/' not in html
    assert "/home/ann" not in html and "isic2018" in html and "splits.csv" in html
    assert "https://example.org/a/b" in html
    assert "Results." in html and "Gone." not in html


@pytest.mark.parametrize(
    "text, left",
    [
        (
            "/home/ann smith/own/a b/table.csv is missing",
            "</strong> table.csv is missing",
        ),  # in the folder that was given
        ("no /home/ann smith/own", "no own"),
        ("root:/home/ann/x", "root:x"),
        ("file:///home/ann/x.html", "x.html"),
        (r"C:\Users\ann\x.csv is missing", "x.csv is missing"),
        (r"C:\Users\ann m\x.csv is missing", "x.csv is missing"),
        (r"see \\annserver\share\ann\x.csv", "see x.csv"),
        ("/mnt/ann/My Größe (2)/x.csv is missing", "<strong>A notebook failed.</strong> x.csv is missing"),
        ("/home/ann/x.csv and 1/2", "x.csv and 1/2"),
        ("in </home/ann/x.csv>", "in &lt;x.csv&gt;"),
        ("~ann/secret/x.csv", "<strong>A notebook failed.</strong> x.csv"),
        ("https://example.org/a/b and 1/2", "https://example.org/a/b and 1/2"),
    ],
)
def test_errors_lose_their_folders_too(report, tmp_path, text, left):
    manifest = json.loads((report / "manifest.json").read_text())
    manifest["notebooks"][0] |= {"state": "failed", "error": text}
    manifest["parameters"][STAGE].append({"parameter": "root", "value": "/home/ann smith/own", "default": ""})
    write_json(report / "manifest.json", manifest)
    html = share("isic2018", tmp_path / "given.html").read_text(encoding="utf-8")
    assert left in html and "ann" not in re.sub(r"data:image/png;base64,[^\"]+|[a-z]*annot[a-z]*", "", html)


def test_cells_of_tables_and_titles_lose_their_folders_too(report, tmp_path):
    places = ["/home/ann/Other Klinik/a.png", "/home/ann smith/own/b.png"]
    frame = pd.DataFrame({"/home/ann/h.csv": places, "share": ["1/2", "n/a"]})
    Artifacts(report, STAGE, simulated=False).table(frame, "places", "Places.")
    manifest = json.loads((report / "manifest.json").read_text())
    manifest["cohorts"]["isic2018"]["title"] = "Own, /home/ann/table.csv"
    manifest["parameters"][STAGE].append({"parameter": "root", "value": "/home/ann smith/own", "default": ""})
    write_json(report / "manifest.json", manifest)
    html = share("isic2018", tmp_path / "given.html").read_text(encoding="utf-8")
    for kept in (">a.png<", ">b.png<", ">h.csv<", ">1/2<", ">n/a<", "Own, table.csv"):
        assert kept in html
    assert "/home/" not in html and "Klinik" not in html and "smith" not in html


@pytest.mark.parametrize(
    "text, left",
    [
        ("/home/anna.schmidt/data/x.csv", "x.csv"),
        ("file /home/anna.schmidt/photos of patients/a.png not read", "file a.png not read"),
        ("see /home/anna.schmidt/isic: 3 rows", "see isic: 3 rows"),
        ("file:///home/anna.schmidt/x.html", "x.html"),
        ("/home/anna.schmidt is full. /home/anna.schmidt.", "~ is full. ~."),
        ("/home/anna.schmidt-old/x.csv", "x.csv"),
        ("/srv/of anna/project/reports/quick/x.csv", "x.csv"),
        ("in /srv/of anna/project", "in project"),
        ("/mnt/klinik, anna/isic, 2018/y.csv and /mnt/klinik, anna/z.csv", "y.csv and z.csv"),
    ],
)
def test_below_the_users_and_the_projects_folder_only_the_last_part_is_kept(monkeypatch, text, left):
    """Their names went away, and what followed them stayed."""
    monkeypatch.setenv("HOME", "/home/anna.schmidt")
    monkeypatch.setenv("MEDKD_HOME", "/srv/of anna/project")
    assert Cleaner(["/mnt/klinik, anna/isic, 2018"])(text) == left


@pytest.mark.parametrize("content", [b'{"report": ', b"\xff", b"[]", b"{}"])
def test_a_damaged_manifest_is_told_in_a_sentence(report, tmp_path, content):
    (report / "manifest.json").write_bytes(content)
    refused = CliRunner().invoke(app, ["share", "isic2018", str(tmp_path / "x.html")])
    assert refused.exit_code == 2 and "manifest.json" in refused.stderr and 'run "medkd report" again' in refused.stderr


def test_an_embedded_picture_is_no_path():
    text = "data:image/png;base64,AB+/ab/cd/+/x== and /home/ann/x.csv"
    assert Cleaner([])(text) == "data:image/png;base64,AB+/ab/cd/+/x== and x.csv"


def test_what_did_not_run_with_these_parameters_is_not_given_away(report, tmp_path):
    """After a failure the stages behind it have what an earlier run left, and the page does not show it either."""
    manifest = json.loads((report / "manifest.json").read_text()) | {"notebooks": []}
    write_json(report / "manifest.json", manifest)
    assert "Results." not in share("isic2018", tmp_path / "given.html").read_text(encoding="utf-8")


def test_a_report_that_was_not_finished_says_so(report, tmp_path):
    manifest = json.loads((report / "manifest.json").read_text())
    manifest["notebooks"][0]["state"] = "failed"
    write_json(report / "manifest.json", manifest)
    page = share("isic2018", tmp_path / "given.html").read_text(encoding="utf-8")
    assert f"This report was not finished: {STAGE}." in page


def test_the_report_itself_keeps_its_page(report, tmp_path):
    (report / "index.html").write_text("as it was")
    share("isic2018", tmp_path / "copy.html")
    assert (report / "index.html").read_text() == "as it was"


def test_a_report_that_is_not_there_is_named(report, tmp_path):
    with pytest.raises(DataError, match=r"nothing holds no finished report; run"):
        share("nothing", tmp_path / "x.html")
    result = CliRunner().invoke(app, ["share", "nothing", str(tmp_path / "x.html")])
    assert result.exit_code == 2 and "holds no finished report" in result.stderr
    assert not (tmp_path / "x.html").exists()
