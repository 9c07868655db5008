from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.formats import PLANNED
from ..flux2_train.host.loading import files, load
from ..flux2_train.runs.precision import parts_of
from ..flux2_train.settings.model import ModelSettings
from . import fields
from .browser.shown import keep
from .types import TRAIN


class LoadFlux2(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2Load",
            display_name="Load FLUX.2",
            category=TRAIN,
            description="Loads transformer, text encoder and VAE of a FLUX.2 flavour as ComfyUI's own types.",
            search_aliases=["klein", "load klein", "flux2", "load flux2", "flux2 dev"],
            inputs=fields.inputs(
                ModelSettings,
                precision={"options": [*load.precisions(), PLANNED]},
                transformer={"options": files.choices("diffusion_models")},
                text_encoder={"options": files.choices("text_encoders")},
                vae={"options": files.choices("vae")},
                text_encoder_precision={"options": load.precisions()},
            ),
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, transformer="auto", text_encoder="auto", vae="auto"):
        """Accepts every file name: ``execute`` says better than core which file is missing and where to get it."""
        return True

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        parts = parts_of(ModelSettings(**widgets))
        shown = keep(cls.hidden.unique_id, parts.text)
        return io.NodeOutput(parts.load_model(), parts.load_clip(), parts.load_vae(), ui=shown)
