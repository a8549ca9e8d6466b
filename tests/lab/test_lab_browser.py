"""JupyterLab as a researcher uses it: a real server, a real browser, and what changes on the page."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import requests
from nbformat.v4 import new_code_cell, new_notebook

from medkd.report.plan import CHAINS, plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# WebGL drawn in software: with "--disable-gpu" jupyter-scatter gets no context to draw in
CHROMIUM_ARGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)"),
]

BROWSE = """import numpy as np, pandas as pd
from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort, VectorTable
from medkd.widgets.browser import browse
label = np.arange(30) % 3
table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(30)], "label": label, "class": np.array(list("abc"))[label]})
table["patient"], table["roi"] = [f"P{i // 2}" for i in range(30)], table["id"]
images = {name: ArrayImages(np.full((30, 8, 8, 3), g, np.uint8)) for name, g in (("one", 90), ("two", 200))}
values = np.random.default_rng(0).normal(size=(30, 20)).astype("f4")
vectors = {"omic": VectorTable(values, tuple("abcdefghijklmnopqrst"))}
browse(Cohort("toy", "Toy", True, ("a", "b", "c"), table, images, vectors))"""

STEP = """import time, torch
from pathlib import Path
from medkd.training.loop import fit, linear_decay
from medkd.widgets.monitor import monitor
class Step:
    modules, device, pause = torch.nn.Linear(1, 1), torch.device("cpu"), 0.02
    def start(self, generator, others): pass
    def after_step(self): time.sleep(self.pause)
    def validate(self): return {"val_auc": 0.5}
    def loss(self, rows, progress):
        return self.modules(rows.float()[:, None]).pow(2).mean(), {"weight_kd": 1 - progress}
step = Step()
optimizer = torch.optim.SGD(step.modules.parameters(), lr=1e-5)
Path("checkpoint").mkdir(exist_ok=True)
settings = {"epochs": 400, "batch_size": 4, "schedule": linear_decay, "seed": 0, "title": "student"}"""
TRAIN = """with monitor():
    history = fit(step, torch.arange(16), optimizer, folder=Path("checkpoint"), **settings)
print("finished", len(history))"""
EXPLORE = """import numpy as np, pandas as pd
from pathlib import Path
from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.evaluation.points import points_table
from medkd.widgets.explorer import explore
label = np.arange(60) % 3
table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(60)], "label": label, "class": np.array(list("abc"))[label]})
table["patient"], table["roi"] = [f"P{i // 2}" for i in range(60)], table["id"]
images = {name: ArrayImages(np.full((60, 8, 8, 3), g, np.uint8)) for name, g in (("one", 90), ("two", 200))}
cohort = Cohort("toy", "Toy", True, ("a", "b", "c"), table, images)
x, y = (np.array([[0, 0], [10, 0], [5, 10]])[label] + np.random.default_rng(0).normal(size=(60, 2)) / 3).T
scores = np.random.default_rng(1).dirichlet([0.5] * 3, 60)
rows = [table.assign(method=method, setting="", part=0, x=x, y=y) for method in ("teacher", "GMCD", "CE only")]
for number, each in enumerate(rows):
    each[["p_0", "p_1", "p_2"]] = np.roll(scores, number, axis=0)
rows = pd.concat(rows)
explore(points_table(rows, rows, cohort.classes), cohort, size=8, n_shown=12, folder=Path("selections"))"""
PLAY = """import numpy as np, pandas as pd
from medkd.data.cohort import Cohort
from medkd.widgets.playground import playground
label = np.repeat(np.arange(5), (60, 50, 40, 16, 24))
table = pd.DataFrame({"id": [f"x{i:03d}" for i in range(190)], "label": label, "class": np.array(list("abcrs"))[label]})
table["patient"], table["roi"] = [f"P{i // 2}" for i in range(190)], table["id"]
features = (2 * np.eye(8)[label] + np.random.default_rng(0).normal(size=(190, 8))).astype("f4")
classes = dict(base_classes=("a", "b", "c"), rare_classes=("r", "s"))
playground(features, Cohort("toy", "Toy", True, tuple("abcrs"), table, {}, **classes))"""
INSPECT = """import numpy as np, pandas as pd
from medkd.data.arrays import ArrayImages
from medkd.data.cohort import Cohort
from medkd.widgets.inspector import inspect_errors
label = np.arange(60) % 3
names = np.array(["naevus", "melanoma", "keratosis"])
table = pd.DataFrame({"id": [f"x{i:02d}" for i in range(60)], "label": label, "class": names[label]})
table["patient"], table["roi"] = [f"P{i // 2}" for i in range(60)], table["id"]
pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
cohort = Cohort("toy", "Toy", True, tuple(names), table, {"one": ArrayImages(pixels), "two": ArrayImages(255 - pixels)})
tables = []
for method, n_wrong in (("teacher", 12), ("student", 36)):
    said = np.where(np.arange(60) < n_wrong, (label + 1) % 3, label)
    high = np.linspace(0.4, 0.99, 60)[:, None]
    scores = np.where(np.eye(3, dtype=bool)[said], high, (1 - high) / 2)
    own = table[["id", "roi", "patient", "label"]].assign(method=method, setting="", part=0)
    tables.append(own.assign(**{f"p_{k}": scores[:, k] for k in range(3)}))
