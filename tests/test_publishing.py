"""What would be published: the files that git tracks, without those of .comfyignore. ComfyUI loads them alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[1]
MOST = 30e6  # bytes of the package
LOADED = """
import asyncio, importlib.util, os, sys
place = sys.argv[1]
sys.path.insert(0, os.environ["COMFYUI_PATH"])
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", place + "/__init__.py", submodule_search_locations=[place])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
print(len(asyncio.run(extension.get_node_list())), os.path.isdir(os.path.join(place, pack.WEB_DIRECTORY)))
"""


def published() -> list[str]:
    """The names that comfy-cli's ``node pack`` takes."""
    ignored = [line[1:] for line in (ROOT / ".comfyignore").read_text().splitlines() if line.startswith("/")]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [name for name in tracked if not name.startswith(tuple(ignored))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this copy has no git history to ask which files are tracked")
class TestPackage:
    def test_it_has_what_is_needed_and_is_small(self):
        names = published()
        assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "CHANGELOG.md"} <= set(
            names
        )
        assert not [name for name in names if name.startswith(("tests/", "bench/", ".ci/"))]
        assert sum((ROOT / name).stat().st_size for name in names) < MOST

    @pytest.mark.long
    def test_comfyui_loads_it_alone(self, tmp_path):
        for name in published():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        done = subprocess.run([sys.executable, "-c", LOADED, tmp_path], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        count, has_web = done.stdout.split()[-2:]
        assert int(count) > 20 and has_web == "True"


def test_the_registry_and_pip_are_told_the_same():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = [
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert sorted(listed) == sorted(project["project"]["dependencies"])
    import flux2_train

    assert project["project"]["version"] == flux2_train.__version__
    assert f"## {flux2_train.__version__} " in (ROOT / "CHANGELOG.md").read_text()
