"""A model file that is larger than memory and swap is loaded and trained, with little of it in memory at a time."""

import json
import resource
from contextlib import closing
from types import SimpleNamespace

import comfy.model_management
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from support import problem, with_few_words

from flux2_train import nano
from flux2_train.errors import UserError
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.loading import load, mapping
from flux2_train.host.system import machine, memory
from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.memory import MemorySettings
from flux2_train.settings.training import TrainingSettings

GB = 10**9


def with_a_hole(weights, path, size):
    """nano's file, with a hole behind its weights that is a tensor of the header but takes no place on the disk."""
    whole = save(weights)
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    rows = size // 2**21
    header["hole.weight"] = {"dtype": "BF16", "shape": [rows, 2**20],
                             "data_offsets": [len(data), len(data) + rows * 2**21]}  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
        file.truncate(8 + len(text) + len(data) + rows * 2**21)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "base-small.safetensors"
    path.write_bytes(save(nano.transformer()))
    return path


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    size = psutil.virtual_memory().total + psutil.swap_memory().total + 4 * GB
    try:
        path = with_a_hole(nano.transformer(), folder / "base-huge.safetensors", size)
    except OSError as error:
        pytest.skip(f"this file system has no file with a hole of {size / GB:.0f} GB ({error})")
    yield path
    path.unlink()


def require_refusal(path):
    """Skip where the library maps files of any size: the system then promises memory without counting it."""
    try:
        with safe_open(path, framework="pt") as file:
            file.get_tensor("img_in.weight")
    except (OSError, RuntimeError):
        return
    pytest.skip("this system lets the library map a file that is larger than memory and swap")


def predict(model):
    comfy.model_management.load_models_gpu([model])
    return velocity(model, *problem(1, context=nano.CONTEXT, dtype=torch.float32)[:3]).clone()


@pytest.mark.parametrize("precision", ["as in file", "fp8 (scaled)"])
def test_its_weights_are_those_of_the_file(small, huge, precision):
    require_refusal(huge)
    with torch.inference_mode():
        found, expected = (load.load_transformer(path, precision) for path in (huge, small))
        assert torch.equal(predict(found), predict(expected))
        memory.unload(found)
        assert torch.equal(predict(found), predict(expected))


def trained(path, robot):
    layout = MemorySettings(blocks_to_swap=6)
    config = TrainingSettings(name="x", steps=2, rank=2, learning_rate=0.01, validation_items=0, memory=layout)
    with torch.inference_mode():
        model = load.load_transformer(path)
        trainer = new_trainer(model, robot.embeds, robot.latents, config)
        with closing(trainer.run()) as run:
            list(run)
        memory.unload(model)
    return trainer.adapters.masters()


@pytest.mark.long
def test_it_is_trained_streamed_to_the_same_lora(small, huge, robot):
    require_refusal(huge)
    before = psutil.Process().memory_info().rss
    found, expected = trained(huge, robot), trained(small, robot)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert psutil.Process().memory_info().rss - before < GB


def bound(path, robot, precision="as in file"):
    """A run that streams all blocks and whose plan has to fit; ended after two steps."""
    memory_ = MemorySettings(blocks_to_swap=8, memory_limit=1.0)
    config = TrainingSettings(name="x", steps=2, rank=2, learning_rate=0.01, validation_items=0, memory=memory_)
    with torch.inference_mode():
        model = with_few_words(load.load_transformer(path, precision))
        trainer = new_trainer(model, robot.embeds, robot.latents, config)
        with closing(trainer.run()) as run:
            list(run)
    return trainer


@pytest.mark.long
def test_a_plan_may_stream_more_than_host_memory_has_room_for_if_it_is_mapped(small, robot, monkeypatch):
    """Free memory is what psutil says: no test can leave the computer with 5 MB."""
    expected = bound(small, robot)
    assert not expected.memory.plan.estimate.disk
    facts = SimpleNamespace(available=5 * 10**6)
    monkeypatch.setattr(machine, "psutil", SimpleNamespace(virtual_memory=lambda: facts))
    found = bound(small, robot)
    estimate = found.memory.plan.estimate
    assert estimate.host_peak <= facts.available and estimate.disk + estimate.host_peak > 10**7
    assert "read from disk" in found.memory.describe()
    for name, value in expected.adapters.masters().items():
        assert torch.equal(found.adapters.masters()[name], value), name
    with pytest.raises(UserError, match=r"GB of host memory, where 0.0 GB are free"):
        bound(small, robot, "fp8 (scaled)")


def test_where_not_even_its_addresses_fit_a_sentence_says_what_to_do(huge):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with torch.inference_mode():
        model = load.load_transformer(huge, "fp32")
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2 * GB, limits[1]))
        try:
            with pytest.raises(UserError, match=r"base-huge.safetensors \(\d+\.\d GB\) cannot be mapped.*ulimit -v"):
                predict(model)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        memory.unload(model)
        assert predict(model).isfinite().all()


def test_a_mapped_tensor_is_the_librarys_bit_by_bit(small):
    with safe_open(small, framework="pt") as file:
        ours = mapping.ReadOnly(small)
        assert sorted(ours.keys()) == sorted(file.keys()) and ours.metadata() == (file.metadata() or {})
        for name in file.keys():  # noqa: SIM118 - safe_open is no dict
            one, other = ours.get_tensor(name), file.get_tensor(name)
            assert one.dtype == other.dtype and torch.equal(one, other), name


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (mapping.tensors, mapping.opened):
        with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
            read(tmp_path / "nowhere.safetensors")