def maps(samples, method, classes):
    hot = np.linspace(0, 1, 8) if method == "teacher" else np.linspace(1, 0, 8)
    return {"one": np.tile(hot.astype("f4"), (len(samples), 8, 1))}
inspect_errors(pd.concat(tables, ignore_index=True), cohort, maps=maps)"""
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
IS_WHOLE = bool(os.environ.get("MEDKD_LAB_WHOLE"))
"""Whether every notebook is run too, on the quick preset: `make test-lab`, about ten minutes."""
CHAINED = [f"{name}.phantom-glioma" for name in CHAINS["teacher-student"]]
CHAINED += [f"{name}.phantom-rare-skin" for name in CHAINS["rare"] if name != "01_data_exploration"]
BOOKS = {
    "browse": [BROWSE],
    "explore": [EXPLORE],
    "inspect": [INSPECT],
    "playground": [PLAY],
    "train": [STEP, TRAIN, "step.pause = 0"],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of `medkd lab` on a small notebook, with its token."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    entries = [
        entry
        for dataset in ("phantom-glioma", "phantom-rare-skin")
        for entry in plan([dataset], report="interactive", overrides={})
    ]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for name, cells in BOOKS.items():
        book = new_notebook(cells=[new_code_cell(code) for code in cells], metadata=kernel)
        nbformat.write(book, home / "notebooks" / f"{name}.ipynb")
    for entry in entries:
        book = nbformat.read(NOTEBOOKS / f"{entry.notebook}.ipynb", as_version=4)
        first = next(i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", []))
        values = "\n".join(f"{name} = {value!r}" for name, value in entry.parameters.items())
        book.cells.insert(first + 1, new_code_cell(values))
        nbformat.write(book, home / "notebooks" / f"{entry.name}.ipynb")
    environment = os.environ | {"MEDKD_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("MEDKD_HEADLESS", None)
    server = subprocess.Popen(
        [sys.executable, "-m", "medkd", "lab", "--no-browser", "--port", "18888"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home,
    )  # fmt: skip
    address = ""
    while not address:
        line = server.stdout.readline()
        assert line, "the server ended"
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token=(\w+)", line):
            address = found
    yield address[1], address[2]
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(lab, chromium, tmp_path):
    """A function: name of a notebook -> its page; errors in the console end the test."""
    errors, pages = [], []
    folder = Path(os.environ.get("MEDKD_SCREENSHOTS", tmp_path))

    def open_(name):
        address, token = lab
        page = chromium.new_page(viewport={"width": 1300, "height": 1000})
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for _ in range(30):
            try:
                page.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset", timeout=60_000)
                break
            except playwright.Error:
                time.sleep(1)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector(r"text=/Python 3.*\| Idle/", timeout=120_000)
        pages.append((name, page))
        return page

    yield open_
    for name, page in pages:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        page.close()
    address, token = lab
    for session in requests.get(f"{address}/api/sessions", params={"token": token}, timeout=20).json():
        requests.delete(f"{address}/api/sessions/{session['id']}", params={"token": token}, timeout=20)
    ours = [text for text in errors if "favicon" not in text and "Failed to load resource" not in text]
    assert ours == []


def run_cell(page, number):
    """Click a cell, press Shift+Enter, and wait until the kernel has it."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    cell.locator(r"text=/\[(\*|\d+)\]:/").first.wait_for(timeout=20_000)


