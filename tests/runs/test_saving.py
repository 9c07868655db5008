"""A run's LoRA file: certified, in the format asked for, with what it is and how it was made in its header."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flux2_train.adapters import files
from flux2_train.errors import UserError
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import write_results
from flux2_train.settings import earlier
from flux2_train.settings.adapter import AdapterSettings
from flux2_train.settings.base import choices
from flux2_train.settings.saving import SaveSettings
from flux2_train.settings.training import TrainingSettings


@pytest.fixture(scope="module")
def nano(brief_nano):
    return brief_nano


def trained(nano, robot, **changes):
    config = TrainingSettings(
        **{"name": "x", "steps": 2, "rank": 3, "learning_rate": 0.01, "validation_items": 0, **changes}
    )
    with torch.inference_mode():
        trainer = new_trainer(nano.model, robot.embeds, robot.latents, config)
        for _ in trainer.run():
            pass
        return trainer


@pytest.fixture(scope="module")
def lora(nano, robot):
    """One trained LoRA; saving changes nothing about it."""
    return trained(nano, robot)


def saved_as(trainer, save):
    trainer.config = replace(trainer.config, save=save)
    return trainer


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def results(trainer, robot, tmp_path, **more):
    with torch.inference_mode():
        return write_results(trainer, tmp_path / "loras", RunFolder.create(tmp_path / "runs", "x"), **more)


def test_file_report_and_header_carry_the_certificate(lora, robot, tmp_path):
    trainer = saved_as(lora, SaveSettings())
    found = results(trainer, robot, tmp_path)
    count = len(trainer.adapters.names)
    assert found.certificate == (
        f"loaded back by ComfyUI's LoRA loader: all {count} layers, 100% of the trained strength"
    )
    assert header(found.lora_path)["flux2_train.certificate"] == found.certificate
    assert json.loads((found.folder / "report.json").read_text())["certificate"] == found.certificate
    saved = load_file(found.lora_path)
    assert saved.keys() == found.lora.keys() and all(torch.equal(saved[k], v) for k, v in found.lora.items())


def test_certificate_off_and_stopped_runs_say_so(lora, robot, tmp_path):
    off = results(saved_as(lora, SaveSettings(certificate=False)), robot, tmp_path)
    assert off.certificate == header(off.lora_path)["flux2_train.certificate"] == "not certified"
    stopped = results(saved_as(lora, SaveSettings()), robot, tmp_path, stopped=True)
    assert stopped.certificate == "not certified" and stopped.lora_path.name == "x_2_step2.safetensors"


def test_a_file_that_acts_otherwise_is_an_error_and_is_kept(lora, robot, tmp_path, monkeypatch):
    trainer, save = saved_as(lora, SaveSettings()), files.save
    monkeypatch.setattr(files, "save", lambda tensors, *rest: save({k: v * 1.5 for k, v in tensors.items()}, *rest))
    with pytest.raises(UserError, match=r"x.safetensors does not act like the adapter .* [12]\d\d% of.* other numbers"):
        results(trainer, robot, tmp_path)
    assert (tmp_path / "loras" / "x.safetensors").is_file() and (tmp_path / "runs" / "x" / "report.json").is_file()
    assert "strength" in header(tmp_path / "loras" / "x.safetensors")["flux2_train.certificate"]


@pytest.mark.parametrize("format", choices(SaveSettings, "format"))
@pytest.mark.parametrize("precision", choices(SaveSettings, "precision"))
def test_format_and_precision(lora, robot, tmp_path, format, precision):
    found = results(saved_as(lora, SaveSettings(format, precision)), robot, tmp_path)
    tensors = load_file(found.lora_path)
    first = {"comfyui": "diffusion_model.", "diffusers": "diffusion_model.", "kohya": "lora_unet_"}
    assert all(k.startswith(first.get(format, "base_model.model.")) for k in tensors)
    dtypes = {t.dtype for k, t in tensors.items() if not k.endswith(".alpha")}
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]}
    assert (
        "100% of the trained strength" in found.certificate and header(found.lora_path)["flux2_train.format"] == format
    )
    assert all(k.startswith("diffusion_model.") for k in found.lora)
    assert (found.lora_path.parent / "adapter_config.json").is_file() == (format == "peft")
    assert found.folder.name == "x"


@pytest.mark.long
def test_other_adapters_as_plain_lora_state_their_error(nano, robot, tmp_path):
    lokr = trained(nano, robot, adapter=AdapterSettings(kind="lokr"))
    with pytest.raises(UserError, match="'diffusers' cannot carry the LoKr at .*as plain LoRA"):
        results(saved_as(lokr, SaveSettings("diffusers")), robot, tmp_path)
    found = results(saved_as(lokr, SaveSettings("diffusers", plain_rank=24)), robot, tmp_path)
    error = float(header(found.lora_path)["flux2_train.plain_lora_error"])
    assert 0 < error < 1 and f"{error:.2%}" in json.loads((found.folder / "report.json").read_text())["note"]
    assert all(".lora_" in k for k in load_file(found.lora_path))


@pytest.mark.long
def test_dora_on_nano_is_certified_through_the_stock_loader(nano, robot, tmp_path):
    found = results(trained(nano, robot, adapter=AdapterSettings(dora=True)), robot, tmp_path)
    assert found.certificate.startswith("loaded back by ComfyUI's LoRA loader (merged): all")
    assert found.certificate.endswith("100% of the trained strength")


def test_options_that_cannot_be_are_refused():
    for changes in ({"format": "x"}, {"precision": "int8"}, {"plain_rank": -1}):
        with pytest.raises(UserError, match="is"):
            SaveSettings(**changes)
    config = TrainingSettings(save=SaveSettings("kohya", "fp32", 8, False))
    assert earlier.settings_of(config.to_json()) == config
