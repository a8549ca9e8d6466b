import base64
import json
import subprocess
from html.parser import HTMLParser
from importlib.metadata import version

import numpy as np
import pytest
from PIL import Image

import medkd
from medkd.errors import DataError
from medkd.files import write_json
from medkd.report import page as page_module
from medkd.report.page import build_page, versions

STAGE = "02_teacher_training.phantom-glioma"
NAUGHTY = 'Counts <script>alert("x")</script> & more'


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(" ".join(data.split()))

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.tags if name == tag and wanted.items() <= attrs.items()]


def entry(kind, name, caption, **more):
    folder, kinds = {"figure": ("figures", ("png", "pdf", "csv")), "table": ("tables", ("csv", "tex"))}[kind]
    files = {each: f"{folder}/{STAGE}-{name}.{each}" for each in kinds}
    return {"stage": STAGE, "kind": kind, "name": name, "caption": caption, "files": files, "simulated": True} | more


@pytest.fixture
def report(tmp_path):
    """A folder with one figure and three tables, and its index."""
    entries = [
        entry("figure", "curves", "Loss by epoch (simulated)."),
        entry("table", "counts", NAUGHTY, summary=False),
        entry("table", "summary", "Test performance.", summary=True),
        entry("table", "long", "Predictions.", summary=False),
    ]
    (tmp_path / "figures").mkdir()
    (tmp_path / "tables").mkdir()
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(tmp_path / entries[0]["files"]["png"])
    tables = {
        "counts": "class,n,share\n<b>glioma</b>,12,0.123456\n007,3,1e-05\n",
        "summary": "method,auroc,auroc_low,auroc_high,value,low,high\nKD,0.81234,0.7512,0.8666,2.5,,\n",
        "long": "id\n" + "".join(f"case {row}\n" for row in range(61)),
    }
    for name, text in tables.items():
        (tmp_path / "tables" / f"{STAGE}-{name}.csv").write_text(text)
    return tmp_path, entries


def read(report, manifest=None, notebooks=()):
    folder, entries = report
    path = build_page(folder, title="Quick <report>", manifest=manifest or {}, entries=entries, notebooks=notebooks)
    assert path == folder / "index.html"
    return Reader(path.read_text(encoding="utf-8"))


def body_rows(html, first):
    """Cells of the table whose first header is `first`, as one string a cell."""
    text = [piece for piece in html.text if piece]
    return text[text.index(first) :]


def test_nothing_is_loaded_from_elsewhere_and_no_script_is_needed(report):
    html = read(report, {"simulated": True, "versions": versions()})
    for _, attrs in html.tags:
        for name in ("src", "href"):
            address = attrs.get(name) or ""
            assert not address.startswith(("http:", "https:", "//", "/", "file:"))
    assert not [tag for tag, _ in html.tags if tag in ("script", "link", "iframe")]
    assert html.all("html") == [{"lang": "en"}]
    assert html.all("meta", name="viewport")


def test_a_figure_is_embedded_with_caption_alternative_text_and_links(report):
    folder, entries = report
    html = read(report)
    (image,) = html.all("img")
    png = (folder / entries[0]["files"]["png"]).read_bytes()
    assert image["src"] == "data:image/png;base64," + base64.b64encode(png).decode()
    assert image["alt"] == "Loss by epoch (simulated)."
    assert (image["width"], image["height"]) == ("30", "12")  # 0.6 of 50 x 20 pixels
    assert "Loss by epoch (simulated)." in html.text
    links = [attrs["href"] for attrs in html.all("a")]
    for each in entries:
        assert set(each["files"].values()) <= set(links)


def test_captions_cells_and_titles_are_text_and_never_markup(report):
    html = read(report, notebooks=[{"name": "03", "state": "failed", "seconds": 1, "error": "<img src=x>"}])
    assert NAUGHTY in html.text
    assert "<b>glioma</b>" in html.text
    assert "Quick <report>" in html.text
    assert "<img src=x>" in html.text
    assert len(html.all("img")) == 1


def test_numbers_are_rounded_ids_are_not_and_headers_have_a_scope(report):
    html = read(report)
    assert body_rows(html, "class")[:9] == ["class", "n", "share", "<b>glioma</b>", "12", "0.123", "007", "3", "1e-05"]
    assert {attrs["scope"] for attrs in html.all("th")} == {"col", "row"}
    assert len(html.all("td", **{"class": "number"})) == 4 + 2  # n and share twice; both intervals of the summary


def test_a_column_whose_numbers_need_rounding_has_three_digits_throughout_and_no_tiny_number_becomes_nothing(report):
    folder, _ = report
    text = "method,share,lr,n\nKD,0.31,0.001,5\nCE,0.00743219,3.25e-06,12\nGMCD,2.5e-07,0.1,7\n"
    (folder / "tables" / f"{STAGE}-summary.csv").write_text(text)
    shown = body_rows(read(report), "method")
    assert shown[4:16] == [
        "KD",
        "0.310",
        "0.001",
        "5",
        "CE",
        "0.007",
        "3.25e-06",
        "12",
        "GMCD",
        "2.5e-07",
        "0.100",
        "7",
    ]


def test_a_summary_stands_on_top_once_with_its_intervals(report):
    html = read(report)
    assert html.text.count("Test performance.") == 1
    assert html.text.index("Test performance.") < html.text.index("Loss by epoch (simulated).")
    assert body_rows(html, "method")[:6] == [
        *("method", "auroc (interval)", "value (interval)"),
        *("KD", "0.812 (0.751 to 0.867)", "2.5"),
    ]


def test_a_cell_that_already_holds_an_interval_stays_as_it_is(report):
    folder, _ = report
    text = "method,accuracy\nKD,0.605 (0.555 to 0.653)\n"
    (folder / "tables" / f"{STAGE}-summary.csv").write_text(text)
    assert body_rows(read(report), "method")[:4] == ["method", "accuracy", "KD", "0.605 (0.555 to 0.653)"]