def lasso(page, plot, left, right):
    """Drag a line round the part of a plot from `left` to `right`, shares of its width."""
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    corners = [(left, 0.03), (right, 0.03), (right, 0.97), (left, 0.97), (left, 0.03)]
    (x, y), *others = [(box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in corners]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in others:
        page.mouse.move(x, y, steps=4)
        page.wait_for_timeout(60)  # the line takes a corner every 10 ms
    page.mouse.up()


def has(found, n):
    """Widgets redraw in their own time; wait until there are n of them."""
    playwright.expect(found).to_have_count(n, timeout=20_000)


def test_the_cohort_browser_filters_pages_and_shows_a_sample(opened):
    page = opened("browse")
    run_cell(page, 0)
    page.wait_for_selector("text=30 of 30 samples, 15 patients", timeout=180_000)
    page.get_by_label("class").select_option("b")
    page.wait_for_selector("text=10 of 30 samples, 10 patients", timeout=20_000)
    has(page.locator("figure"), 10)
    has(page.locator("figure img"), 20)
    page.get_by_label("sample").select_option(index=1)
    page.wait_for_selector('img[alt="one of x04"]', timeout=20_000)
    page.wait_for_selector("text=P2", timeout=20_000)
    page.get_by_label("patient").fill("p14")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1 of 30 samples, 1 patients", timeout=20_000)


def test_a_lasso_in_the_feature_explorer_shows_the_images_of_the_points_in_every_view(opened):
    page = opened("explore")
    run_cell(page, 0)
    page.wait_for_selector("text=0 of 60 images selected", timeout=180_000)
    has(page.locator("text=Toy (simulated)"), 1)
    plots = page.locator(".jp-OutputArea canvas:not([style*='absolute'])")  # the other canvas of a plot holds labels
    plots.nth(2).wait_for(timeout=60_000)
    page.wait_for_timeout(1000)  # until the points are drawn, mouse events are ignored
    lasso(page, plots.nth(0), 0.03, 0.4)
    page.wait_for_selector("text=20 of 60 images selected, 20 patients: a 20", timeout=20_000)
    page.wait_for_selector('img[alt="two of x33"]', timeout=60_000)
    has(page.locator("figure"), 12)
    has(page.locator("figure img"), 24)
    has(page.locator(".jp-OutputArea table tbody tr"), 12)
    sides = [page.locator(f'img[alt="{name} of x33"]').bounding_box() for name in ("one", "two")]
    assert sides[0]["y"] == sides[1]["y"] and sides[0]["x"] < sides[1]["x"]

    lasso(page, plots.nth(2), 0.6, 0.97)
    page.wait_for_selector("text=20 of 60 images selected, 20 patients: b 20", timeout=20_000)
    page.get_by_label("page").fill("2")
    page.keyboard.press("Enter")
    page.wait_for_selector('img[alt="one of x58"]', timeout=20_000)

    page.get_by_label("colour by").select_option("correct")
    page.wait_for_selector("text=wrong (39 | 40 | 41)", timeout=20_000)
    page.get_by_label("value").select_option("wrong")
    page.get_by_label("of method").select_option("CE only")
    page.locator("button.widget-button", has_text="Select").press("Enter")
    page.wait_for_selector("text=/^41 of 60 images selected/", timeout=20_000)
    page.locator("button.widget-button", has_text="Export").press("Enter")
    page.wait_for_selector("text=wrote 123 rows (41 images) to selections/selection_1.csv", timeout=20_000)
    plots.nth(1).dblclick(position={"x": 5, "y": 5})
    page.wait_for_selector("text=/^0 of 60 images selected/", timeout=20_000)
    has(page.locator("figure"), 0)


def test_sliders_of_the_playground_move_by_keyboard_and_redraw_numbers_and_pictures(opened):
    page = opened("playground")
    run_cell(page, 0)
    page.wait_for_selector("text=/K = 5, task 0: hard labels r/", timeout=180_000)
    has(page.locator("text=Toy (simulated)"), 1)
    has(page.locator("text=tasks of common classes; the query sets stay closed"), 1)
    picture = page.locator(".jp-OutputArea img[src^='blob:']")
    picture.wait_for(timeout=20_000)

    def line():
        return page.locator("text=/K = .*, task .: hard labels/").inner_text()

    def press(name, key):
        """Focus the slider of this name, press a key, and wait until numbers and picture are new."""
        shown, source = line(), picture.get_attribute("src")
        label = page.locator(".widget-label", has_text=re.compile(f"^{name}$"))
        page.locator(".widget-slider", has=label).locator(".noUi-handle").press(key)
        changed = "([shown, source]) => !document.body.innerText.includes(shown)"
        changed += " && document.querySelector(\".jp-OutputArea img[src^='blob:']\").src !== source"
        page.wait_for_function(changed, arg=[shown, source], timeout=20_000)
        return line()

    start = line()
    assert "K = 4, task 0" in press("K", "ArrowLeft")
    assert press("K", "ArrowRight") == start  # what a slider did is undone by moving it back
    for name in ("temperature", "mix", "gamma"):
        assert press(name, "ArrowRight") != start and press(name, "ArrowLeft") == start
    press("gamma", "Home")
    assert "tau 1.000, 1.000" in line()
    page.get_by_label("task").fill("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/K = 5, task 1: hard labels/", timeout=20_000)
    before = line()
    page.get_by_label("classifier").select_option("ridge")
    page.wait_for_function("line => !document.body.innerText.includes(line)", arg=before, timeout=20_000)
    assert page.locator("text=Traceback").count() == 0


def test_a_cell_of_the_error_inspector_opens_its_images_with_the_maps_of_both_methods(opened):
    page = opened("inspect")
    run_cell(page, 0)
    page.wait_for_selector("text=Choose a cell to see its images", timeout=180_000)
    has(page.locator("text=Toy (simulated)"), 1)
    cell = page.locator('button[title="naevus as melanoma: 12"]')
    assert cell.inner_text() == "12"
    cell.click()
    page.wait_for_selector("text=naevus as melanoma: 12 of 20 images", timeout=20_000)
    page.wait_for_selector('img[alt="student: melanoma 0.73 of x33"]', timeout=20_000)
    has(page.locator('.jp-OutputArea img[alt="teacher: naevus 0.73 of x33"]'), 1)
    has(page.locator(".jp-OutputArea img"), 8 * 4)  # two images and two maps of each of the eight
    captions = page.locator(".jp-OutputArea figcaption", has_text="confidence").all_inner_texts()
    assert captions[0] == "x33, patient P16, confidence 0.73" and captions[7].startswith("x12,")

    page.get_by_label("page").fill("2")
    page.keyboard.press("Enter")
    page.wait_for_selector('img[alt="two of x00"]', timeout=20_000)
    has(page.locator(".jp-OutputArea img"), 4 * 4)
    page.get_by_label("maps of").select_option("true class")
    page.wait_for_selector("text=what raises the score of naevus", timeout=20_000)
    page.get_by_label("method").select_option("teacher")
    page.wait_for_selector("text=naevus as melanoma: 4 of 20 images", timeout=20_000)
    page.locator('button[title="keratosis as naevus: 4"]').press("Enter")
    page.wait_for_selector("text=keratosis as naevus: 4 of 20 images", timeout=20_000)
    page.wait_for_selector('img[alt="one of x11"]', timeout=20_000)


def test_a_training_is_watched_stopped_interrupted_and_each_time_goes_on(opened):
    page = opened("train")
    run_cell(page, 0)
    run_cell(page, 1)
    page.wait_for_selector("text=/epoch .* of 400, step/", timeout=180_000)
    page.wait_for_selector(".jp-OutputArea .widget-image, .jp-OutputArea img[src^='blob:']", timeout=20_000)
    stop = page.locator("button.widget-button", has_text="Stop")
    stop.press("Enter")
    page.wait_for_selector("text=/Stopped: student, epoch .* a checkpoint is kept, run the same cell/", timeout=20_000)
    assert page.locator("text=Traceback").count() == 0
    has(page.locator(".jp-OutputArea img[src^='data:image/png']"), 1)  # the curves stay
    has(stop, 0)

    run_cell(page, 1)
    page.wait_for_selector("text=/student: going on from a checkpoint at epoch/", timeout=20_000)
    page.wait_for_selector("text=/epoch .* of 400, step/", timeout=20_000)
    page.keyboard.press("Escape")
    page.keyboard.press("i")
    page.keyboard.press("i")
    page.wait_for_selector("text=/KeyboardInterrupt: student, epoch .* a checkpoint is kept/", timeout=20_000)
    assert page.locator("text=Traceback").count() == 0

    run_cell(page, 2)
    run_cell(page, 1)
    page.wait_for_selector("text=finished 400", timeout=60_000)
    has(page.locator("text=/student: going on from a checkpoint at epoch/"), 1)


ENDED = """() => {
    const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")]
    const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
    return failed !== null || /\\d/.test(prompts.at(-1).textContent)
}"""


def run_all(page, seconds):
    """Run > Run All Cells, until the last one ended or one failed; the texts of the failures."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(ENDED, timeout=seconds * 1000, polling=500)
    return page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()


@pytest.mark.skipif(not IS_WHOLE, reason="takes ten minutes; `make test-lab` runs it")
@pytest.mark.parametrize("name", CHAINED)
def test_each_notebook_runs_on_the_quick_preset(opened, name):
    page = opened(name)
    assert run_all(page, 900) == []
    assert page.locator(".jp-OutputArea img, .jp-OutputArea table").count() > 0
