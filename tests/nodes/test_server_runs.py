"""Runs in a real server that is killed, cancelled, broken and stopped: nothing is lost, and nothing is left behind."""

import http.client
import json
import threading
import time
from pathlib import Path

import aiohttp
import pytest
import torch
from comfy_server import WITHOUT_API_NODES, ComfyServer, ServerError
from safetensors.torch import load_file

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
NANO = json.loads((ROOT / "workflows" / "api" / "flux2_lora_nano.json").read_text())
TRAINER = "5"
HISTORY = 2000  # blocks of small objects that ComfyUI may keep of each graph: its history has about 700


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, because it is killed; with a node that makes a model fail."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "custom_nodes").mkdir()
    (folder / "custom_nodes" / "probe_node.py").symlink_to(ROOT / "tests" / "processes" / "probe_node.py")
    with ComfyServer(folder, WITHOUT_API_NODES) as running:
        yield running


def graph(name, steps=24, every=4, **trainer):
    """Load, cache, train on a MODEL that can be made to fail, with a checkpoint every few steps."""
    prompt = json.loads(json.dumps({k: v for k, v in NANO.items() if int(k) <= 5}))
    del prompt["3"]["inputs"]["validation"], prompt[TRAINER]["inputs"]["options.option0"]  # whose node is left out
    prompt["2"]["inputs"].update(resolution=64, class_word="")
    prompt["p"] = {"class_type": "ProbeModel", "inputs": {"model": ["1", 0]}}
    due = {"every_steps": every, "every_minutes": 0.0, "every_epochs": 0}
    prompt["c"] = {"class_type": "Flux2Checkpoints", "inputs": {**due, "keep": 2, "keep_best": True, "patience": 0}}
    prompt[TRAINER]["inputs"].update(
        {"steps": steps, "rank": 2, "validation_items": 0, "preservation": 0.0, "name": name, "model": ["p", 0],
         "checkpoints": ["c", 0], "seed": 3} | trainer)  # fmt: skip
    return prompt


def given_back(server, patience=5.0):
    """Whether nothing of a run is left in the server: its thread may hold the last of it a moment longer."""
    until = time.monotonic() + patience
    while True:
        left = server.get("/probe")["objects"]
        if not (left["Trainer"] or left["Adapters"] or left["AdamW"]):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


class At:
    """Does something when the trainer's bar has reached a step, once; keeps texts and when it ended."""

    def __init__(self, step, act):
        self.step, self.act, self.texts, self.reached, self.values = step, act, [], 0.0, []

    def __call__(self, kind, data):
        if kind == "text" and data["node"] == TRAINER:
            self.texts.append(data["text"])
        if kind != "progress" or data["node"] != TRAINER:
            return
        self.values.append(data["value"])
        if not self.reached and data["value"] >= self.step:
            self.reached = time.monotonic()
            self.act()


