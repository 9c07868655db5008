"""Our velocity is ComfyUI's own and that of diffusers' FLUX.2 with the same weights."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from support import adapters_for, by_diffusers, problem, tiny_flux2

from bench.as_diffusers import diffusers_transformer
from flux2_train.host.borrowed.borrow import borrow, training_mode
from flux2_train.host.borrowed.velocity import velocity

pytest.importorskip("diffusers", minversion="0.36", reason="diffusers, a development requirement, is not installed")


def weights_of(model):
    with torch.inference_mode(False):
        return {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}


def by_apply_model(model, x, t, conditions):
    """ComfyUI's own way to a prediction on the untouched MODEL: extra_conds, then apply_model, giving x - t v."""
    found = []
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        for i, c in enumerate(conditions):
            one = x[i : i + 1]
            conds = model.model.extra_conds(
                cross_attn=c.embeds, pooled_output=None, noise=one, device=one.device, guidance=c.guidance,
                reference_latents=list(c.references) or None,
            )  # fmt: skip
            inputs = {k: v.process_cond(batch_size=1, area=None, device=one.device).cond for k, v in conds.items()}
            denoised = model.model.apply_model(one, t[i : i + 1], transformer_options={}, **inputs)
            found.append((one - denoised) / t[i])
    return torch.cat(found).clone()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("guidance", [False, True], ids=["klein", "dev"])
def test_velocity_is_comfyuis_and_diffusers(guidance, references, batch):
    model = tiny_flux2(guidance=guidance)
    x, t, conditions, _ = problem(batch, references, dtype=torch.float32)
    adapters = adapters_for(model)
    adapters.enabled = False
    expected = by_diffusers(diffusers_transformer(weights_of(model)), x, t, conditions)
    assert_close(by_apply_model(model, x, t, conditions), expected)
    with borrow(model, adapters.deltas()) as borrowed, training_mode():
        assert_close(velocity(borrowed, x, t, conditions).detach(), expected)


def test_guidance_and_references_reach_both():
    """So the test above can fail for either."""
    transformer = diffusers_transformer(weights_of(tiny_flux2(guidance=True)))
    x, t, conditions, _ = problem(1, 1, dtype=torch.float32)
    expected = by_diffusers(transformer, x, t, conditions)
    for changed in ({"guidance": 1.0}, {"references": ()}, {"embeds": conditions[0].embeds + 0.1}):
        other = by_diffusers(transformer, x, t, [replace(conditions[0], **changed)])
        assert (other - expected).norm() > 1e-3 * expected.norm()


def assert_close(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm()
