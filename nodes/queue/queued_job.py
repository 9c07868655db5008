from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io

from ...flux2_train.events import Event
from ...flux2_train.runs.queue.folder import STOPPED, Claim
from ...flux2_train.runs.queue.place import how_of, own_queue
from ...flux2_train.runs.queue.run_job import run_job
from ...flux2_train.runs.queue.work import follow, train_claimed
from ...flux2_train.settings.job import Job
from ...flux2_train.train.trainer import Trainer
from ..browser.shown import keep
from ..listener import TrainerListener, ending_as_interrupted
from ..progress import NodeProgress
from ..types import TRAIN


class TrainQueuedJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Flux2TrainQueued",
            display_name="Train Queued Job",
            category=TRAIN,
            description="Trains one job of the queue in the tab FLUX.2 runs. The server queues this node by itself "
            "when ComfyUI has nothing else to do.",
            inputs=[
                io.String.Input(
                    "job", default="",
                    tooltip="The name of a waiting job, as the tab and 'queue list' show it. Empty takes the next one.",
                ),
            ],
            outputs=[io.String.Output(display_name="saved file")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_dev_only=True,  # nobody needs it in a graph
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, job: str = "") -> float:
        """A job is another one each time, also under the same name."""
        return time.time()

    @classmethod
    def execute(cls, job: str = "") -> io.NodeOutput:
        claim = own_queue().claim(job)
        if claim is None:
            text = f"{job or 'The next job'} does not wait any more: somebody else trains it, or it was removed."
            return io.NodeOutput("", ui=keep(cls.hidden.unique_id, text))
        shown = {}
        with ending_as_interrupted():
            train_claimed(claim, partial(_train, cls.hidden.unique_id, shown))
        return io.NodeOutput(shown["file"], ui=shown["ui"])


def _train(node: str, shown: dict, job: Job, claim: Claim) -> None:
    listeners: list[TrainerListener] = []

    @contextmanager
    def listening(trainer: Trainer) -> Iterator[Callable[[Event], None]]:
        listener = TrainerListener(trainer, NodeProgress(node, trainer.total))
        listeners.append(listener)
        with listener.saying_how_it_ends():
            yield lambda event: (follow(claim, event), listener(event))

    try:
        results = run_job(job, None, _Said(NodeProgress(node, 1)), listening, how_of(claim))
    except InterruptProcessingException:
        claim.end(STOPPED, _said_of(claim))
        raise
    listener = listeners[0]
    text = f"{claim.entry.title}\n{listener.finished(results)}"
    shown |= {"file": results.lora_path.name, "ui": keep(node, text)}


def _said_of(claim: Claim) -> str:
    kept = "its last checkpoint is kept, and once it waits again it goes on from there"
    return f"cancelled; {kept if claim.run else 'nothing was saved'}"


class _Said:
    """Shows what is done before the first step on the node."""

    def __init__(self, progress: NodeProgress):
        self.progress, self.lines = progress, []

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.progress.say("\n".join(self.lines))

    def __call__(self, text: str, done: int, total: int) -> None:
        self.progress.phase(text, done, max(total, 1))