def until_idle(server):
    """A failure is told while its exception is still held."""
    deadline = time.monotonic() + 30
    while server.get("/queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.05)


def lora(server, name):
    return load_file(server.folder / "models" / "loras" / f"{name}.safetensors")


def run_folder(server, name):
    return server.folder / "output" / "flux2_train" / name


@pytest.mark.long
def test_killed_cancelled_and_broken_the_lora_is_the_one_of_a_run_that_was_not(server):
    server.run(graph("straight"))
    cut, fail = graph("cut"), server.folder / "output" / "fail"

    killed = At(6, lambda: server.process.kill())
    with pytest.raises((ServerError, aiohttp.ClientError), match="closed|"):
        server.run(cut, killed)
    assert server.process.wait(30) == -9
    server.start()

    cancelled = At(10, lambda: threading.Thread(target=server.post, args=("/interrupt", {})).start())
    with pytest.raises(ServerError, match="Flux2LoraTrainer: interrupted"):
        server.run(cut, cancelled)
    seconds = time.monotonic() - cancelled.reached
    until_idle(server)
    assert given_back(server), "a cancelled run gives its memory back"

    with pytest.raises(ServerError, match="another pack failed"):
        server.run(cut, At(14, lambda: fail.write_text("another pack failed")))

    with pytest.raises(ServerError, match=r"ran out of memory in step \d+; step \d+ is saved, and queueing again"):
        server.run(cut, At(18, lambda: fail.write_text("memory")))
    fail.unlink()

    last = At(24, lambda: None)
    server.run(cut, last)
    straight, ours = lora(server, "straight"), lora(server, "cut")
    assert straight.keys() == ours.keys() and all(torch.equal(straight[k], ours[k]) for k in straight)

    about = json.loads((run_folder(server, "cut") / "run.json").read_text())
    taken_up = [each["step"] for each in about["resumed"]]
    assert about["status"] == "finished" and len(taken_up) == 4
    assert taken_up[0] == 4 and 10 <= taken_up[1] < 14 <= taken_up[2] < 18 <= taken_up[3] < 24
    assert any(f"goes on after step {taken_up[3]} of 24 (cut)" in text for text in last.texts)
    stopped = sorted(p.name for p in (server.folder / "models" / "loras").glob("cut_step*"))
    assert not stopped  # Cancel, the other pack and no memory each saved one; the finished run removes them
    assert any(text.startswith("Stopped after step") and "Run goes on from here." in text for text in cancelled.texts)
    assert "cut: step 24/24" in server.log.read_text() and "cut: goes on after step" in server.log.read_text()
    again = At(0, lambda: None)
    server.run(graph("straight"), again)  # trained before the server was killed, so that ComfyUI's cache is gone
    assert any("straight is trained already" in text for text in again.texts) and set(again.values) <= {24}
    assert not [text for text in again.texts if "s/step" in text] and not run_folder(server, "straight_2").exists()
    print(f"resumed after {taken_up}, bit-identical; from Cancel to the end, all saved: {seconds:.2f} s")


def ask(server, body, kind="application/json", **headers):
    """(status, text) of a POST to the route that stops a run."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/flux2_train/stop", body, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.long
def test_stop_and_keep_ends_normally_and_the_graph_goes_on(server):
    prompt = graph("kept", steps=1000)  # ComfyUI tells of progress after each half percent
    prompt["n"] = {"class_type": "PreviewAny", "inputs": {"source": [TRAINER, 2]}}
    asked = []
    history = server.run(prompt, At(3, lambda: asked.append(ask(server, '{"run": "kept"}'))))
    assert asked == [(200, "{}")]
    assert history["status"]["status_str"] == "success" and history["outputs"]["n"]
    about = json.loads((run_folder(server, "kept") / "run.json").read_text())
    assert about["status"] == "finished" and 3 <= about["step"] == about["total"] < 1000
    assert about["lora"] == "kept.safetensors" and lora(server, "kept")
    again = At(0, lambda: None)
    server.run(prompt, again)
    assert not again.values, "an unchanged finished graph is answered from ComfyUI's cache"


@pytest.mark.long
@pytest.mark.parametrize("body, headers, status, words", [
    ('{"run": "straight"}', {}, 400, "No run straight is being trained"),
    ('{"run": "../../models"}', {}, 400, "is no run's name"), ('{"run": ".."}', {}, 400, "is no run's name"),
    ('{"run": 3}', {}, 400, "is no run's name"), ("[]", {}, 400, "not"), ("{", {}, 400, "not"),
    ('{"run": "' + "a" * 5000 + '"}', {}, 400, "at most 4096 bytes"),
    ('{"run": "kept"}', {"kind": "text/plain"}, 400, "application/json"),
    ('{"run": "kept"}', {"Origin": "http://elsewhere.example"}, 403, ""),
    ('{"run": "kept"}', {"Sec-Fetch-Site": "cross-site"}, 403, ""),
])  # fmt: skip
def test_nobody_else_stops_a_run(server, body, headers, status, words):
    answer = ask(server, body, **headers)
    assert answer[0] == status and words in answer[1]


@pytest.mark.long
def test_many_short_runs_leave_nothing_behind(server, full_size):
    """A run's own state is 3 x 4 bytes per adapter parameter: if a tenth of one later run's were kept, or a file,
    thread or model, it would show. RSS is no measure of a few runs: it has what glibc keeps for the next request, which
    is tens of MB more in one run and less in another."""
    count, rank = 30 if full_size else 6, 64
    seen = []
    for number in range(count):
        server.run(graph("soak", steps=1, every=1, rank=rank, seed=100 + number))
        seen.append(server.get("/probe"))
    print(*(f"{name} {[each[name] for each in seen]}\n" for name in seen[0]))
    early, late = seen[: count // 2], seen[count // 2 :]
    for name in ("files", "threads", "models", "objects", "mapped"):
        assert late[-1][name] == early[-1][name], name
    state = 12 * sum(t.numel() for t in lora(server, "soak").values())
    grown = {name: late[-1][name] - early[-1][name] for name in ("allocated", "blocks")}
    assert grown["allocated"] < state / 10 and grown["blocks"] < HISTORY * len(late), f"of {state} bytes: {grown}"
    if full_size:
        rss = [min(each["rss"] for each in half) for half in (early, late)]
        assert rss[1] - rss[0] < len(late) * state / 2, f"half of every run's {state} bytes"
