"""Small nodes that hold the rarer choices for Dataset Folder."""

from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data import captions, crops, masks, pairs
from ..flux2_train.data import dataset as data
from ..flux2_train.host.files import resolve
from .dataset import folder_states
from .types import CATEGORY, FluxCaptionOptions, FluxCropOptions, FluxMaskOptions, FluxReferenceOptions

SEED = {"default": 0, "min": 0, "max": 2**31 - 1}


class CaptionOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CaptionOptions",
            display_name="Caption Options",
            category=CATEGORY,
            description="How Dataset Folder treats captions: several per image, shuffled parts, dropout, the trigger.",
            search_aliases=["shuffle tokens", "caption dropout", "keep tokens"],
            inputs=[
                io.Combo.Input(
                    "several", options=list(captions.SEVERAL), default=captions.JOIN,
                    tooltip="Several lines in one caption file: joined to one caption, or one of them chosen per step.",
                ),
                io.Float.Input(
                    "dropout", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How often a step sees the dropout caption instead of the image's. 0.05 to 0.1 helps "
                    "guidance later; 0 is off.",
                ),
                io.String.Input(
                    "dropout_caption", default="",
                    tooltip="The caption that stands in when one is dropped. Empty is usual; '[trigger]' keeps the "
                    "trigger word alone.",
                ),
                io.Int.Input(
                    "shuffle", default=0, min=0, max=100,
                    tooltip="Into how many orders the parts of a caption are shuffled, one of which is drawn per step. "
                    "Each is encoded once. For tags, not for sentences; 0 is off.",
                ),
                io.Int.Input(
                    "keep_tokens", default=0, min=0, max=100,
                    tooltip="How many parts at the start of a caption stay in their place when shuffled.",
                ),
                io.String.Input(
                    "separator", default=",",
                    tooltip="What stands between the parts of a caption that are shuffled.",
                ),
                io.Boolean.Input(
                    "prepend_trigger", default=True,
                    tooltip="Put the trigger in front of captions that contain neither it nor [trigger]. Turn off to "
                    "place it only where you wrote it.",
                ),
                io.Int.Input("seed", **SEED, advanced=True, tooltip="Fixes the orders that shuffling makes."),
            ],
            outputs=[FluxCaptionOptions.Output(display_name="caption options")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **chosen) -> io.NodeOutput:
        return io.NodeOutput(captions.CaptionOptions(**chosen))


class CropOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2CropOptions",
            display_name="Crop Options",
            category=CATEGORY,
            description="Which sizes and which parts of the images Dataset Folder trains on.",
            search_aliases=["bucket", "resolution", "crop", "flip", "multi resolution"],
            inputs=[
                io.Boolean.Input(
                    "crop", default=True,
                    tooltip="Cut images to the shape of a bucket. Off uses the whole image, stretched by at "
                    "most 8 pixels.",
                ),
                io.Combo.Input(
                    "crop_aspect", options=list(crops.ASPECTS), default=crops.CLOSEST,
                    tooltip="The shape to cut to: the closest bucket (or the closest of 'aspects'), the image's own, "
                    "square, or one drawn at random from 'aspects'.",
                ),
                io.String.Input(
                    "aspects", default="",
                    tooltip="Shapes to choose from, width to height, such as 1:1, 3:2, 2:3. Empty: all buckets.",
                ),
                io.Combo.Input(
                    "crop_style", options=list(crops.STYLES), default=crops.CENTER,
                    tooltip="Which part is kept: the centre, a random part, the top left corner, or around the largest "
                    "face (needs OpenCV 4).",
                ),
                io.Int.Input(
                    "crops", default=1, min=1, max=64,
                    tooltip="How many random crops of each image are made, each of which is an image of its own.",
                ),
                io.Boolean.Input(
                    "flip_x", default=False,
                    tooltip="Also train on every image mirrored left to right. Not for faces or text.",
                ),
                io.Boolean.Input(
                    "flip_y", default=False,
                    tooltip="Also train on every image upside down. For textures, hardly for anything else.",
                ),
                io.String.Input(
                    "resolutions", default="",
                    tooltip="Several resolutions instead of Dataset Folder's one, such as 512, 768, 1024.",
                ),
                io.Combo.Input(
                    "use", options=[crops.EACH, crops.NEAREST], default=crops.EACH,
                    tooltip="See every image once at each of the resolutions, or only at the one nearest its own size.",
                ),
                io.Combo.Input(
                    "resolution_type", options=list(crops.RESOLUTION_TYPES), default=crops.PIXEL_AREA, advanced=True,
                    tooltip="What resolutions, minimum and maximum count: the side of a square of that area, "
                    "megapixels "
                    "of 1024 x 1024 (in 'resolutions'), or pixels of the shorter side.",
                ),
                io.Boolean.Input(
                    "upscale", default=True,
                    tooltip="Scale images up that are smaller than the resolution. Off keeps their size, cut to "
                    "16 pixels.",
                ),
                io.Float.Input(
                    "minimum", default=0.0, min=0.0, max=16384.0, step=1.0, round=False, advanced=True,
                    tooltip="The smallest image size that is fine, in the unit of resolution_type; 0 is none.",
                ),
                io.Combo.Input(
                    "too_small", options=[crops.UPSCALE, crops.SKIP, crops.REFUSE], default=crops.UPSCALE,
                    advanced=True,
                    tooltip="What to do with images below the minimum: scale them up, leave them out, or stop "
                    "and name them.",
                ),
                io.Float.Input(
                    "maximum", default=0.0, min=0.0, max=65536.0, step=1.0, round=False, advanced=True,
                    tooltip="The largest image size that is fine, in the unit of resolution_type; 0 is none.",
                ),
                io.Combo.Input(
                    "too_large", options=[crops.DOWNSCALE, crops.SKIP, crops.REFUSE], default=crops.DOWNSCALE,
                    advanced=True,
                    tooltip="What to do with images above the maximum: scale them down, leave them out, or stop "
                    "and name "
                    "them.",
                ),
                io.Int.Input("seed", **SEED, advanced=True, tooltip="Fixes random crops, shapes and samples."),
            ],
            outputs=[FluxCropOptions.Output(display_name="crop options")],
        )  # fmt: skip

    @classmethod
    def execute(cls, resolutions, aspects, crop_aspect, crop_style, **chosen) -> io.NodeOutput:
        return io.NodeOutput(
            crops.CropOptions(
                resolutions=crops.parse_numbers(resolutions, "resolutions"),
                aspects=crops.parse_numbers(aspects, "aspects"),
                aspect=crop_aspect,
                style=crop_style,
                **chosen,
            )
        )


class MaskOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2MaskOptions",
            display_name="Mask Options",
            category=CATEGORY,
            description="Which parts of Dataset Folder's images count in the loss: white does, black does not.",
            search_aliases=["masked training", "masked loss", "alpha mask"],
            inputs=[
                io.String.Input(
                    "folder", default="",
                    tooltip="Folder of masks with the images' names. An image without a mask counts fully.",
                ),
                io.Boolean.Input(
                    "alpha", default=False,
                    tooltip="Take the images' own transparency as masks: what is opaque counts. Leave the "
                    "folder empty.",
                ),
                io.Boolean.Input(
                    "invert", default=False,
                    tooltip="Turn masks around, so that black (or what is transparent) counts.",
                ),
                io.Float.Input(
                    "minimum", default=0.0, min=0.0, max=1.0, step=0.05,
                    tooltip="How much the rest still counts. 0.1 keeps backgrounds from falling apart; 0 ignores them.",
                ),
            ],
            outputs=[FluxMaskOptions.Output(display_name="mask options")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_) -> list:
        """An edited mask makes the graph run again."""
        return folder_states(folder)

    @classmethod
    def execute(cls, folder: str, **chosen) -> io.NodeOutput:
        return io.NodeOutput(masks.MaskOptions(resolve(folder) if folder.strip() else None, **chosen))


class ReferenceOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2ReferenceOptions",
            display_name="Reference Options",
            category=CATEGORY,
            description="How Dataset Folder treats the references of training edits.",
            search_aliases=["control images", "edit training", "kontext"],
            inputs=[
                io.Combo.Input(
                    "kind", options=list(pairs.KINDS), default=pairs.LOOSE,
                    tooltip="Loose references keep their own shape; strict ones share crop, size and flips of their "
                    "image, to which they must be aligned.",
                ),
                io.Int.Input(
                    "resolution", default=0, min=0, max=4096, step=16,
                    tooltip="Loose references are scaled to about this many pixels squared; 0 takes their "
                    "image's size.",
                ),
                io.Combo.Input(
                    "sampling", options=list(data.SAMPLINGS), default=data.COMBINED,
                    tooltip="With several reference folders: give all references at once, or draw one of them "
                    "per step.",
                ),
                io.Float.Input(
                    "dropout", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="How often a step sees no references, so that the model also learns without them; 0 "
                    "is off.",
                ),
            ],
            outputs=[FluxReferenceOptions.Output(display_name="reference options")],
        )  # fmt: skip

    @classmethod
    def execute(cls, **chosen) -> io.NodeOutput:
        return io.NodeOutput(pairs.ReferenceOptions(**chosen))
