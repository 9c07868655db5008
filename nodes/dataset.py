from __future__ import annotations

from comfy_api.latest import io, ui

from ..flux2_train.data import captions, crops
from ..flux2_train.data.captions import CaptionOptions
from ..flux2_train.data.crops import CropOptions
from ..flux2_train.data.dataset import Dataset, Source
from ..flux2_train.data.folder import read_folder
from ..flux2_train.data.images import to_tensor
from ..flux2_train.data.index import Index
from ..flux2_train.data.masks import MaskOptions
from ..flux2_train.data.pairs import ReferenceOptions, states
from ..flux2_train.data.report import contact_sheet, summary
from ..flux2_train.data.request import Request
from ..flux2_train.errors import UserError
from ..flux2_train.host.files import cache_folder, resolve
from .progress import NodeProgress
from .types import (
    CATEGORY,
    FluxCaptionOptions,
    FluxCropOptions,
    FluxDataset,
    FluxMaskOptions,
    FluxReferenceOptions,
)


def folder_states(name: str | None) -> list[tuple]:
    """Changes when any file in a folder does; empty for a folder that is not named or not there."""
    try:  # a name that comes over a wire is not known yet, and is None
        return states(resolve(name)) if name and name.strip() else []
    except (OSError, UserError):  # whoever reads the folder says what is wrong
        return []


class DatasetFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2DatasetFolder",
            display_name="Dataset Folder",
            category=CATEGORY,
            description="A folder of images and captions to train on.",
            search_aliases=["training data", "captions", "load images"],
            inputs=[
                io.String.Input(
                    "folder", default="robot",
                    tooltip="Folder of images: a name inside ComfyUI's input folder, a full path, or 'robot' for "
                    "the example that comes with the pack. 10 to 30 varied images make a good LoRA.",
                ),
                io.Combo.Input(
                    "captions", options=list(captions.SOURCES), default=captions.TEXT_FILE,
                    tooltip="Where captions come from: a .txt, .caption or .json of the same name beside each image "
                    "(best), the image's file name, one prompt for all, or a .jsonl file in the folder.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True,
                    tooltip="The caption of every image with 'one prompt', and of images without a .txt otherwise.",
                ),
                io.Int.Input(
                    "resolution", default=1024, min=64, max=4096, step=16,
                    tooltip="Images are scaled to about this many pixels squared, keeping their shape. 1024 is full "
                    "quality, 512 trains about four times faster, nano needs 128.",
                ),
                io.Int.Input(
                    "repeats", default=1, min=1, max=1000,
                    tooltip="How often each image is seen per epoch. Matters only when you count epochs; 1 is good.",
                ),
                io.String.Input(
                    "trigger", default="",
                    tooltip="The word that calls up what you train, such as 'zbot'. Replaces [trigger] in captions and "
                    "is put in front of captions that lack it. Choose one that means nothing yet.",
                ),
                io.String.Input(
                    "class_word", default="",
                    tooltip="What the subject is in plain words, such as 'robot'. Preservation keeps the model's idea "
                    "of this word as it was. Needed only with preservation.",
                ),
                io.String.Input(
                    "references", default="", optional=True, advanced=True,
                    tooltip="For training edits: a folder with the picture before the edit under each image's name. "
                    "Captions then say what to change. Several folders are separated by ';'. Leave empty otherwise.",
                ),
                io.Combo.Input(
                    "bad_files", options=[crops.SKIP, crops.REFUSE], default=crops.SKIP, optional=True, advanced=True,
                    tooltip="What to do with files that are broken or no usable image: leave them out and say so, or "
                    "stop and name them.",
                ),
                io.Boolean.Input(
                    "subfolders", default=True, optional=True, advanced=True,
                    tooltip="Also take images from folders inside the folder.",
                ),
                io.String.Input(
                    "background", default="white", optional=True, advanced=True,
                    tooltip="The colour put behind images that are transparent somewhere: a name or #rrggbb.",
                ),
                io.Int.Input(
                    "max_samples", default=0, min=0, max=10_000_000, optional=True, advanced=True,
                    tooltip="Take at most this many of the images, always the same ones; 0 takes all.",
                ),
                FluxCaptionOptions.Input(
                    "caption_options", optional=True,
                    tooltip="Rarer choices about captions: wire Caption Options.",
                ),
                FluxCropOptions.Input(
                    "crop_options", optional=True,
                    tooltip="Rarer choices about sizes, crops and flips: wire Crop Options.",
                ),
                FluxMaskOptions.Input(
                    "mask_options", optional=True,
                    tooltip="Train on parts of the images only: wire Mask Options.",
                ),
                FluxReferenceOptions.Input(
                    "reference_options", optional=True,
                    tooltip="Rarer choices about references for training edits: wire Reference Options.",
                ),
                FluxDataset.Input(
                    "more", optional=True,
                    tooltip="Another Dataset Folder whose images are trained on as well. Chain as many as you like.",
                ),
                io.Float.Input(
                    "probability", default=1.0, min=0.001, max=1.0, step=0.01, optional=True, advanced=True,
                    tooltip="The share of this folder's images that an epoch sees, others each time: 0.25 sees all in "
                    "four epochs. Balances chained folders.",
                ),
                io.Float.Input(
                    "loss_weight", default=1.0, min=0.0, max=100.0, step=0.05, optional=True, advanced=True,
                    tooltip="How much the loss of this folder's images counts; 1 is normal.",
                ),
                io.Boolean.Input(
                    "is_reg", default=False, optional=True, advanced=True,
                    tooltip="These are regularisation images of the class: they get no trigger and never share a batch "
                    "with others.",
                ),
                io.Boolean.Input(
                    "base_target", default=False, optional=True, advanced=True,
                    tooltip="Train regularisation images towards what the base model predicts instead of the image, "
                    "which only keeps what it knows.",
                ),
                io.Float.Input(
                    "timestep_offset", default=0.0, min=-8.0, max=8.0, step=0.05, optional=True, advanced=True,
                    tooltip="Moves the times these images are trained at, on the logit scale: above 0 towards noise "
                    "and composition, below 0 towards detail. 0.5 is much.",
                ),
            ],
            outputs=[FluxDataset.Output(display_name="dataset")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # so that it can be queued alone, and comes before any model is loaded
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str, references: str = "", **_) -> list:
        """Names, sizes, dates and inodes of all files: an edited caption or a new image makes the graph run again."""
        names = [folder, *(references or "").split(";")]
        return [state for name in names for state in folder_states(name)]

    @classmethod
    def execute(
        cls,
        folder: str,
        captions: str,
        prompt: str,
        resolution: int,
        repeats: int,
        trigger: str,
        class_word: str,
        references: str = "",
        caption_options: CaptionOptions | None = None,
        crop_options: CropOptions | None = None,
        mask_options: MaskOptions | None = None,
        reference_options: ReferenceOptions | None = None,
        more: Dataset | None = None,
        probability: float = 1.0,
        loss_weight: float = 1.0,
        is_reg: bool = False,
        base_target: bool = False,
        timestep_offset: float = 0.0,
        **chosen,
    ) -> io.NodeOutput:
        request = Request(
            resolve(folder),
            resolution,
            captions,
            prompt,
            trigger.strip(),
            class_word.strip(),
            tuple(resolve(name) for name in references.split(";") if name.strip()),
            source=Source(
                repeats=repeats,
                probability=probability,
                weight=loss_weight,
                is_reg=is_reg,
                base_target=base_target,
                timestep_offset=timestep_offset,
            ),
            caption=caption_options or CaptionOptions(),
            crop=crop_options or CropOptions(),
            mask=mask_options or MaskOptions(),
            reference=reference_options or ReferenceOptions(),
            **chosen,
        )
        progress = NodeProgress(cls.hidden.unique_id, 1)
        found = read_folder(request, Index(cache_folder()), progress.phase)
        if more is not None:
            found = more.chained(found)
        progress.say(summary(found))
        return io.NodeOutput(found, ui=ui.PreviewImage(to_tensor(contact_sheet(found)), cls=cls))
