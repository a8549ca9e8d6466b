"""`medkd predict`: a model folder and images in, table and contact sheets out; bad files named, bad folders refused."""

import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from medkd.cli_export import predict
from medkd.deploy import predict as predict_module
from medkd.deploy.predict import image_files, predict_images
from medkd.deploy.sheet import contact_sheet
from medkd.errors import DataError, ParameterError
from medkd.files import digest_of, locked, write_json

pytest.importorskip("onnxruntime", reason="medkd[export]")
pytest.importorskip("onnxscript", reason="medkd[export]")
COLOURS = {"red": (250, 10, 20), "green": (10, 240, 20), "blue": (20, 10, 250)}


class MeanColour(nn.Module):
    """Scores that are ten times the mean of each channel: what it must predict can be seen."""

    def forward(self, x):
        return x.mean(dim=(2, 3)) * 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder as `medkd export` writes it, of a network whose answers are known."""
    from medkd.deploy.deployed import Deployed
    from medkd.deploy.export import write_programs

    folder = tmp_path_factory.mktemp("model")
    write_programs(Deployed(MeanColour().eval(), 8, temperature=2.0), tuple(COLOURS), folder)
    record = {
        "format": "medkd-export-1",
        "title": "mean colour",
        "classes": list(COLOURS),
        "image_size": 8,
        "simulated": True,
        "files": {"model.onnx": digest_of(folder / "model.onnx")},
    }
    write_json(folder / "model.json", record)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder with images of one colour each, of several sizes and kinds, and files that are none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (30, 20), COLOURS["red"]).save(folder / "img10.png")
    Image.new("RGB", (8, 8), COLOURS["green"]).save(folder / "img2.PNG")
    Image.new("RGB", (500, 3), COLOURS["blue"]).save(folder / "more" / "img1.bmp")
    Image.new("RGBA", (9, 9), (*COLOURS["red"], 255)).save(folder / "img3.webp", lossless=True)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def run(*arguments):
    app = typer.Typer()
    app.command()(predict)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_image_gets_its_class_and_calibrated_probabilities(model, pictures, tmp_path):
    done = predict_images(model, [pictures], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    names = [name.removeprefix(f"{pictures}/") for name in table["file"]]
    assert names == ["img2.PNG", "img3.webp", "img10.png", "more/img1.bmp"]  # 2 before 10, folders after their files
    assert table["predicted"].tolist() == ["green", "red", "red", "blue"]
    assert list(table) == ["file", "predicted", "p_red", "p_green", "p_blue"]
    scores = torch.tensor(COLOURS["green"]) / 255 * 10
    np.testing.assert_allclose(table.iloc[0, 2:].to_numpy(float), (scores / 2).softmax(0), atol=1e-5)
    assert not done.unreadable and done.files == [
        tmp_path / "out" / "predictions.csv",
        tmp_path / "out/contact_sheet.png",
    ]


def test_bad_images_are_named_with_the_reason_and_left_out_and_the_exit_status_says_so(model, pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (pictures / "empty.png").touch()
    (pictures / "text.tif").write_text("text")
    result = run(model, pictures, pictures / "gone.png", "--to", tmp_path / "out")
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("not read: ")]
    assert len(lines) == 4
    for name, reason in {
        "empty.png": "the file is empty",
        "text.tif": "no image of a known format",
        "gone.png": "No such file or directory",
        "broken.jpg": "",
    }.items():
        assert any(f"{name}: " in line and reason in line and not line.endswith(": ") for line in lines)
    assert "4 of 8 images cannot be read" in result.stderr.splitlines()[-1]
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 4


def test_good_images_end_with_status_0_and_a_count_of_each_class(model, pictures, tmp_path):
    result = run(model, pictures, "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "2 red" in result.stdout and "1 blue" in result.stdout


@pytest.mark.parametrize("error", [struct.error("required argument is not an integer"), RuntimeError("bad AVIF")])
def test_whatever_a_format_raises_is_said_of_its_file_and_costs_no_other(model, pictures, tmp_path, monkeypatch, error):
    decode = predict_module.decode
    broken = (pictures / "img3.webp").read_bytes()

    def raising(content, size):
        if content == broken:
            raise error
        return decode(content, size)

    monkeypatch.setattr(predict_module, "decode", raising)
    result = run(model, pictures, "--to", tmp_path / "out")
    assert result.exit_code == 2 and f"img3.webp: {error}" in result.stderr
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 3


def test_sheets_of_an_earlier_call_are_no_images_and_stay_until_new_ones_are_there(model, pictures, tmp_path):
    out = pictures / "predictions"
    for _ in range(2):
        assert run(model, pictures, "--to", out).exit_code == 0
        assert len(pd.read_csv(out / "predictions.csv")) == 4
        assert (out / "contact_sheet.png").is_file()


def test_sheets_beside_the_table_of_another_call_are_no_images_and_one_by_itself_is(model, pictures, tmp_path):
    for place in ("first", "second"):
        assert run(model, pictures, "--to", pictures / place).exit_code == 0
        assert len(pd.read_csv(pictures / place / "predictions.csv")) == 4
    (pictures / "first" / "predictions.csv").unlink()
    assert run(model, pictures, "--to", pictures / "second").exit_code == 0
    assert len(pd.read_csv(pictures / "second" / "predictions.csv")) == 5


@pytest.mark.parametrize("value, brightest", [(255, 0), (4095, 15)])
def test_values_of_fewer_bits_in_sixteen_are_told_and_not_predicted(model, pictures, tmp_path, value, brightest):
    Image.fromarray(np.full((9, 9), value, np.uint16)).save(pictures / "xray.png")
    result = run(model, pictures, "--to", tmp_path / "out")
    told = f"xray.png: no pixel is brighter than {brightest} of 255, as if 8- or 12-bit values lay in 16-bit files"
    assert result.exit_code == 2 and told in result.stderr
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 4


def test_images_that_are_all_bad_give_an_empty_table(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    result = run(model, tmp_path / "a.png", "--to", tmp_path / "out")
    assert result.exit_code == 2 and "1 of 1 images" in result.stderr
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 0
    assert not list((tmp_path / "out").glob("*.png"))


def test_contact_sheets_have_sixty_images_a_page_and_older_pages_go(model, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(61):
        Image.new("RGB", (8, 8), COLOURS["blue"]).save(folder / f"{number}.png")
    out = tmp_path / "out"
    predict_images(model, [folder], out)
    pages = sorted(path.name for path in out.glob("*.png"))
    assert pages == ["contact_sheet_001.png", "contact_sheet_002.png"]
    first, second = (Image.open(out / name).size for name in pages)
    assert first[1] > 4 * second[1]  # six rows and one
    predict_images(model, [folder / "7.png"], out)
    assert [path.name for path in out.glob("*.png")] == ["contact_sheet.png"]


def test_a_contact_sheet_shows_the_image_above_its_three_lines(model):
    """Where the picture lies the page has its colour; below it there is ink for the caption."""
    captions = [("a-very-long-file-name-that-does-not-fit-below-a-thumbnail.png", "green", "99.0%")]
    pixels = np.full((1, 8, 8, 3), COLOURS["green"], np.uint8)
    page = np.asarray(contact_sheet(pixels, captions, ("title", "page 1 of 1")))
    green = (page == COLOURS["green"]).all(axis=2)
    rows, columns = np.flatnonzero(green.any(axis=1)), np.flatnonzero(green.any(axis=0))
    assert len(rows) == len(columns) == 136
    below = page[rows[-1] + 1 :].min(axis=2) < 128
    assert len(np.unique(np.flatnonzero(below.any(axis=1)) // 16)) >= 3
    assert np.flatnonzero(below.any(axis=0)).max() <= columns[-1]  # a long name is shortened, not written over others


def test_a_name_that_is_no_unicode_or_holds_control_characters_is_written_as_text(model, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m.png"
    Image.new("RGB", (8, 8), COLOURS["red"]).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    done = predict_images(model, [tmp_path], tmp_path / "out")
    assert done.table["file"].tolist() == [rf"{tmp_path}/caf\xe9\x1b[31m.png"]


def test_linked_folders_are_searched_once_and_links_to_nothing_are_told(model, pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8), COLOURS["green"]).save(other / "a.png")
    (pictures / "linked").symlink_to(other)
    (pictures / "linked again").symlink_to(other)
    (pictures / "around").symlink_to(pictures)
    (pictures / "gone.png").symlink_to("nowhere")
    (pictures / "gone").symlink_to("nowhere else")
    found = [str(path.relative_to(pictures)) for path in image_files([pictures])]
    inside = ["linked/a.png", "more/img1.bmp"]
    assert found == ["gone", "gone.png", "img2.PNG", "img3.webp", "img10.png", *inside]
    result = run(model, pictures, "--to", tmp_path / "out")
    assert result.exit_code == 2 and "2 of 7 images cannot be read" in result.stderr
    assert f"not read: {pictures / 'gone.png'}: No such file or directory" in result.stderr


def test_a_subfolder_that_cannot_be_listed_is_told(model, pictures, tmp_path, monkeypatch):
    scandir = os.scandir

    def refusing(place):
        if str(place).endswith("more"):
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    done = predict_images(model, [pictures], tmp_path / "out")
    assert list(done.unreadable) == [str(pictures / "more")] and len(done.table) == 3


def test_an_empty_name_is_no_folder(model, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    result = run(model, "", "--to", tmp_path / "out")
    assert result.exit_code == 2 and "an empty name is no file or folder" in result.stderr
    assert not (tmp_path / "out").exists()


def test_no_program_is_started_for_a_file_of_another_format(model, pictures, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(pictures / "a.jpg")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    done = predict_images(model, [pictures], tmp_path / "out")
    assert done.unreadable == {str(pictures / "a.jpg"): "it is no image of a known format"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("damaged")])
def test_an_older_result_stays_whole_when_a_later_call_is_interrupted(model, pictures, tmp_path, monkeypatch, error):
    out = tmp_path / "out"
    predict_images(model, [pictures], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(predict_module, "PER_PAGE", 1)
    probabilities, seen = predict_module.ExportedModel.probabilities, []

    def raising(self, images):
        seen.append(len(images))
        if len(seen) == 2:
            raise error
        return probabilities(self, images)

    monkeypatch.setattr(predict_module.ExportedModel, "probabilities", raising)
    with pytest.raises(type(error)):
        predict_images(model, [pictures], out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != predict_module.UNFINISHED} == before


def test_an_interrupted_call_goes_on_after_its_last_page(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_module, "PER_PAGE", 1)
    (pictures / "img5.png").write_text("no image")
    whole = predict_images(model, [pictures], tmp_path / "whole")
    read, seen = predict_module._read, []

    def interrupted(path, size):
        seen.append(path.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return read(path, size)

    monkeypatch.setattr(predict_module, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_images(model, [pictures], tmp_path / "out")
    os.utime(pictures / "img3.webp")  # the second page: it may be another picture now
    result = run(model, pictures, "--to", tmp_path / "out")
    assert seen == ["img2.PNG", "img3.webp", "img5.png", "img10.png", "img3.webp", "img10.png", "img1.bmp"]
    assert "2 pages were there from an interrupted call" in result.stderr and result.exit_code == 2
    assert f"{pictures / 'img5.png'}: it is no image" in result.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    assert sorted(path.name for path in whole.files) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_two_calls_do_not_write_to_one_folder(model, pictures, tmp_path):
    kept = tmp_path / "out" / predict_module.UNFINISHED
    kept.mkdir(parents=True)
    with locked(kept / ".lock"), pytest.raises(DataError, match="another `medkd predict` writes to .*out; wait for it"):
        predict_images(model, [pictures], tmp_path / "out")


def test_images_that_nobody_waits_for_any_more_are_not_read(model, tmp_path, monkeypatch):
    """Ctrl-C at the first image of a page ends the call, not after the other fifty-nine."""
    for number in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    seen = []

    def slow(path, size):
        seen.append(path)
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_module, "_read", slow)
    monkeypatch.setattr(predict_module, "MAX_THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        predict_images(model, [tmp_path], tmp_path / "out")
    assert len(seen) < 5


def test_prediction_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import medkd.deploy.predict, medkd.deploy.runtime"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_without_images_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="there is no image file in"):
        image_files([tmp_path])
    assert run(model, tmp_path, "--to", tmp_path / "out").exit_code == 2


@pytest.fixture
def copied(model, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_changed_network_is_refused_before_it_is_run(copied, pictures, tmp_path):
    content = bytearray((copied / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.onnx").write_bytes(content)
    result = run(copied, pictures, "--to", tmp_path / "out")
    assert result.exit_code == 2 and "its SHA-256 differs" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"format": "medkd-export-9"}, "format: Input should be 'medkd-export-1'"),
        (lambda record: record | {"classes": ["one"]}, "classes: List should have at least 2 items"),
        (lambda record: record | {"image_size": 10**9}, "image_size: Input should be less than or equal to 4096"),
        (lambda record: record | {"files": {}}, "its SHA-256 differs"),
        (lambda record: [], "does not describe a model"),
        (lambda record: record | {"classes": ["red", "red", "blue"]}, "classes: a name is empty or stands twice"),
        (lambda record: record | {"classes": ["red", " ", "blue"]}, "classes: a name is empty or stands twice"),
        (lambda record: record | {"classes": record["classes"][::-1]}, 'exported with the classes .*names ."blue", '),
        (lambda record: record | {"image_size": 9}, "sees images of 8 px, but model.json says 9 px"),
    ],
    ids=["format", "classes", "size", "digest", "list", "twice", "empty", "order", "other size"],
)
def test_a_record_that_does_not_fit_is_one_sentence(copied, pictures, tmp_path, change, message):
    record = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(change(record)))
    with pytest.raises(DataError, match=message) as found:
        predict_images(copied, [pictures], tmp_path / "out")
    assert "\n" not in str(found.value)


def test_a_folder_that_is_no_model_or_lacks_its_network_is_refused(copied, pictures, tmp_path):
    with pytest.raises(DataError, match="holds no exported model"):
        predict_images(pictures, [pictures], tmp_path / "out")
    for content in (b"\xff{", b"[" * 100_000):
        (copied / "model.json").write_bytes(content)
        with pytest.raises(DataError, match="does not describe a model"):
            predict_images(copied, [pictures], tmp_path / "out")


def test_classes_that_do_not_fit_the_network_are_refused(copied, pictures, tmp_path):
    record = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(record | {"classes": ["red", "green"]}))
    with pytest.raises(DataError, match="gives 3 probabilities, but model.json names 2 classes"):
        predict_images(copied, [pictures], tmp_path / "out")


@pytest.fixture
def made(tmp_path):
    """A function: the last operator, and what differs from a good network -> folder with such a one."""
    onnx = pytest.importorskip("onnx")
    h, kinds = onnx.helper, onnx.TensorProto

    def make(
        last, attributes=None, *, kind="FLOAT", given=("UINT8", ["n", 3, "h", "w"]), says=("red", "green", "blue")
    ):
        folder = tmp_path / "made"
        folder.mkdir(exist_ok=True)
        nodes = [h.make_node("Cast", ["images"], ["f"], to=kinds.FLOAT)]
        nodes += [h.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0)]
        nodes += [h.make_node(last, ["m"], ["p"], **(attributes or {}))]
        if kind != "FLOAT":
            nodes += [h.make_node("Cast", ["p"], ["q"], to=getattr(kinds, kind))]
        images = h.make_tensor_value_info("images", getattr(kinds, given[0]), given[1])
        out = h.make_tensor_value_info("p" if kind == "FLOAT" else "q", getattr(kinds, kind), ["n", 3])
        axes = onnx.numpy_helper.from_array(np.array([2, 3]), "axes")
        network = h.make_model(
            h.make_graph(nodes, "g", [images], [out], [axes]), opset_imports=[h.make_opsetid("", 18)], ir_version=9
        )
        h.set_model_props(network, {"classes": json.dumps(says)} if says else {})
        onnx.save(network, folder / "model.onnx")
        record = {"format": "medkd-export-1", "title": "made", "classes": list(COLOURS), "image_size": 8}
        record |= {"simulated": True, "files": {"model.onnx": digest_of(folder / "model.onnx")}}
        write_json(folder / "model.json", record)
        return folder

    return make


@pytest.mark.parametrize("network", [("Identity",), ("Acos",), ("Softmax", {"axis": 0})], ids=["raw", "nan", "axis"])
def test_numbers_that_are_no_probabilities_are_refused(made, pictures, tmp_path, network):
    with pytest.raises(DataError, match="model.onnx gives numbers that are no probabilities"):
        predict_images(made(*network), [pictures], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "DOUBLE"}, "must have one input `images`, uint8"),
        ({"given": ("FLOAT", ["n", 3, "h", "w"])}, "must have one input `images`, uint8"),
        ({"given": ("UINT8", ["n", 1, "h", "w"])}, "must have one input `images`, uint8"),
        ({"given": ("UINT8", [1, 3, 8, 8])}, "onnxruntime cannot run model.onnx on images"),
        ({"says": None}, "exported with the classes none"),
    ],
)
def test_networks_of_another_make_are_refused_in_one_sentence(made, pictures, tmp_path, options, message):
    folder = made("Softmax", {"axis": 1}, **options)
    with pytest.raises(DataError, match=message) as found:
        predict_images(folder, [pictures], tmp_path / "out")
    assert "\n" not in str(found.value)


def test_a_network_that_does_not_say_its_image_size_is_an_older_export(made, pictures, tmp_path):
    assert len(predict_images(made("Softmax", {"axis": 1}), [pictures], tmp_path / "out").table) == 4


def test_a_missing_onnxruntime_is_one_sentence_that_names_the_extra(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ParameterError, match=r'need the package onnxruntime.*pip install "medkd\[export\]"'):
        predict_images(model, [pictures], tmp_path / "out")
