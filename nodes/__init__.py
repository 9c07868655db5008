"""The nodes: a schema, one call into the engine, outputs."""

from .adapter import AdapterOptions
from .apply import LoraApply
from .caches import CacheEmbeds, CacheLatents
from .compare import CompareLoras
from .dataset_folder import DatasetFolder
from .dataset_options import CaptionOptions, CropOptions, MaskOptions, ReferenceOptions
from .import_settings import ImportSettings
from .load import LoadFlux2
from .making.captions import CaptionImages, FolderImages
from .making.dataset_images import DatasetImages
from .memory import Memory
from .objective import Preservation, Slider, TrainingObjective
from .optimizer import Optimizer
from .passes import ScheduledSampling, TokenRouting
from .publish.publish_lora import PublishLora
from .queue.checkpoint_lora import CheckpointLora
from .queue.queued_job import TrainQueuedJob
from .sample import Flux2Sampler
from .save_merged import SaveMergedModel
from .saving import Checkpoints, SaveOptions
from .timesteps import Timesteps
from .train import LoraTrainer
from .validation import ValidationLoss, ValidationPrompts

NODES = [
    LoadFlux2, DatasetFolder, CaptionOptions, CropOptions, MaskOptions, ReferenceOptions, CacheEmbeds,
    CacheLatents, AdapterOptions, SaveOptions, Checkpoints, Memory,
    TrainingObjective, Timesteps, TokenRouting, ScheduledSampling, Slider, Optimizer, Preservation, ValidationPrompts,
    ValidationLoss,
    LoraTrainer, LoraApply, Flux2Sampler, CompareLoras, SaveMergedModel, ImportSettings,
    TrainQueuedJob, CheckpointLora, DatasetImages, FolderImages, CaptionImages, PublishLora,
]  # fmt: skip
