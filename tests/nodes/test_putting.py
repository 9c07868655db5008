"""What the pack itself puts into ComfyUI's queue is a job like any other: the frontend lists it."""

import importlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from execution import PromptQueue

from flux2_train.runs.queue.folder import Queue
from flux2_train.settings.dataset_folder import DatasetSettings
from flux2_train.settings.job import Job
from flux2_train.settings.training import TrainingSettings

JOB = Job((DatasetSettings(Path("robot")),), training=TrainingSettings(name="vorn", steps=10))
NEEDED = {"id": str, "status": str, "create_time": int}  # without one of these, the frontend shows no job at all


@pytest.fixture
def server():
    """What a server's queue asks of the server, with ComfyUI's own queue."""
    made = SimpleNamespace(number=3, queue_updated=lambda: None)
    made.prompt_queue = PromptQueue(made)
    return made


def listed(server) -> list[dict]:
    jobs = pytest.importorskip("comfy_execution.jobs")
    running, queued = server.prompt_queue.get_current_queue()
    return jobs.get_all_jobs([item[:5] for item in running], [item[:5] for item in queued], {})[0]


def test_a_node_that_the_pack_queues_is_listed(server, pack):
    putting = importlib.import_module(f"{pack.__name__}.nodes.queue.putting")
    ids = [putting.put(server, "Flux2CheckpointLora", {"run": "a", "step": step}) for step in (1, 2)]
    assert server.number == 5
    server.prompt_queue.get()  # the first runs now
    jobs = listed(server)
    assert {job["id"]: job["status"] for job in jobs} == dict(zip(ids, ("in_progress", "pending"), strict=True))
    for job in jobs:
        assert all(isinstance(job.get(name), kind) for name, kind in NEEDED.items())
        assert abs(job["create_time"] / 1000 - time.time()) < 60


def test_a_waiting_job_of_the_folder_is_listed_and_only_one(server, pack, tmp_path):
    offering = importlib.import_module(f"{pack.__name__}.nodes.queue.offering")
    queue = Queue(tmp_path)
    assert not offering.offer(server, queue) and not listed(server)
    first, _ = [queue.add(JOB, title) for title in ("first", "second")]
    assert offering.offer(server, queue) and not offering.offer(server, queue)
    (job,) = listed(server)
    assert all(isinstance(job.get(name), kind) for name, kind in NEEDED.items())
    (item,) = server.prompt_queue.queue
    assert item[2]["1"]["_meta"]["title"] == "Train Queued Job" and item[2]["1"]["inputs"] == {"job": first}
