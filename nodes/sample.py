from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.host.graph_types import CLIP, VAE, ModelPatcher
from ..flux2_train.host.sampling import sample as sampling
from . import painting
from .types import USE


class Flux2Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Sampler",
            display_name="FLUX.2 Sampler",
            category=USE,
            description="Prompt to picture with the schedule and the kind of guidance that the flavour needs.",
            search_aliases=["ksampler", "generate", "edit"],
            inputs=[
                io.Model.Input("model", tooltip="Any FLUX.2 model, with or without LoRAs."),
                io.Clip.Input("clip", tooltip="The text encoder of the same flavour."),
                io.Vae.Input("vae", tooltip="The autoencoder that turns latents into pictures: VAE of Load FLUX.2."),
                painting.prompt(),
                *painting.inputs("negative", "steps", "guidance", steps=painting.COMMON, guidance=painting.COMMON),
                *painting.inputs("sampler", "width", "height", sampler={**painting.SAMPLERS, **painting.COMMON}),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="The starting noise. Keep it to compare a LoRA with the base model.",
                ),
                io.Int.Input("batch", default=1, min=1, max=64, optional=True, advanced=True,
                             tooltip="Pictures at once, each from different noise."),
                *painting.inputs("resize_references"),
                painting.references(
                    10, "Up to 10 reference images, told apart in the prompt as image 1, image 2 and so on."
                ),
            ],
            outputs=[io.Image.Output()],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, vae: VAE, prompt: str, steps: int, guidance: float, sampler: str,
        width: int, height: int, seed: int, negative: str = "", batch: int = 1, resize_references: bool = True,
        references: dict | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        images = [image for image in (references or {}).values() if image is not None]
        return io.NodeOutput(
            sampling.sample(
                model, clip, vae, prompt, negative=negative, steps=steps, guidance=guidance, sampler=sampler,
                width=width, height=height, seed=seed, batch=batch, references=images,
                resize_references=resize_references,
            )
        )  # fmt: skip
