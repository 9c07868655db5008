"""The whole path through a real ComfyUI server process, as a person or a script would use it."""

import json
import threading
import time
from pathlib import Path
from urllib.parse import quote

import demo
import numpy as np
import pytest
from comfy_server import ServerError
from PIL import Image
from safetensors.torch import load_file

from bench.nano.world.concepts import character_in, character_score
from bench.nano.world.scenes import Object, Spec
from flux2_train.nano import TRANSFORMER

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "workflows" / "api" / "flux2_lora_nano.json"
TRAINER = json.loads(NANO.read_text())["5"]["inputs"]
DEMO = demo.with_pictures(json.loads(NANO.read_text()))
NAME = TRAINER["name"]
SHORTER = 2  # times fewer steps without --all
SHOWN = Spec("one", (Object("bear", "brown", pose="waving"),), "right", "day", "snow")  # what Validation asks for


def texts_of(events, node="5"):
    """What the node said, without the warning that other programs slow the run down, which is true at times."""
    said = [data["text"].splitlines() for data in events.of("text") if data["node"] == node]
    said = ["\n".join(line for line in lines if not line.startswith("warning: Steps take ")) for lines in said]
    return [text for text in said if text]


class Events:
    """Everything the server told while a graph ran."""

    def __init__(self):
        self.all = []

    def __call__(self, kind, data):
        self.all.append((kind, data))

    def of(self, kind):
        return [data for k, data in self.all if k == kind]


def small(steps=2, size=64, **trainer):
    """A short graph: load, cache, train; numbered like the shipped one."""
    prompt = {k: v for k, v in json.loads(NANO.read_text()).items() if int(k) <= 5}
    del prompt["3"]["inputs"]["validation"], prompt["5"]["inputs"]["options.option0"]  # whose node is left out
    prompt["2"]["inputs"].update(resolution=size, class_word="")
    prompt["5"]["inputs"].update(steps=steps, rank=2, validation_items=0, preservation=0.0, name="small", **trainer)
    return prompt


def picture(server, history, node):
    shown = history["outputs"][node]
    entry = shown.get("images", shown.get("flux2_images"))[0]
    return np.asarray(Image.open(server.folder / entry["type"] / entry["subfolder"] / entry["filename"]))


@pytest.fixture(scope="module")
def steps(full_size):
    """Steps of the shipped workflow, or fewer of them without --all."""
    return TRAINER["steps"] if full_size else TRAINER["steps"] // SHORTER


@pytest.fixture(scope="module")
def shipped(server, steps):
    """The shipped nano workflow with the pictures of scripts/demo, queued. (history, events)"""
    events = Events()
    prompt = json.loads(json.dumps(DEMO))
    prompt["5"]["inputs"]["steps"], prompt["6"]["inputs"]["every"] = steps, steps // 2
    history = server.run(prompt, events, timeout=900)
    return history, events


@pytest.mark.long
def test_the_shipped_workflow_trains_saves_applies_and_samples(server, shipped, steps):
    history, _ = shipped
    assert history["status"]["status_str"] == "success"
    assert set(history["outputs"]) >= {"2", "7", "base 1", "lora 1", "base 2", "lora 2"}
    lora = load_file(server.folder / "models" / "loras" / f"{NAME}.safetensors")
    assert len(lora) == 56
    run = server.folder / "output" / "flux2_train" / NAME
    report = json.loads((run / "report.json").read_text())
    assert report["flavour"] == "nano" and report["steps"] == steps
    first, last = report["validation_loss"].values()
    assert last < 0.75 * first
    for base, with_lora in (("base 1", "lora 1"), ("base 2", "lora 2")):
        before, after = (picture(server, history, node).astype(float) for node in (base, with_lora))
        assert before.shape == (128, 128, 3)
        assert np.abs(before - after).mean() > 2


