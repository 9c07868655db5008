from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ...flux2_train.data.curate import making
from ...flux2_train.data.folder import read_folder
from ...flux2_train.data.images import to_tensor
from ...flux2_train.data.index import Index
from ...flux2_train.data.report import contact_sheet, summary
from ...flux2_train.errors import UserError
from ...flux2_train.host.loading.files import cache_folder
from ...flux2_train.host.loading.places import may_read
from ...flux2_train.names import problem, shown
from ...flux2_train.settings.dataset_folder import DatasetSettings
from .. import fields
from ..browser.shown import keep
from ..progress import NodeProgress
from ..types import TRAIN, FluxDataset


class DatasetImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2DatasetImages",
            display_name="Dataset Images",
            category=TRAIN,
            description="Images of the graph as a data set: they are kept as files in ComfyUI's input folder, so that "
            "the run can be repeated and the pictures can be looked through.",
            search_aliases=["dataset from images", "image batch to dataset", "save dataset"],
            is_input_list=True,  # images of different sizes come as a list
            inputs=[
                io.Image.Input("images", tooltip="Batches or lists of pictures to train on, of any sizes."),
                io.String.Input(
                    "captions", default="", multiline=True,
                    tooltip="What each picture shows: wire a list of texts, or write one line for each picture. A "
                    "single line is the caption of all.",
                ),
                io.String.Input(
                    "name", default="from the graph",
                    tooltip="What the new folder in ComfyUI's input folder is called; a hash of its content is added.",
                ),
                *fields.inputs(DatasetSettings, "resolution", "trigger", "class_word"),
                io.Mask.Input(
                    "masks", optional=True, tooltip="One mask for each picture: where it is white, the loss counts."
                ),
                io.Image.Input(
                    "references", optional=True,
                    tooltip="For training edits: the picture before the edit, one for each picture.",
                ),
            ],
            outputs=[
                FluxDataset.Output(display_name="dataset"),
                io.String.Output(display_name="folder"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, images: list[Tensor], captions: list[str], name: list[str], resolution: list[int], trigger: list[str],
        class_word: list[str], masks: list[Tensor] | None = None, references: list[Tensor] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        chosen = name[0].strip()
        if wrong := problem(chosen):
            raise UserError(f"The name {shown(chosen)!r} cannot be a folder's name: {wrong}.")
        parts = making.made(images, captions, masks or (), references or ())
        folder, before = making.keep(parts, Path(folder_paths.get_input_directory()), chosen)
        settings = DatasetSettings(
            folder, resolution=resolution[0], trigger=trigger[0].strip(), class_word=class_word[0].strip(),
            references=(before,) if before else (),
            # pictures without any caption are trained on as the trigger alone
            prompt="" if parts.captions else "[trigger]",
        )  # fmt: skip
        progress = NodeProgress(cls.hidden.unique_id, 1)
        dataset = read_folder(settings, Index(cache_folder()), progress.phase, may_read)
        text = f"kept in the input folder as {folder.name}\n{summary(dataset)}"
        sheet = to_tensor(contact_sheet(dataset))
        return io.NodeOutput(dataset, folder.name, ui=keep(cls.hidden.unique_id, text, sheet, cls))
