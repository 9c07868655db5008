"""The LoRA of the best step is saved beside the last one or given to the graph, and changes nothing of the run."""

from dataclasses import replace

import pytest
import torch
from support import brief_flux2, same, state_dict, tiny_caches

from flux2_train import events
from flux2_train.adapters import read
from flux2_train.errors import UserError
from flux2_train.evaluate.best import best_step
from flux2_train.runs import checkpoints
from flux2_train.runs.folder import RunFolder
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.runs.writers.best_lora import noted_best
from flux2_train.safetensors_header import opened
from flux2_train.settings.previews import ValidationLossSettings
from flux2_train.settings.saving import CheckpointSettings, SaveSettings
from flux2_train.settings.training import TrainingSettings

NEVER = CheckpointSettings(every_minutes=0)
BESIDE, RESULT = replace(NEVER, best="beside"), replace(NEVER, best="result")
CONFIG = TrainingSettings(
    name="run", steps=3, rank=2, learning_rate=1.0, checkpointing=False, save=SaveSettings(precision="fp32"),
    validation_loss=ValidationLossSettings(share=0.4, every=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return brief_flux2(), *tiny_caches()


def session(parts, place, kept, how="new", **changes):
    received = []
    trainer = new_trainer(*parts, replace(CONFIG, checkpoints=kept, **changes))
    with torch.inference_mode():
        return trainer, train(trainer, place / "loras", place / "runs", received.append, how), received


def names(place):
    return sorted(path.name for path in (place / "loras").iterdir())


def equal(one, other):
    return same(read.load(one), read.load(other))


@pytest.fixture(scope="module")
def plain(parts, tmp_path_factory):
    place = tmp_path_factory.mktemp("plain")
    trainer, results, _ = session(parts, place, NEVER)
    assert names(place) == ["run.safetensors"] and best_step(trainer.history) == 1  # it diverges
    return trainer, results


@pytest.mark.long
def test_the_best_is_saved_beside_the_last_one_which_stays_as_it_is(parts, plain, tmp_path):
    trainer, results, received = session(parts, tmp_path, BESIDE)
    best = best_step(trainer.history)
    assert names(tmp_path) == ["run.safetensors", "run_best.safetensors"]
    assert results.lora_path.name == "run.safetensors"
    assert equal(results.lora_path, plain[1].lora_path) and same(results.lora, plain[1].lora)
    shorter = session(parts, tmp_path / "shorter", NEVER, steps=best)[1]
    assert equal(tmp_path / "loras" / "run_best.safetensors", shorter.lora_path)
    assert events.BestSoFar(best, "run_best.safetensors") in received
    folder = RunFolder(results.folder)
    assert noted_best(folder) == {"step": best, "lora": "run_best.safetensors"}
    assert folder.about()["lora"] == "run.safetensors"
    assert f"the best step is {best}: run_best.safetensors" in folder.log.read_text()
    assert same(state_dict(trainer.adapters, torch.float32), state_dict(plain[0].adapters, torch.float32))
    with opened(tmp_path / "loras" / "run_best.safetensors") as file:
        assert file.metadata()["ss_steps"] == str(best) and "100%" in file.metadata()["flux2_train.certificate"]
    assert best in [checkpoints.step_of(path) for path in checkpoints.paths(folder.checkpoints)]


@pytest.mark.long
def test_as_the_result_the_graph_gets_it_also_from_a_run_that_is_finished(parts, tmp_path):
    _, results, _ = session(parts, tmp_path, RESULT)
    assert results.lora_path.name == "run_best.safetensors" and RunFolder(results.folder).about()["lora"]
    assert same(results.lora, read.load(results.lora_path))
    _, again, received = session(parts, tmp_path, RESULT, how="auto")
    assert not [event for event in received if isinstance(event, events.Stepped)]
    assert again.lora_path == results.lora_path and same(again.lora, results.lora)


@pytest.mark.long
def test_a_run_that_is_made_longer_replaces_its_best_one(parts, tmp_path):
    session(parts, tmp_path, BESIDE, steps=2)
    trainer, results, _ = session(parts, tmp_path, BESIDE, how="auto")
    best = best_step(trainer.history)
    assert names(tmp_path) == ["run.safetensors", "run_best.safetensors", "run_step2.safetensors"]
    assert noted_best(RunFolder(results.folder))["step"] == best and results.lora_path.name == "run.safetensors"


@pytest.mark.long
def test_where_the_last_step_is_the_best_there_is_one_file(parts, tmp_path):
    kept = replace(CONFIG.validation_loss, every=0)
    _, results, received = session(parts, tmp_path, RESULT, steps=1, learning_rate=1e-4, validation_loss=kept)
    assert names(tmp_path) == ["run.safetensors"] and results.lora_path.name == "run.safetensors"
    assert events.BestSoFar(1, "run.safetensors") in received


@pytest.mark.long
def test_without_a_validation_the_run_says_that_no_step_is_the_best(parts, tmp_path):
    config = ValidationLossSettings(every=0)
    _, results, received = session(parts, tmp_path, RESULT, steps=1, validation_loss=config, validation_items=0)
    assert results.lora_path.name == "run.safetensors"
    assert [e.text for e in received if isinstance(e, events.Warned) and "No step is the best" in e.text]


@pytest.mark.long
def test_a_best_checkpoint_that_is_damaged_leaves_the_last_one_as_the_result(parts, tmp_path):
    class Damaging(list):
        def append(self, event):
            super().append(event)
            if isinstance(event, events.Checkpointed) and event.step == 1:
                data = bytearray(event.path.read_bytes())
                data[-1] ^= 1
                event.path.write_bytes(data)

    received = Damaging()
    trainer = new_trainer(*parts, replace(CONFIG, checkpoints=RESULT))
    with torch.inference_mode():
        results = train(trainer, tmp_path / "loras", tmp_path / "runs", received.append, "new")
    assert results.lora_path.name == "run.safetensors" and results.lora_path.is_file()
    (warning,) = [e.text for e in received if isinstance(e, events.Warned) and "The best LoRA" in e.text]
    assert "its checksum is wrong" in warning


def test_a_best_one_needs_a_checkpoint_of_it():
    with pytest.raises(UserError, match="best is 'result', but the best is not kept"):
        CheckpointSettings(best="result", keep_best=False)