@pytest.mark.long
def test_a_person_sees_the_character_and_only_with_its_trigger(server, shipped, full_size):
    """Scored by the colours of its four traits where they belong: 1 is a real render, 0 the base."""
    history, _ = shipped
    example = character_in(SHOWN)
    assert [example.caption, character_in(SHOWN, trigger=False).caption] == DEMO["6"]["inputs"]["prompts"].splitlines()

    def score(node):
        return character_score(example, picture(server, history, node).astype(np.float32) / 255)

    base, lora, base_without, lora_without = (score(node) for node in ("base 1", "lora 1", "base 2", "lora 2"))
    assert lora - base >= (0.4 if full_size else 0.25)  # with all steps, or with half of them
    assert lora_without - base_without < 0.2


@pytest.mark.long
def test_the_demo_lays_out_what_came_of_it(server, shipped, steps, tmp_path):
    history, events = shipped
    printer = demo.Printer(DEMO)
    for kind, data in events.all:
        printer(kind, data)
    assert all(path.stat().st_size for path in demo.write(tmp_path, server, DEMO, history, printer))
    assert len(load_file(tmp_path / "lora.safetensors")) == 56
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tensors_that_fit"] == "all 56" and report["steps"] == steps


@pytest.mark.long
def test_progress_is_told_while_it_trains(server, shipped, steps):
    _, events = shipped
    bar = [d for d in events.of("progress") if d["node"] == "5"]
    assert bar[-1]["value"] == bar[-1]["max"] == steps
    assert [d["value"] for d in bar] == sorted(d["value"] for d in bar)
    texts = texts_of(events)
    assert any("step " in t and " s/step" in t for t in texts)
    assert {f"validating, image {n} of 4" for n in range(1, 5)} <= {t.splitlines()[0] for t in texts}
    assert texts[-1].startswith(f"{NAME}.safetensors") and "validation loss" in texts[-1]
    assert [d["text"] for d in events.of("text") if d["node"] == "lora"] == [
        "trigger: vorn\nLoRA on 28 layers (all 56 tensors of the file fit), merged into the weights, strength 1"
    ]
    run = server.get(f"/flux2_train/run?run={NAME}")
    told = [step for line in run["lines"] if line["kind"] == "steps" for step in line["step"]]
    assert run["status"] == "finished" and told == list(range(1, steps + 1))


