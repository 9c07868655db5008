"""``bench.gpu`` from a packed folder, for machines that have torch, transformers, accelerate and safetensors only."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import ROOT

from bench.gpu import __main__ as command
from bench.gpu import packed
from bench.gpu.rows import rows

pytestmark = pytest.mark.long  # rows are measured by a process of their own


def test_what_replaces_a_missing_package_can_be_imported_and_not_used():
    """In a process of its own: it stays in Python's import system."""
    code = """
from bench.gpu import packed
import sys
sys.meta_path.append(packed.Replacer(["nowhere"]))
import nowhere.deep
from nowhere.other import Thing
class Mine(Thing): pass
def f(x: Thing.Kind.ONE): pass
for use in (lambda: nowhere.deep.read("x"), Thing, Mine, lambda: Thing.Kind(1)):
    try:
        use()
    except ImportError as error:
        print(error)
try:
    import nowhere_else
except ModuleNotFoundError:
    print("not replaced")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "nowhere is not installed, and nowhere.deep.read is needed here.",
        "nowhere is not installed, and nowhere.other.Thing is needed here.",
        "nowhere is not installed, and nowhere.other.Mine is needed here.",
        "nowhere is not installed, and nowhere.other.Kind is needed here.",
        "not replaced",
    ], done.stderr


def test_a_checkout_has_nothing_to_unpack(tmp_path):
    packed.unpack(tmp_path)
    assert list(tmp_path.iterdir()) == []


ALLOWED = ("transformers>=5", "accelerate", "safetensors")


def environment(folder: Path) -> Path:
    """A new Python that has torch, as it is installed here, transformers 5, accelerate and safetensors only.

    torch is linked, into a folder beside site-packages: pip would write through links that lie in site-packages.
    """
    venv.create(folder, with_pip=True)
    python, linked = folder / "bin" / "python", folder / "linked"
    linked.mkdir()
    own = [d.name for d in importlib.metadata.distributions() if d.name.startswith(("nvidia", "cuda"))]
    for name in {*needed_by("torch"), *own}:
        for part in {Path(file).parts[0] for file in importlib.metadata.files(name) or () if ".." not in str(file)}:
            source = Path(importlib.metadata.distribution(name).locate_file(part))
            if part != "__pycache__" and source.exists() and not (linked / part).exists():
                (linked / part).symlink_to(source)
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    (site_packages / "linked.pth").write_text(f"{linked}\n")
    subprocess.run([python, "-m", "pip", "install", "-q", *ALLOWED], check=True)
    return python


def needed_by(package: str, known: tuple[str, ...] = ()) -> list[str]:
    """The package and all that it needs, of what is installed here."""
    found = [package]
    for text in importlib.metadata.requires(package) or ():
        name = re.match(r"[A-Za-z0-9_.-]+", text)[0]
        if "extra ==" in text or name in (*known, *found):
            continue
        try:
            found += [n for n in needed_by(name, (*known, *found)) if n not in found]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what is packed is for Linux")
def test_the_packed_folder_runs_where_only_torch_and_transformers_are(tmp_path):
    """The same command as on a card, without one and without a network."""
    folder = tmp_path / "packed"
    version = "{}.{}".format(*sys.version_info)
    assert command.main(["--pack", str(folder), "--python", version]) == 0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB")
    assert size <= 60e6
    python = environment(tmp_path / "environment")
    variables = {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "PYTHONPATH")}
    for offline in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        variables[offline] = "http://127.0.0.1:9"
    out = tmp_path / "gpu_cpu.json"
    done = subprocess.run([python, "-m", "bench.gpu", "--device", "cpu", "--out", out, "--minutes", "60"],
                          cwd=folder, env=variables,
                          capture_output=True, text=True)  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    found = json.loads(out.read_text())
    assert found["facts"]["versions"]["transformers"].startswith("5.") and "av" in found["facts"]["replaced"]
    assert list(found["rows"]) == [row.name for row in rows("cpu")] and found["not_reached"] == []
    assert "diffusers" in found["rows"]["diffusers-nano-256-bf16"]["absent"]
