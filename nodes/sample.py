from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..flux2_train.host import sampling
from .types import CATEGORY


class Flux2Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Sampler",
            display_name="FLUX.2 Sampler",
            category=CATEGORY,
            description="Prompt to picture with the schedule and the kind of guidance that the flavour needs.",
            search_aliases=["ksampler", "generate", "edit"],
            inputs=[
                io.Model.Input("model", tooltip="Any FLUX.2 model, with or without LoRAs."),
                io.Clip.Input("clip", tooltip="The text encoder of the same flavour."),
                io.Vae.Input("vae", tooltip="The autoencoder that turns latents into pictures: VAE of Load FLUX.2."),
                io.String.Input("prompt", multiline=True, tooltip="What to paint; include your trigger word."),
                io.String.Input(
                    "negative", multiline=True, default="", optional=True, advanced=True,
                    tooltip="What to steer away from. Acts only where guidance mixes two predictions (klein base).",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=200,
                    tooltip="Sampling steps. 0 takes what the model was made for: 20 for base and dev, 4 distilled.",
                ),
                io.Float.Input(
                    "guidance", default=0.0, min=0.0, max=30.0, step=0.1,
                    tooltip="How strictly the prompt is followed. 0 takes the flavour's own, 4. Distilled klein has "
                    "none and ignores it.",
                ),
                io.Combo.Input(
                    "sampler", options=comfy.samplers.SAMPLER_NAMES, default="euler",
                    tooltip="The solver. euler is what FLUX.2 was made with.",
                ),
                io.Int.Input("width", default=1024, min=16, max=8192, step=16, tooltip="Pixels; nano paints at 128."),
                io.Int.Input("height", default=1024, min=16, max=8192, step=16, tooltip="Pixels; nano paints at 128."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="The starting noise. Keep it to compare a LoRA with the base model.",
                ),
                io.Int.Input("batch", default=1, min=1, max=64, optional=True, advanced=True,
                             tooltip="Pictures at once, each from different noise."),
                io.Boolean.Input(
                    "resize_references", default=True, optional=True, advanced=True,
                    tooltip="Scale reference images down to a megapixel (never up). Off keeps their size, which costs "
                    "memory and time.",
                ),
                io.Autogrow.Input(
                    "references", optional=True,
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input("reference", tooltip="An image to edit or to take things from."),
                        prefix="reference", min=0, max=10,
                    ),
                    tooltip="Up to 10 reference images, told apart in the prompt as image 1, image 2 and so on.",
                ),
            ],
            outputs=[io.Image.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, clip, vae, prompt: str, steps: int, guidance: float, sampler: str, width: int, height: int,
        seed: int, negative: str = "", batch: int = 1, resize_references: bool = True, references: dict | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        images = [image for image in (references or {}).values() if image is not None]
        return io.NodeOutput(
            sampling.sample(
                model, clip, vae, prompt, negative=negative, steps=steps, guidance=guidance, sampler=sampler,
                width=width, height=height, seed=seed, batch=batch, references=images,
                resize_references=resize_references,
            )
        )  # fmt: skip
