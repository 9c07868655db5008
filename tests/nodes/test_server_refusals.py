"""What the server refuses before anything runs, or before a model is loaded: one sentence, on the right node."""

import json

import pytest
from comfy_server import ServerError
from test_server import NANO, Events, small

pytestmark = pytest.mark.server
CONTINUE = NANO.with_name("flux2_lora_continue.json")  # starts from a LoRA, which is looked for first
OTHERS = sorted(p for p in NANO.parent.glob("*.json") if p not in (NANO, CONTINUE))


@pytest.mark.parametrize("workflow", OTHERS, ids=lambda p: p.stem)
def test_workflows_without_their_models_are_refused_with_the_way_to_get_them(server, workflow):
    with pytest.raises(ServerError) as error:
        server.run(json.loads(workflow.read_text()))
    message = str(error.value)
    for part in (
        "is missing. Download https://huggingface.co/",
        "models/diffusion_models",
        '"class_type": "Flux2Load"',
    ):
        assert part in message
    assert "Traceback" not in message


def test_a_lora_to_go_on_from_that_is_not_there_is_named(server):
    with pytest.raises(ServerError, match="No LoRA file is called 'zbot_klein-4b.safetensors'"):
        server.run(json.loads(CONTINUE.read_text()))


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(server):
    graph, events = small(), Events()
    graph["2"]["inputs"]["folder"] = "nowhere"
    with pytest.raises(ServerError, match=r"There is no folder .*nowhere\. Name a folder inside .*Flux2DatasetFolder"):
        server.run(graph, events)
    assert not events.of("executing")


def test_bad_files_are_refused_before_any_model_is_loaded(server):
    (server.folder / "input" / "bad").mkdir(parents=True, exist_ok=True)
    (server.folder / "input" / "bad" / "broken.png").write_bytes(b"x")
    graph, events = small(), Events()
    graph["2"]["inputs"].update(folder="bad", bad_files="refuse", prompt="x")
    with pytest.raises(ServerError, match="Flux2DatasetFolder: .*1 file cannot be used: broken.png"):
        server.run(graph, events)
    assert {d["node"] for d in events.of("executing") if d["node"]} == {"2"}


def test_validation_that_cannot_be_done_is_one_sentence(server):
    graph = small(validation=["v", 0])
    graph["v"] = {"class_type": "Flux2Validation", "inputs": {
        "vae": ["1", 2], "prompts": "zbot", "width": 64, "height": 64, "every": 1, "at_start": True,
        "seed": 1}}  # fmt: skip
    unwired = "Validation is wired into LoRA Trainer but not into Cache Embeds.*Flux2LoraTrainer"
    with pytest.raises(ServerError, match=unwired):
        server.run(graph)
    graph["v"]["inputs"]["prompt_file"] = "../secret.txt"
    with pytest.raises(ServerError, match=r"'\.\./secret\.txt' is no file name.*Flux2Validation"):
        server.run(graph)