@pytest.mark.long
def test_the_example_paints_base_beside_lora_while_it_trains(server, shipped, steps):
    _, events = shipped
    texts = texts_of(events)
    rounds = [text.splitlines()[0] for text in texts if text.startswith("painting preview 1 of 2")]
    assert rounds == [f"painting preview 1 of 2 after {step} steps" for step in (steps // 2, steps)]
    run = server.folder / "output" / "flux2_train" / NAME
    painted = {f"step_{step:06d}_{n}.png" for step in (steps // 2, steps) for n in (1, 2)}
    assert {path.name for path in (run / "previews").iterdir()} == {"base_1.png", "base_2.png", *painted}
    base, half, end = (np.asarray(Image.open(run / "previews" / f"{name}_1.png")).astype(float)
                       for name in ("base", f"step_{steps // 2:06d}", f"step_{steps:06d}"))  # fmt: skip
    assert base.shape == (128, 128, 3)
    assert min(np.abs(base - half).mean(), np.abs(base - end).mean(), np.abs(half - end).mean()) > 0.5


def sampling_graph(*loaders, steps=2):
    """Load nano, put a LoRA on it in each way, sample each with one seed."""
    prompt = {"1": DEMO["1"]}
    for number, loader in enumerate(loaders, 1):
        sampler = json.loads(json.dumps(DEMO["paint base 1"]))
        sampler["inputs"].update(steps=steps, model=[f"l{number}", 0] if loader else ["1", 0], width=64, height=64)
        prompt[f"s{number}"] = sampler
        prompt[f"i{number}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"s{number}", 0]}}
        if loader:
            prompt[f"l{number}"] = loader
    return prompt


@pytest.mark.long
def test_stock_nodes_load_the_saved_file_to_the_same_picture(server, shipped):
    name = f"{NAME}.safetensors"
    graph = sampling_graph(
        None,
        {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": 1.0}},
        {
            "class_type": "Flux2LoraApply",
            "inputs": {"model": ["1", 0], "strength": 1.0, "file": name, "mode": "merged"},
        },
        {
            "class_type": "Flux2LoraApply",
            "inputs": {"model": ["1", 0], "strength": 1.0, "file": name, "mode": "bypass"},
        },
    )
    history = server.run(graph)
    base, stock, merged, bypass = (picture(server, history, f"i{n}").astype(int) for n in range(1, 5))
    assert np.array_equal(stock, merged)
    assert np.abs(stock - bypass).max() <= 2  # one rounding step of 8-bit pixels either way
    assert np.abs(stock - base).mean() > 1
    assert "lora key not loaded" not in server.log.read_text()


@pytest.mark.long
def test_stock_nodes_take_the_trainers_outputs(server):
    graph = small(steps=3)
    graph |= {
        "20": {"class_type": "LoraModelLoader", "inputs": {"model": ["1", 0], "lora": ["5", 0], "strength_model": 1.0,
                                                           "bypass": False}},
        "21": {"class_type": "LossGraphNode", "inputs": {"loss": ["5", 1], "filename_prefix": "loss"}},
        "22": {"class_type": "SaveLoRA", "inputs": {"lora": ["5", 0], "prefix": "loras/stock"}},
        "23": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
        "24": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "zbot"}},
        "25": {"class_type": "EmptyFlux2LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "26": {"class_type": "KSampler", "inputs": {
            "model": ["20", 0], "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
            "positive": ["24", 0], "negative": ["24", 0], "latent_image": ["25", 0], "denoise": 1.0}},
        "27": {"class_type": "VAEDecode", "inputs": {"samples": ["26", 0], "vae": ["1", 2]}},
        "28": {"class_type": "PreviewImage", "inputs": {"images": ["27", 0]}},
    }  # fmt: skip
    history = server.run(graph)
    assert picture(server, history, "28").shape == (64, 64, 3)
    saved = list((server.folder / "output" / "loras").glob("stock*.safetensors"))
    assert len(load_file(saved[0])) == 56


@pytest.mark.long
def test_stock_loaders_can_stand_in_for_load_flux2(server):
    graph = small(steps=1)
    graph["30"] = {"class_type": "UNETLoader", "inputs": {"unet_name": TRANSFORMER,
                                                          "weight_dtype": "default"}}  # fmt: skip
    graph["5"]["inputs"]["model"] = ["30", 0]
    assert server.run(graph)["status"]["status_str"] == "success"


@pytest.mark.long
def test_references_reach_the_model(server):
    graph = sampling_graph(None, None)
    graph["r"] = {"class_type": "EmptyImage", "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": 255}}
    graph["s2"]["inputs"].update({"references.reference0": ["r", 0], "references.reference1": ["r", 0]})
    history = server.run(graph)
    assert not np.array_equal(picture(server, history, "i1"), picture(server, history, "i2"))


def test_an_unchanged_graph_is_not_trained_again(server):
    graph = small(steps=2, seed=77)
    server.run(graph)
    before = len(list((server.folder / "models" / "loras").iterdir()))
    events = Events()
    server.run(graph, events)
    assert not events.of("progress")
    assert len(list((server.folder / "models" / "loras").iterdir())) == before


@pytest.mark.long
def test_cancel_saves_what_was_learned_and_the_next_run_works(server):
    graph = small(steps=1000, seed=5)  # ComfyUI tells of progress after each half percent
    graph["5"]["inputs"]["name"] = "cancelled"

    def cancel(kind, data):
        if kind == "progress" and data["node"] == "5" and data["value"] >= 2:
            threading.Thread(target=server.post, args=("/interrupt", {})).start()

    with pytest.raises(ServerError, match="Flux2LoraTrainer: interrupted"):
        server.run(graph, cancel)
    deadline = time.monotonic() + 20
    while not list((server.folder / "models" / "loras").glob("cancelled_step*.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert server.run(small(steps=1, seed=6))["status"]["status_str"] == "success"


def test_a_data_set_alone_is_shown_with_its_contact_sheet(server):
    events = Events()
    history = server.run({"2": small()["2"]}, events)
    sheet = picture(server, history, "2")
    assert ((sheet == (221, 34, 34)).all(-1).sum() > 16 * 4 * 100) and sheet.shape[1] > 4 * 192  # 16 boxes
    (said,) = history["outputs"]["2"]["flux2_text"]
    assert "16 images x 1 from character" in said and "64x64: 16" in said


def test_the_template_browser_lists_our_workflows_with_pictures(server):
    from comfy_server import PACK

    listed = server.get("/workflow_templates")[PACK]
    assert sorted(listed) == sorted(p.stem for p in NANO.parents[1].glob("*.json"))
    for name in map(quote, listed):
        graph = server.get(f"/api/workflow_templates/{PACK}/{name}.json")
        assert graph["nodes"] and graph["version"] == 0.4
        assert server.get_bytes(f"/api/workflow_templates/{PACK}/{name}.jpg")[:2] == b"\xff\xd8"


def test_help_pages_are_served(server):
    from comfy_server import PACK

    assert b"LoRA Trainer" in server.get_bytes(f"/extensions/{PACK}/docs/Flux2LoraTrainer.md")


@pytest.mark.long
def test_previews_are_shown_while_it_trains_and_kept_beside_the_base(server):
    """From a prompt library in the input folder, into the run's folder, onto the node; the LoRA into a comparison."""
    library = {"portrait": "zbot portrait", "weak": {"prompt": "zbot at sea", "adapter_strength": 0.5}}
    (server.folder / "input" / "library.json").write_text(json.dumps(library))
    graph = small(steps=2, seed=9, validation=["v", 0], validation_loss=["h", 0])
    graph["5"]["inputs"]["name"] = "previewed"
    size = {"width": 48, "height": 64, "seed": 1, "steps": 1}
    graph["v"] = {
        "class_type": "Flux2Validation",
        "inputs": {"vae": ["1", 2], "prompts": "", "prompt_file": "library.json", "every": 1, "at_start": True, **size},
    }
    graph["h"] = {
        "class_type": "Flux2ValidationLoss",
        "inputs": {"share": 0.1, "seed": 0, "every": 0, "per_image": False, "per_image_every": 0},
    }
    graph["3"]["inputs"]["validation"] = ["v", 0]
    graph["c"] = {"class_type": "Flux2CompareLoras", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "lora": ["5", 0], "files": "", "strengths": "0.5, 1",
        "prompt": "zbot", "index": 0, "picture_size": 0, **size}}  # fmt: skip
    graph["i"] = {"class_type": "PreviewImage", "inputs": {"images": ["c", 0]}}  # fmt: skip
    events = Events()
    history = server.run(graph, events)
    run = server.folder / "output" / "flux2_train" / "previewed"
    names = {f"step_{step:06d}_{n}.png" for step in (0, 1, 2) for n in (1, 2)} | {"base_1.png", "base_2.png"}
    assert {p.name for p in (run / "previews").iterdir()} == names
    assert (run / "previews.png").is_file()
    job = json.loads((run / "job.json").read_text())
    assert [p["strength"] for p in job["previews"]["prompts"]] == [None, 0.5] and job["unknown"] == []
    assert job["training"]["validation_loss"]["share"] == 0.1
    texts = texts_of(events)
    assert any("painting preview 2 of 2 after 1 step" in t for t in texts) and "held-out loss" in texts[-1]
    assert picture(server, history, "i").shape[1] > 3 * 48  # base and two strengths
