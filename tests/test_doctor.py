"""What `medkd doctor` says of a sound installation, and of broken ones."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medkd import doctor
from medkd.cli import app


def state_of(name):
    return next(check for check in doctor.examine() if check.name == name)


def test_this_installation_is_sound(monkeypatch):
    monkeypatch.delenv("MEDKD_HOME", raising=False)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()].count("mend") == 0
    assert len(result.stdout.splitlines()) == len(doctor.CHECKS)


def test_versions_that_differ_from_the_lock_are_named(tmp_path):
    numpy, lock = importlib.metadata.version("numpy"), tmp_path / "requirements.lock"
    lock.write_text(f"numpy=={numpy}\npandas==0.1\nno-such-package==2.0\npywin32==1 ; sys_platform == 'win32'\n")
    state, text = doctor.versions_against(lock)
    assert state == "note"
    assert f"pandas {importlib.metadata.version('pandas')} (pinned 0.1), no-such-package missing (pinned 2.0)" in text
    assert "numpy" not in text and "pywin32" not in text
    lock.write_text(f"numpy=={numpy}\n")
    assert doctor.versions_against(lock) == ("ok", "all 1 as pinned")
    assert doctor.versions_against(tmp_path / "none.lock")[0] == "note"


def test_a_kernel_of_another_python_must_be_mended(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/elsewhere/python", "-m", "ipykernel_launcher"], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    found = state_of("kernel")
    assert found.state == "mend" and "/elsewhere/python" in found.text and "ipykernel install" in found.text


@pytest.mark.parametrize("name", ["python", "python3", f"python{sys.version_info.major}.{sys.version_info.minor}"])
def test_a_kernel_of_this_environment_may_have_any_of_its_names(tmp_path, monkeypatch, name):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    program = str(Path(sys.prefix) / "bin" / name)
    spec.write_text(json.dumps({"argv": [program, "-m", "ipykernel_launcher"], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert state_of("kernel").state == "ok"


def test_a_folder_without_notebooks_must_be_mended_and_sets_the_exit_status(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKD_HOME", str(tmp_path))
    assert state_of("project folder").state == "mend"
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and f"no notebooks in {tmp_path}" in result.stdout


@pytest.mark.parametrize("error", [ImportError("libcudart.so is missing"), RuntimeError("operator nms\nline 2")])
def test_a_check_that_fails_is_a_finding(monkeypatch, error):
    def broken():
        raise error

    monkeypatch.setitem(doctor.CHECKS, "torch and torchvision", broken)
    found = state_of("torch and torchvision")
    assert found.state == "mend" and str(error).splitlines()[0] in found.text and "line 2" not in found.text
    assert len(doctor.examine()) == len(doctor.CHECKS)
