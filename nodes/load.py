from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train import flavours
from ..flux2_train.host import files, load
from ..flux2_train.run import fit
from .progress import NodeProgress
from .types import CATEGORY


class LoadFlux2(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def file_input(id: str, folder: str, what: str):
            return io.Combo.Input(
                id, options=files.choices(folder), default=files.AUTO, optional=True, advanced=True,
                tooltip=f"The {what} file. 'auto' takes the first official file of the flavour that you have "
                "and tells you exactly which one to download when there is none.",
            )  # fmt: skip

        return io.Schema(
            node_id="Flux2Load",
            display_name="Load FLUX.2",
            category=CATEGORY,
            description="Loads transformer, text encoder and VAE of a FLUX.2 flavour as ComfyUI's own types.",
            search_aliases=["flux2", "klein", "train", "lora"],
            inputs=[
                io.Combo.Input(
                    "flavour", options=list(flavours.FLAVOURS), default=flavours.DEFAULT,
                    tooltip="Which FLUX.2. klein-4b trains on the smallest cards, klein-9b is the good middle, dev "
                    "is the largest. nano comes with the pack: use it to try a graph without any download.",
                ),
                io.Combo.Input(
                    "precision", options=[*load.precisions(), flavours.PLANNED], default=flavours.AS_IN_FILE,
                    tooltip="How the transformer's weights are stored in memory. 'as in file' is right for official "
                    "files, 'auto' takes what trains fastest in the memory that is free. Of a bf16 file, fp8, mxfp8 "
                    "and int8 take half, nvfp4 and int4 a quarter of the memory, and lose a little more quality each. "
                    "What the card has no fast arithmetic for still saves the memory.",
                ),
                io.Combo.Input(
                    "variant", options=list(flavours.VARIANTS), default="auto", optional=True, advanced=True,
                    tooltip="Base or distilled klein: the weights do not tell, so 'auto' goes by file name and prefers "
                    "base. Train on base; a distilled model samples in 4 steps without guidance.",
                ),
                file_input("transformer", "diffusion_models", "transformer"),
                file_input("text_encoder", "text_encoders", "text encoder"),
                file_input("vae", "vae", "VAE"),
                io.Combo.Input(
                    "text_encoder_precision", options=load.precisions(), default=flavours.AS_IN_FILE, optional=True,
                    advanced=True, tooltip="How the text encoder's weights are stored, as for the transformer.",
                ),
                io.Combo.Input(
                    "quantize_via", options=list(flavours.VIA), default="auto", optional=True, advanced=True,
                    tooltip="Where quantising is computed. 'auto' is ComfyUI's device, one layer at a time; 'cpu' "
                    "leaves the card alone and is slower.",
                ),
                io.Boolean.Input(
                    "keep_quantised", default=False, optional=True, advanced=True,
                    tooltip="Keep the quantised model as a file in a folder beside the others, so that the next start "
                    "is instant. Every ComfyUI loader can read it; delete it whenever you like.",
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, transformer="auto", text_encoder="auto", vae="auto"):
        """Replaces core's "value not in list": ``execute`` names the file, its folder and where to get it."""
        return True

    @classmethod
    def execute(cls, flavour: str, precision: str, **settings) -> io.NodeOutput:
        chosen = flavours.Flux2Files(flavour, precision, **settings)
        paths, row = load.locate_parts(chosen), flavours.flavour(flavour)
        chosen, text = fit.answered(chosen, paths)
        NodeProgress(cls.hidden.unique_id, 1).say(text)
        model = load.load_model(paths[0], chosen)
        return io.NodeOutput(model, load.load_clip(paths[1], chosen), load.load_vae(paths[2], row))
