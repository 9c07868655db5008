"""Real parts for every test: ComfyUI's classes in this process, and one real server process for all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted({str(path.parent) for path in (ROOT / "tests").rglob("*.py")})  # they share some helpers
sys.path[:0] = [*ROOMS, str(ROOT / "scripts"), str(ROOT)]
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; read by torch when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from flux2_train.host.system.bootstrap import import_comfyui  # noqa: E402


def _device():
    """A context in which ComfyUI is imported: with another device than the CPU for test_other_device.py."""
    if os.environ.get("FLUX2_DEVICE") != "other":
        return nullcontext()
    import other_device

    return other_device.installed()


with _device():
    os.environ["COMFYUI_PATH"] = str(import_comfyui(*os.environ.get("FLUX2_ARGUMENTS", "").split()))

import folder_paths  # noqa: E402
import tiers  # noqa: E402
import torch  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from newest_frontend import newest_frontend  # noqa: E402
from support import with_few_words  # noqa: E402
from tiers import (  # noqa: E402, F401  pytest finds them by name
    pytest_addoption,
    pytest_collection_finish,
    pytest_xdist_make_scheduler,
)

from bench.encoding import encoded  # noqa: E402
from flux2_train.data import cache  # noqa: E402
from flux2_train.data.dataset import Dataset  # noqa: E402
from flux2_train.data.folder import read_folder  # noqa: E402
from flux2_train.flavours import FLAVOURS  # noqa: E402
from flux2_train.host.loading import files, load  # noqa: E402
from flux2_train.settings.dataset_folder import DatasetSettings  # noqa: E402
from flux2_train.terminal.main import main  # noqa: E402

if torch.cuda.is_available():
    # Many tests compare bits. On CUDA attention's backward adds in any order, unless it is asked not to.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)

MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras")
# Every other test file is about the engine and also runs on older ComfyUIs: scripts/test --comfyui VERSION
NOT_ENGINE = (
    "test_breaks",
    "test_browser",
    "test_earlier_graphs",
    "test_help_pages",
    "test_imports",
    "test_locales",
    "test_nano_",
    "test_nodes",
    "test_other_device",
    "test_scripts",
    "test_search",
    "test_server",
    "test_speed_bench",
    "test_templates",
    "test_tiers",
    "test_workflows",
)


class RootIsNoPackage:
    """pytest would import the pack's __init__.py, which ComfyUI alone can where the folder's name has a dash."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config):
    config.pluginmanager.register(RootIsNoPackage())
    tiers.pytest_configure(config)
    hypothesis.settings.register_profile(
        "tests", max_examples={"--quick": 20, "": 100, "--all": 2000}[tiers.tier_of(config)], deadline=None
    )
    hypothesis.settings.load_profile("tests")
    _hear_signals()


def _hear_signals() -> None:
    """A script's background processes ignore Ctrl-C, those of nohup a closed terminal: the tests' own must not."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if signal.getsignal(getattr(signal, name, signal.SIGINT)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), usual)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not item.path.stem.startswith(NOT_ENGINE):
            item.add_marker("engine")
    tiers.pytest_collection_modifyitems(config, items)


@pytest.fixture(scope="session")
def full_size(request) -> bool:
    """True under --all: long tests then run at full size."""
    return request.config.getoption("--all")


@pytest.fixture(scope="session", autouse=True)
def comfy_folders(tmp_path_factory):
    """ComfyUI's model, input and output folders of this process, moved to a temporary place."""
    base = tmp_path_factory.mktemp("comfy")
    for name in MODEL_FOLDERS:
        (base / name).mkdir()
        folder_paths.folder_names_and_paths[name][0][:] = [str(base / name)]
    for name in ("input", "output", "temp", "user"):
        (base / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(base / name))
    return base


@dataclass(frozen=True)
class Graph:
    """What Load FLUX.2 gives for nano."""

    model: object
    clip: object
    vae: object


@pytest.fixture(scope="session")
def shipped_nano(comfy_folders) -> Graph:
    """nano, loaded in inference mode as a node would load it."""
    row = FLAVOURS["nano"]
    with torch.inference_mode():
        return Graph(
            load.load_transformer(files.locate(row.transformer_files("auto"))),
            load.load_text_encoder(files.locate(row.text_encoders), row),
            load.load_vae(files.locate(row.vaes), row),
        )


@pytest.fixture(scope="session")
def nano(shipped_nano) -> Graph:
    """nano. A module may name another graph so, ``brief_nano`` for example."""
    return shipped_nano


@pytest.fixture(scope="session")
def brief_nano(shipped_nano) -> Graph:
    """nano with a MODEL of its own that reads 16 of its 64 text tokens: faster on small images.

    A module whose tests are not about what captions say takes this for its ``nano``.
    """
    with torch.inference_mode():
        model = load.load_transformer(files.locate(FLAVOURS["nano"].transformer_files("auto")))
    return replace(shipped_nano, model=with_few_words(model))


@dataclass(frozen=True)
class Data:
    """A data set with both caches."""

    dataset: Dataset
    embeds: cache.EmbedCache
    latents: cache.LatentCache


@pytest.fixture(scope="session")
def robot(shipped_nano) -> Data:
    """Six images of the shipped example at a quarter of nano's size, encoded by ComfyUI's own encoder and VAE."""
    whole = read_folder(DatasetSettings(ROOT / "datasets" / "robot", resolution=64, trigger="zbot", class_word="toy"))
    dataset = replace(whole, items=whole.items[:6])
    return Data(dataset, *encoded(dataset, shipped_nano.clip, shipped_nano.vae))


@pytest.fixture
def typed(capsys):
    """``typed(command, argument, ...)``: how a command of the terminal ends in this process, and what it prints.

    ComfyUI has the tests' folders here, and no process has to import it.
    """

    def run(*arguments) -> subprocess.CompletedProcess:
        capsys.readouterr()
        code = main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def pack():
    """The pack, imported the way ComfyUI imports a custom node folder."""
    name = "comfyui_flux2_train"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Where the tests of the frontend leave what they saw; somebody should look at each of them."""
    return tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="session")
def newest_server(tmp_path_factory):
    """A server with the newest known frontend, shared by all tests under --all that open it."""
    with ComfyServer(tmp_path_factory.mktemp("newest"), "--front-end-root", str(newest_frontend())) as running:
        yield running


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One ComfyUI server process with the pack in it, shared by all tests that need one."""
    with ComfyServer(tmp_path_factory.mktemp("server")) as running:
        yield running
