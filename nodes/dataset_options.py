"""The option nodes of Dataset Folder: its rarer choices."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.host.loading.files import resolve
from ..flux2_train.settings.crops import CropSettings
from ..flux2_train.settings.dataset_folder import CaptionSettings, MaskSettings, ReferenceSettings
from . import fields
from .dataset_folder import folder_states
from .options import Options
from .types import OPTIONS, FluxDatasetOptions


class CaptionOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CaptionOptions",
            display_name="Caption Options",
            category=OPTIONS,
            description="How Dataset Folder treats captions: several per image, shuffled parts, dropout, the trigger.",
            search_aliases=["shuffle tokens", "caption dropout", "keep tokens"],
            inputs=fields.inputs(CaptionSettings),
            outputs=[FluxDatasetOptions.Output(display_name="caption options")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Caption Options", {"caption_options": CaptionSettings(**widgets)}))


class CropOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CropOptions",
            display_name="Crop Options",
            category=OPTIONS,
            description="Which sizes and which parts of the images Dataset Folder trains on.",
            search_aliases=["bucket", "resolution", "crop", "flip", "multi resolution"],
            inputs=fields.inputs(CropSettings),
            outputs=[FluxDatasetOptions.Output(display_name="crop options")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Crop Options", {"crop_options": CropSettings(**widgets)}))


class MaskOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2MaskOptions",
            display_name="Mask Options",
            category=OPTIONS,
            description="Which parts of Dataset Folder's images count in the loss: white does, black does not.",
            search_aliases=["masked training", "masked loss", "alpha mask"],
            inputs=fields.inputs(MaskSettings),
            outputs=[FluxDatasetOptions.Output(display_name="mask options")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_) -> list:
        """An edited mask makes the graph run again."""
        return folder_states(folder)

    @classmethod
    def execute(cls, folder: str, **widgets) -> io.NodeOutput:
        settings = MaskSettings(resolve(folder) if folder.strip() else None, **widgets)
        return io.NodeOutput(Options("Mask Options", {"mask_options": settings}))


class ReferenceOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2ReferenceOptions",
            display_name="Reference Options",
            category=OPTIONS,
            description="How Dataset Folder treats the references of training edits.",
            search_aliases=["control images", "edit training", "kontext"],
            inputs=fields.inputs(ReferenceSettings),
            outputs=[FluxDatasetOptions.Output(display_name="reference options")],
        )

    @classmethod
    def execute(cls, **widgets) -> io.NodeOutput:
        return io.NodeOutput(Options("Reference Options", {"reference_options": ReferenceSettings(**widgets)}))
