"""References shown as clean images: trained so, written into the file, and sampled so again."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from support import adapters_for, brief_flux2, loss_of, problem, state_dict, tiny_caches

from flux2_train.adapters import files, read
from flux2_train.adapters.header import REFERENCES, references_of
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.velocity import velocity
from flux2_train.host.lora import apply as lora
from flux2_train.host.sampling.references import with_references
from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.results import metadata
from flux2_train.settings.objective import GuidanceSettings
from flux2_train.settings.training import TrainingSettings

CLEAN = "index_timestep_zero"


def predicted(model, method):
    """What the model predicts with ``method`` asked for by the prompt, as ComfyUI's own node does."""
    x, t, conditions, _ = problem(2, references=2, dtype=torch.float32)
    with torch.inference_mode(), borrow(model, {}) as borrowed, training_mode(), torch.no_grad():
        return velocity(borrowed, x, t, [replace(c, method=method) for c in conditions])


def test_a_model_that_places_them_itself_predicts_as_the_prompt_asks():
    model = brief_flux2()
    index, clean = predicted(model, "index"), predicted(model, CLEAN)
    assert not torch.allclose(index, clean, atol=1e-4)
    assert torch.equal(predicted(with_references(model, CLEAN), "index"), clean)
    assert torch.equal(predicted(with_references(with_references(model, CLEAN), CLEAN), "index"), clean)
    assert with_references(model, "index") is model


def test_gradients_with_clean_references_do_not_depend_on_checkpointing():
    model, found = brief_flux2(), []
    adapters = adapters_for(model)
    x, t, conditions, weights = problem(2, references=1, dtype=torch.float32)
    for method, checkpointing in (("index", True), (CLEAN, True), (CLEAN, False)):
        case = x, t, [replace(c, method=method) for c in conditions], weights
        with torch.inference_mode(), borrow(model, adapters.deltas(), checkpointing) as borrowed, training_mode():
            found.append(torch.autograd.grad(loss_of(borrowed, case), adapters.trainable()))
    assert all(torch.equal(a, b) for a, b in zip(*found[1:], strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(*found[:2], strict=True))


def edits():
    """The tiny caches with each image a reference of itself."""
    embeds, latents = tiny_caches()
    items = tuple(replace(item, references=(item.view,)) for item in latents.dataset.items)
    dataset = replace(latents.dataset, items=items)
    return replace(embeds, dataset=dataset), replace(latents, dataset=dataset)


def trained(references):
    config = TrainingSettings(steps=2, rank=2, validation_items=0, guidance=GuidanceSettings(references=references))
    trainer = new_trainer(brief_flux2(), *edits(), config)
    with torch.inference_mode(), closing(trainer.run()) as run:
        list(run)
    return trainer


@pytest.mark.long
def test_it_changes_what_is_learned_and_lora_apply_samples_as_it_was_trained(tmp_path):
    results = {}
    for references in ("index", CLEAN):
        trainer = trained(references)
        weights = state_dict(trainer.adapters, torch.float32)
        header = metadata(trainer, trainer.dataset)
        assert header[REFERENCES] == references
        path = files.save(weights, tmp_path / f"{references}.safetensors", header)
        assert references_of(read.load(path)) == references
        results[references] = weights, path
    assert not all(torch.equal(results["index"][0][k], results[CLEAN][0][k]) for k in results[CLEAN][0])
    model, (weights, path) = brief_flux2(), results[CLEAN]
    bare = lora.apply(model, weights, 1.0, "merged")  # tensors without a header say nothing
    with torch.inference_mode():
        with_lora = lora.apply(model, read.load(path), 1.0, "merged")
    assert torch.equal(predicted(with_lora, "index"), predicted(bare, CLEAN))
    assert not torch.equal(predicted(with_lora, "index"), predicted(bare, "index"))