def test_differences_have_signs_and_three_digits(report):
    folder, _ = report
    text = "method,mean,difference,low,high\nKD,0.5,0.0010001,-0.00008395,0.002\n"
    (folder / "tables" / f"{STAGE}-summary.csv").write_text(text)
    shown = body_rows(read(report), "method")
    assert shown[:6] == ["method", "mean", "difference (interval)", "KD", "0.500", "+0.001 (-0.0001 to +0.002)"]


def test_classes_that_are_called_like_bounds_are_columns(report):
    folder, _ = report
    text = "K,dysplasia,dysplasia_low,dysplasia_high\n5,0.5,0.3,0.2\n"
    (folder / "tables" / f"{STAGE}-summary.csv").write_text(text)
    shown = body_rows(read(report), "K")
    assert shown[:8] == ["K", "dysplasia", "dysplasia low", "dysplasia high", "5", "0.5", "0.3", "0.2"]


def test_a_long_table_shows_its_first_rows_and_says_so(report):
    html = read(report)
    assert "case 59" in html.text
    assert "case 60" not in html.text
    assert "The first 60 of 61 rows; the csv has all." in html.text
    assert "61 rows" in html.text  # folded


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_data_has_a_badge_and_real_data_has_none(report, simulated):
    folder, entries = report
    entries = [each | {"simulated": simulated} for each in entries]
    html = read((folder, entries), {"simulated": simulated})
    assert ("simulated data" in html.text) == simulated
    assert bool(html.all("span", **{"class": "badge"})) == simulated


def test_a_failed_notebook_has_a_banner_and_links_are_relative(report):
    notebooks = [
        {"name": "01 first", "html": "notebooks/01 first.html", "state": "finished", "seconds": 75.2, "error": ""},
        {"name": "02", "state": "failed", "seconds": 3725, "error": "02, cell 4 (Train): ValueError: k_shot"},
    ]
    html = read(report, notebooks=notebooks)
    assert len(html.all("div", role="alert")) == 1
    assert "02, cell 4 (Train): ValueError: k_shot" in html.text
    assert html.all("a", href="notebooks/01%20first.html")
    assert {"1 min 15 s", "1 h 2 min"} <= set(html.text)
    assert not read(report, notebooks=notebooks[:1]).all("div", role="alert")


def test_settings_and_versions_of_the_manifest_are_shown(report):
    manifest = {
        "seed": 7,
        "versions": {"torch": "9.9"},
        "cohorts": {"phantom": {"samples": 400, "simulated": True, "settings": {"n_patients": 100}}},
        "parameters": {"03": [{"parameter": "alpha", "value": "0.7"}, {"parameter": "epochs", "value": 3}]},
        "notebooks": [{"name": "left out"}],
    }
    text = " | ".join(piece for piece in read(report, manifest).text if piece)
    for expected in (
        "run | seed | 7",
        "versions | torch | 9.9",
        "cohorts: phantom | samples | 400 | simulated | yes",
        "cohorts: phantom: settings | n_patients | 100",
        "parameters: 03 | parameter | value | alpha | 0.7 | epochs | 3",
    ):
        assert expected in text
    assert "left out" not in text


def test_anchors_are_unique_and_every_inner_link_has_its_target(report):
    html = read(report)
    anchors = [attrs["id"] for _, attrs in html.tags if "id" in attrs]
    assert len(anchors) == len(set(anchors))
    inner = {attrs["href"][1:] for attrs in html.all("a") if attrs["href"].startswith("#")}
    assert {"summary", STAGE, "notebooks", "settings"} == inner
    assert inner <= set(anchors)


def test_a_missing_file_is_named(report):
    folder, entries = report
    (folder / entries[0]["files"]["png"]).unlink()
    with pytest.raises(DataError, match=f'figure "curves" of {STAGE} is missing: .*curves.png; run {STAGE} again'):
        read(report)
    assert not (folder / "index.html").exists()


def test_versions_name_packages_device_and_commit(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(page_module.medkd, "__file__", str(tmp_path / "__init__.py"))
    git("init", "-q")
    found = versions()
    assert found["torch"] == version("torch")
    assert found["medkd"] == medkd.__version__
    assert {"python", "torchvision", "numpy", "scikit-learn", "umap-learn", "papermill", "device"} <= found.keys()
    assert found["commit"] == "not available"  # not tracked: somebody else's repository

    git("add", ".")
    git("commit", "-q", "-m", "first")
    found = versions()
    assert (found["commit"], found["uncommitted changes"]) == (git("rev-parse", "HEAD"), "no")
    (tmp_path / "__init__.py").write_text("changed = True")
    assert versions()["uncommitted changes"] == "yes"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"auroc": 0.8})
    with pytest.raises(TypeError):
        write_json(path, {"auroc": object()})
    assert json.loads(path.read_text()) == {"auroc": 0.8}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind, ending", [("table", "csv"), ("figure", "png")])
def test_a_file_outside_of_the_reports_folder_is_not_embedded(report, tmp_path_factory, kind, ending):
    folder, entries = report
    secret = tmp_path_factory.mktemp("other") / f"secret.{ending}"
    secret.write_text("secret")
    (folder / f"link.{ending}").symlink_to(secret)
    for named in (str(secret), f"../{secret.parent.name}/{secret.name}", f"link.{ending}"):
        given = [*entries, entry(kind, "evil", "Evil.", files={ending: named})]
        with pytest.raises(DataError, match=f'{kind} "evil" of .*which is not in the report\'s folder'):
            build_page(folder, title="Quick", manifest={}, entries=given, notebooks=())
