"""A graph in a real server trains in two processes: cancelled, broken by a killed process, and then to its end."""

import json
import threading
import time

import numpy as np
import psutil
import pytest
from comfy_server import ServerError
from test_server import picture, sampling_graph, small

from flux2_train.runs.folder import RunFolder

pytestmark = [pytest.mark.server, pytest.mark.long]
NAME = "two_processes"


def graph(steps):
    """The nano graph in two processes, then a picture of the base and one with the LoRA."""
    prompt = small(steps=steps, processes=2)
    prompt["5"]["inputs"].update(name=NAME, learning_rate=1e-2)
    apply = {"model": ["1", 0], "lora": ["5", 0], "strength": 1.0, "mode": "merged"}
    return prompt | sampling_graph(None, {"class_type": "Flux2LoraApply", "inputs": apply})


class Watching:
    """Keeps the lines of the panel and the node's texts, and acts once when a step is told."""

    def __init__(self, step, act):
        self.step, self.act, self.lines, self.texts, self.acted = step, act, [], [], 0.0

    def __call__(self, kind, data):
        if kind == "text" and data["node"] == "5":
            self.texts.append(data["text"])
        if kind != "flux2_train.run" or data["node"] != "5":
            return
        self.lines += data["lines"]
        reached = max((each["first"] + len(each["loss"]) - 1 for each in data["lines"] if each["kind"] == "steps"),
                      default=0)  # fmt: skip
        if reached >= self.step and not self.acted:
            self.acted = time.monotonic()
            threading.Thread(target=self.act).start()


def ranks(server):
    """The processes that train, by their number."""
    found = {}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        words = process.cmdline()
        if "flux2_train" in words and "accelerate.commands.launch" not in words:
            found[process.environ().get("RANK", "")] = process
    return found


def test_cancelled_killed_and_to_the_end_with_the_lora_in_the_same_graph(server, full_size):
    run = RunFolder(server.folder / "output" / "flux2_train" / NAME)
    cancelled = Watching(1, lambda: server.post("/interrupt", {}))
    with pytest.raises(ServerError, match="Flux2LoraTrainer: interrupted"):
        server.run(graph(1000), cancelled)
    assert not ranks(server) and run.about()["status"] == "paused"
    kept = run.about()["step"]
    assert kept >= 1 and [path.name for path in run.checkpoints.iterdir()] == [f"step_{kept:08}.safetensors"]
    assert json.loads(run.job.read_text())["training"]["processes"] == 2

    if full_size:
        kill_one(server, kept)
    last = run.about()["step"] + 2
    through = Watching(0, lambda: None)
    history = server.run(graph(last), through)
    assert run.about()["status"] == "finished" and run.about()["step"] == last and not ranks(server)
    kinds = {each["kind"] for each in through.lines}
    assert {"began", "resumed", "plan", "steps", "saved", "ended"} <= kinds
    assert server.get(f"/flux2_train/run?run={NAME}")["lines"][-1]["kind"] == "ended"
    base, painted = (picture(server, history, f"i{number}").astype(int) for number in (1, 2))
    assert np.abs(base - painted).mean() > 0


def kill_one(server, kept):
    """The run goes on, and one of its processes is killed: all end, and the run is saved."""
    killed = Watching(kept + 1, lambda: ranks(server)["1"].kill())
    with pytest.raises(
        ServerError, match=r"Process 1 of 2 \(counted from 0\) was ended by SIGKILL.* Step \d+ is saved"
    ):
        server.run(graph(1000), killed)
    seconds = time.monotonic() - killed.acted
    assert seconds < 30 and not ranks(server) and any(f"goes on after step {kept} of" in text for text in killed.texts)
    print(f"from kill -9 of one process to the end of all: {seconds:.1f} s")
