from __future__ import annotations

from comfy_api.latest import io

from ..flux2_train.data.dataset import Dataset
from ..flux2_train.data.folder import read_folder
from ..flux2_train.data.images import to_tensor
from ..flux2_train.data.index import Index
from ..flux2_train.data.pairs import states
from ..flux2_train.data.report import contact_sheet, summary
from ..flux2_train.errors import UserError
from ..flux2_train.host.loading.files import cache_folder, resolve
from ..flux2_train.host.loading.places import may_read
from ..flux2_train.settings.dataset_folder import DatasetSettings
from . import fields
from .browser.shown import keep
from .options import gathered, socket, take_earlier
from .progress import NodeProgress
from .types import TRAIN, FluxDataset, FluxDatasetOptions

# Each is set by one option node; they were sockets once.
SECTIONS = ("caption_options", "crop_options", "mask_options", "reference_options")


def folder_states(name: str | None) -> list[tuple]:
    """The states of a folder's files, which change with any file; empty if there is no such folder."""
    try:  # a name that comes over a wire is still None here
        return states(resolve(name), may_read) if name and name.strip() else []
    except (OSError, UserError):  # read_folder says what is wrong
        return []


class DatasetFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2DatasetFolder",
            display_name="Dataset Folder",
            category=TRAIN,
            description="A folder of images and captions to train on.",
            search_aliases=["trigger", "trigger word", "class word", "captions", "load images"],
            inputs=[
                *fields.inputs(
                    DatasetSettings, "folder", "captions", "prompt", "resolution", "repeats", "trigger", "class_word",
                    "references", "bad_files", "subfolders", "background", "max_samples",
                ),
                socket(
                    FluxDatasetOptions, len(SECTIONS),
                    "Rarer choices: wire Caption Options, Crop Options, Mask Options or Reference Options.",
                ),
                FluxDataset.Input(
                    "more", optional=True,
                    tooltip="Another Dataset Folder whose images are trained on as well. Chain as many as you like.",
                ),
                *fields.inputs(
                    DatasetSettings, "probability", "loss_weight", "is_reg", "base_target", "timestep_offset",
                    "balance", "batch",
                ),
            ],
            outputs=[FluxDataset.Output(display_name="dataset")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # it can be queued alone, and runs before any model is loaded
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str, references: str = "", **_) -> list:
        """Names, sizes, dates and inodes of all files: an edited caption or a new image makes the graph run again."""
        names = [folder, *(references or "").split(";")]
        return [state for name in names for state in folder_states(name)]

    @classmethod
    def execute(
        cls, folder: str, trigger: str, class_word: str, references: str = "", more: Dataset | None = None,
        options: dict | None = None, **widgets,
    ) -> io.NodeOutput:  # fmt: skip
        sections = gathered("Dataset Folder", {**(options or {}), **take_earlier(widgets, SECTIONS)})
        settings = DatasetSettings(
            resolve(folder), trigger=trigger.strip(), class_word=class_word.strip(),
            references=tuple(resolve(name) for name in references.split(";") if name.strip()), **sections, **widgets,
        )  # fmt: skip
        progress = NodeProgress(cls.hidden.unique_id, 1)
        dataset = read_folder(settings, Index(cache_folder()), progress.phase, may_read)
        if more is not None:
            dataset = more.chained(dataset)
        sheet = to_tensor(contact_sheet(dataset))
        return io.NodeOutput(dataset, ui=keep(cls.hidden.unique_id, summary(dataset), sheet, cls))
