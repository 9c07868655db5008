"""Trains a graph's run in several processes, which load the model from its file and tell their run to this server."""

from __future__ import annotations

import inspect
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import folder_paths
from comfy.model_management import throw_exception_if_processing_interrupted

from ...flux2_train.data.cache import EmbedCache, LatentCache
from ...flux2_train.errors import UserError
from ...flux2_train.host.graph_types import ModelPatcher
from ...flux2_train.host.loading import files
from ...flux2_train.host.system import memory
from ...flux2_train.runs.folder import RunFolder
from ...flux2_train.runs.graph_job import job_of
from ...flux2_train.runs.prepare import new_trainer
from ...flux2_train.runs.results import Results
from ...flux2_train.runs.several.following import Followed
from ...flux2_train.runs.several.training import Place, train
from ...flux2_train.runs.writers.preview_files import save_references
from ...flux2_train.settings.job import Job
from ...flux2_train.settings.training import TrainingSettings
from ...flux2_train.train.preview_request import PreviewRequest
from ...flux2_train.train.processes import Elsewhere
from ..listener import TrainerListener, ending_as_interrupted
from ..progress import NodeProgress


def train_in(
    count: int, node: str, model: ModelPatcher, caches: tuple[EmbedCache, LatentCache], config: TrainingSettings,
    previews: PreviewRequest | None, held_out: tuple[EmbedCache, LatentCache] | None, resume: str,
) -> tuple[Results, str]:  # fmt: skip
    """Train in ``count`` processes. Returns the results, and the text that the node ``node`` shows of them.

    The graph's own MODEL leaves memory meanwhile. Raises UserError for a graph that no file can describe.
    """
    with tempfile.TemporaryDirectory(prefix="flux2_train") as temporary:
        trainer = new_trainer(
            model, *caches, replace(config, processes=count), Elsewhere(count), previews, held_out
        )  # fmt: skip
        references = save_references(previews, RunFolder(Path(temporary)))
        job, followed = _described(job_of(trainer, references), count), Followed(trainer.config, trainer.total)
        del trainer
        memory.unload(model)
        listener = TrainerListener(followed, NodeProgress(node, followed.total))
        here = Path(inspect.getfile(folder_paths)).parent
        place = Place(here, sys.argv[1:], files.lora_folder(), files.run_folder())
        with ending_as_interrupted(), listener.saying_how_it_ends():
            results = train(job, followed, place, listener, throw_exception_if_processing_interrupted, resume)
    return results, listener.finished(results)


def _described(job: Job, count: int) -> Job:
    if job.unknown:
        raise UserError(
            f"{count} processes load the model from its files, which are not all that is in this graph: "
            f"{'; '.join(job.unknown)}. Take that out, or set processes to 1."
        )
    return job
