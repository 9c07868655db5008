"""A real server works through the queue of jobs, keeps the graph of a run, and writes a LoRA of a checkpoint."""

import shutil
import time

import pytest
from comfy_server import ServerError
from safetensors import safe_open
from test_server import small

pytestmark = [pytest.mark.server, pytest.mark.long]
RUN = "queued"


@pytest.fixture(scope="module")
def trained(server):
    """The folder of a run of two steps, trained by a graph that has a workflow."""
    shutil.rmtree(queue_folder(server), ignore_errors=True)
    prompt = small()
    trainer = next(node["inputs"] for node in prompt.values() if node["class_type"] == "Flux2LoraTrainer")
    trainer.update(name=RUN, steps=2, rank=2, validation_items=0)
    workflow = {"id": "5b", "nodes": [], "links": [], "version": 0.4}
    server.post("/prompt", {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}})
    folder = server.folder / "output" / "flux2_train" / RUN
    wait(lambda: details(server, RUN).get("state") == "finished")
    assert server.get(f"/flux2_train/runs/graph?run={RUN}") == {"workflow": workflow, "prompt": prompt}
    yield folder
    shutil.rmtree(queue_folder(server), ignore_errors=True)


def queue_folder(server):
    return server.folder / "user" / "__flux2_train" / "queue"


def wait(until, seconds=240):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def details(server, name) -> dict:
    """A run as the tab shows it, empty while it is not there."""
    found = [run for run in server.get("/flux2_train/runs?count=200")["runs"] if run["name"] == name]
    return server.get(f"/flux2_train/runs/details?run={name}".replace(" ", "%20")) if found else {}


def jobs(server) -> dict[str, str]:
    return {job["title"]: job["state"] for job in server.get("/flux2_train/queue")["jobs"]}


def test_the_server_trains_what_waits_and_the_failure_of_one_does_not_stop_the_rest(server, trained):
    add = {"run": RUN, "vary": {"dataset.folder": ["nowhere", "robot"], "rank": ["1"]}}
    server.post("/flux2_train/queue/add", add)
    server.post("/flux2_train/queue/add", {"run": RUN, "set": {"steps": "4"}})
    wait(lambda: not {"waiting", "running"} & set(jobs(server).values()))
    assert jobs(server) == {
        f"{RUN}, dataset.folder nowhere, rank 1": "failed", f"{RUN}, dataset.folder robot, rank 1": "done",
        f"{RUN}, steps 4": "done",
    }  # fmt: skip
    (why,) = [job["why"] for job in server.get("/flux2_train/queue")["jobs"] if job["state"] == "failed"]
    assert "There is no folder" in why
    varied = details(server, f"{RUN} folder robot rank 1")
    assert (varied["state"], varied["step"], varied["settings"]["rank"]) == ("finished", 2, 1)
    longer = details(server, RUN)
    assert (longer["state"], longer["step"], longer["total"]) == ("finished", 4, 4)
    assert "goes on after step 2 of 4" in longer["log"] and longer["log"].count("begins in") == 2


def test_a_job_that_is_paused_or_cancelled_is_listed_as_that_and_goes_on(server, trained):
    """Not as a failure. The next one begins; once the job waits again, its run goes on."""
    server.post("/flux2_train/queue/add", {"run": RUN, "vary": {"steps": ["100000"], "rank": ["1"]}})
    title, name = f"{RUN}, steps 100000, rank 1", f"{RUN} steps 100000 rank 1"
    wait(lambda: details(server, name).get("curve"))
    server.post("/flux2_train/steer", {"run": name, "ask": "pause"})
    wait(lambda: jobs(server)[title] == "paused")
    (job,) = [job for job in server.get("/flux2_train/queue")["jobs"] if job["title"] == title]
    paused = details(server, name)
    assert paused["state"] == "paused" and job["of"] == name
    assert job["why"] == f"paused after step {paused['step']}; once the job waits again it goes on from there"
    server.post("/flux2_train/queue/change", {"job": job["name"], "do": "again"})
    wait(lambda: f"goes on after step {paused['step']} of" in details(server, name)["log"])
    server.post("/interrupt", {})
    wait(lambda: jobs(server)[title] == "stopped")
    assert details(server, name)["state"] == "stopped"
    server.post("/flux2_train/queue/pause", {"paused": True})
    server.post("/flux2_train/queue/add", {"run": name, "set": {}})  # what Go on in the tab does
    assert [state for each, state in jobs(server).items() if name in each or each == title] == ["waiting"]


def test_a_checkpoint_becomes_a_lora_file(server, trained):
    step = details(server, RUN)["checkpoints"][-1]
    server.post("/flux2_train/runs/lora", {"run": RUN, "step": step})
    path = server.folder / "models" / "loras" / f"{RUN}_step{step}.safetensors"
    wait(path.is_file)
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_steps"] == str(step)
    with pytest.raises(ServerError, match="has no checkpoint 99"):
        server.post("/flux2_train/runs/lora", {"run": RUN, "step": 99})
