from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data.cache import EmbedCache, LatentCache
from ..flux2_train.errors import UserError
from ..flux2_train.host import describe
from ..flux2_train.host.graph_types import VAE, ModelPatcher
from ..flux2_train.host.loading import files
from ..flux2_train.settings.previews import PreviewSettings, Prompt, ValidationLossSettings, from_lines
from ..flux2_train.settings.prompts import from_file
from ..flux2_train.train.preview_request import PreviewRequest
from . import fields, painting
from .options import Options
from .types import OPTIONS, FluxEmbeds, FluxLatents, FluxOptions

EACH, EVERY = "each for its own prompt", "all for every prompt"


class ValidationPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Validation",
            display_name="Validation",
            category=OPTIONS,
            description="Paints prompts while LoRA Trainer works, with the LoRA as it is at that moment: the pictures "
            "that FLUX.2 Sampler would paint with it. Wire it into Cache Embeds and into LoRA Trainer.",
            search_aliases=["preview", "preview training", "sample prompts", "validation prompts"],
            inputs=[
                io.Vae.Input("vae", tooltip="Turns latents into pictures: VAE of Load FLUX.2."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="A second model that paints instead of the trained one, with the same LoRA: wire the "
                    "distilled klein here while its base is trained.",
                ),
                fields.widget(PreviewSettings, "prompts"),
                io.String.Input(
                    "prompt_file", default="", optional=True,
                    tooltip="A file with more prompts, in ComfyUI's input folder or with its full path: .txt with one "
                    "per line, or SimpleTuner's prompt library as .json.",
                ),
                *painting.inputs(
                    "negative", "width", "height", "every", "at_start", "seed", "seeds", "steps",
                    "guidance", "sampler", "strength", "resize_references", "copies",
                ),
                io.Combo.Input(
                    "references_for", options=[EACH, EVERY], default=EACH, optional=True, advanced=True,
                    tooltip="Whether reference0 belongs to the first prompt, reference1 to the second and so on (a "
                    "batch is several of one prompt), or all of them to every prompt.",
                ),
                painting.references(64, "Reference images, for LoRAs that edit: one input per prompt."),
            ],
            outputs=[FluxOptions.Output(display_name="validation")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, prompt_file: str = "", **_) -> object:
        return _state(prompt_file)

    @classmethod
    def execute(
        cls, vae: VAE, prompts: str, model: ModelPatcher | None = None, prompt_file: str = "",
        references_for: str = EACH, references: dict | None = None, **settings,
    ) -> io.NodeOutput:  # fmt: skip
        written = from_lines(prompts)
        if prompt_file.strip():
            written += from_file(files.resolve_file(prompt_file))
        config = PreviewSettings(written, **settings)
        images = _references(written, references or {}, references_for)
        request = PreviewRequest(config, vae, model, images, describe.vae_file(vae))
        return io.NodeOutput(Options("Validation", {"validation": request}))


def _state(prompt_file: str) -> object:
    """Size, date and inode of the prompt file. A name that comes over a wire is still None here."""
    try:
        stat = files.resolve_file(prompt_file).stat() if prompt_file and prompt_file.strip() else None
        return stat and (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except (OSError, UserError):  # execute says what is wrong
        return None


def _references(prompts: tuple[Prompt, ...], wired: dict, use: str) -> tuple[tuple, ...]:
    """The images of each prompt: ``reference0`` for the first prompt and so on, or all images for every prompt."""
    images = {int(name.removeprefix("reference")): image for name, image in wired.items() if image is not None}
    if not images:
        return ()
    if use == EVERY:
        return (tuple(image for _, image in sorted(images.items())),) * len(prompts)
    if max(images) >= len(prompts):
        raise UserError(
            f"reference{max(images)} is wired but the prompts here are {len(prompts)}, counted from 0: add a prompt, "
            f"or set references_for to {EVERY!r}."
        )
    return tuple((images[number],) if number in images else () for number in range(len(prompts)))


class ValidationLoss(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2ValidationLoss",
            display_name="Validation Loss",
            category=OPTIONS,
            description="Measures the loss at fixed noise on images that are not trained on, which tells learning from "
            "memorising, and on every image alone, which names those that are memorised, not learnable or mislabelled.",
            search_aliases=["held out", "overfitting", "test set", "evaluation"],
            inputs=[
                FluxEmbeds.Input(
                    "embeds", optional=True,
                    tooltip="Captions of held-out images: a Dataset Folder of their own through Cache Embeds.",
                ),
                FluxLatents.Input(
                    "latents", optional=True, tooltip="The same held-out images through Cache Latents."
                ),
                *fields.inputs(ValidationLossSettings),
            ],
            outputs=[FluxOptions.Output(display_name="validation loss")],
        )  # fmt: skip

    @classmethod
    def execute(cls, embeds: EmbedCache | None = None, latents: LatentCache | None = None, **settings) -> io.NodeOutput:
        if (embeds is None) != (latents is None):
            missing = "embeds" if embeds is None else "latents"
            raise UserError(f"Validation Loss has no {missing}: wire both caches of the held-out images, or neither.")
        data = None if embeds is None else (embeds, latents)
        sections = {"validation_loss": ValidationLossSettings(**settings), "held_out": data}
        return io.NodeOutput(Options("Validation Loss", sections))
