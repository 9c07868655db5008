"""The two commands of the README: help, and what they say when something is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command, **environment):
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_demo_explains_itself_without_setting_anything_up():
    done = run("scripts/demo", "--help", COMFYUI_PATH="/nowhere")
    assert done.returncode == 0
    for word in ("--out DIR", "--serve", "before_after.png", "report.json"):
        assert word in done.stdout


def test_wrong_comfyui_is_one_line():
    for script in ("scripts/demo", "scripts/test"):
        done = run(script, COMFYUI_PATH="/nowhere")
        assert done.returncode == 1
        assert done.stderr.strip() == "error: COMFYUI_PATH=/nowhere holds no ComfyUI."


def test_an_unknown_comfyui_is_one_line_with_the_known_ones():
    done = run("scripts/test", "--comfyui", "0.1.0", FLUX2_PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: ComfyUI 0.1.0 is not one we know where to fetch; known are 0.16.3")


@pytest.mark.parametrize("said, words", [(["latest"], "latest"), ([], "none")])
def test_unknown_packages_are_one_line(said, words):
    done = run("scripts/test", "--packages", *said, FLUX2_PYTHON=sys.executable)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: packages {words} are not known; known are lowest and newest."


def test_no_python_is_one_line(tmp_path):
    for tool in ("bash", "dirname", "cat", "mkdir", "env"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    done = run("/bin/bash", "scripts/test", PATH=str(tmp_path), FLUX2_PYTHON="")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: no Python 3.10 or newer with venv was found")


def clone(tmp_path):
    """The set-up scripts alone, in a folder that nothing has been installed into."""
    for name in ("scripts/setup.sh", "scripts/test", "scripts/constraints.txt", "scripts/requirements-dev.txt",
                 "requirements.txt"):  # fmt: skip
        target = tmp_path / "repository" / "deep" / "here" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
        target.chmod(0o755)
    return tmp_path / "repository" / "deep" / "here"


def environment_without_comfyui():
    return {k: v for k, v in os.environ.items() if k not in ("COMFYUI_PATH", "FLUX2_PYTHON")}


@pytest.mark.long
def test_no_network_is_said_with_the_log(tmp_path):
    folder = clone(tmp_path)
    offline = {**environment_without_comfyui(), "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0",
               "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}  # fmt: skip
    done = subprocess.run(["scripts/test"], cwd=folder, env=offline, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: could not download ComfyUI's source; is the network there? The log is" in done.stderr


def test_no_disk_is_said_with_the_figures(tmp_path):
    folder, tools = clone(tmp_path), tmp_path / "tools"
    tools.mkdir()
    (tools / "df").write_text("#!/bin/sh\necho header\necho 'disk 1 1 2097152 1% /'\n")
    (tools / "df").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    done = subprocess.run(["scripts/test"], cwd=folder, env={**environment_without_comfyui(), "PATH": path},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "only 2 GB are free" in done.stderr and "needs 9 GB" in done.stderr


@pytest.mark.long
def test_a_changed_source_archive_is_refused(tmp_path):
    folder = clone(tmp_path)
    setup = folder / "scripts" / "setup.sh"
    setup.write_text(setup.read_text().replace("de5d0c32", "00000000"))
    done = subprocess.run(
        ["scripts/test"], cwd=folder, env=environment_without_comfyui(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "expected 00000000" in done.stderr and "it is not the archive we know" in done.stderr


@pytest.mark.long
def test_the_tests_run_in_a_checkout_of_any_name(tmp_path):
    """The folder ComfyUI Manager makes has dashes in its name, which no Python package may."""
    checkout = tmp_path / "comfyui-flux2-train"
    for room in ("data", "helpers"):
        (checkout / "tests" / room).mkdir(parents=True)
    for name in ("__init__.py", "pyproject.toml", "tests/conftest.py", "tests/helpers/support.py", "tests/tiers.py",
                 "tests/data/test_geometry.py"):  # fmt: skip
        (checkout / name).write_bytes((ROOT / name).read_bytes())
    for name in ("bench", "flux2_train", "nodes", "scripts"):
        (checkout / name).symlink_to(ROOT / name)
    done = forks.run(["-m", "pytest", "-q", "tests/data"], dict(os.environ), checkout)
    assert done.returncode == 0, done.stdout


BITS = re.compile(r"bit by bit|bit for bit|same bits|not a bit")
COPIES = re.compile(r"CPU|copied bit by bit|gives that model back bit by bit")  # or what is a copy, on any device


def test_texts_promise_the_same_bits_on_a_cpu_only():
    """On CUDA attention's backward adds in any order: docs/memory.md says what holds there."""
    texts = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/*.md")]
    parts = [(path.name, part) for path in texts for part in re.split(r"\n\s*\n|\n(?=\|)", path.read_text())]
    promised = [(name, part) for name, part in parts if BITS.search(part)]
    assert len(promised) > 10
    assert [(n, p) for n, p in promised if not COPIES.search(p) and not p.startswith("**On CUDA two runs")] == []
