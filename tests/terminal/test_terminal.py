"""The commands as real processes: the same job gives the same LoRA, Ctrl-C keeps what was learned."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import folder_paths
import numpy
import pytest
import torch
from comfy_api.latest import io
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support import options_for

from flux2_train.host.sampling import sample as sampling
from flux2_train.terminal.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base(comfy_folders):
    """ComfyUI's options for another process with this one's folders."""
    return options_for(comfy_folders)


def command(*arguments):
    return [sys.executable, "-m", "flux2_train", *map(str, arguments)]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


def node(pack, id):
    found = next(n for n in pack.NODES if n.GET_SCHEMA().node_id == id)
    return found.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}}).execute


@pytest.fixture(scope="module")
def trained(pack, nano, comfy_folders):
    """The run folder and the LoRA file of a graph: three robots, two steps."""
    few = comfy_folders / "input" / "few robots"
    one = comfy_folders / "input" / "one robot"
    few.mkdir(), one.mkdir()
    for number, path in enumerate(sorted((ROOT / "datasets" / "robot").iterdir())[:8]):
        shutil.copy(path, few if number < 6 else one)
    with torch.inference_mode():
        dataset, others = (
            node(pack, "Flux2DatasetFolder")(folder=folder, resolution=64, trigger="zbot", class_word="toy").args[0]
            for folder in ("few robots", "one robot")
        )
        validation = node(pack, "Flux2Validation")(
            nano.vae, "zbot at sea", nano.model, negative="blue", width=64, height=48, every=0, at_start=False, seed=5,
            steps=1, strength=2.0, references={"reference0": torch.rand(1, 32, 48, 3).mul(255).round() / 255},
        ).args[0]  # fmt: skip
        (embeds, held_out), (latents, out) = (
            [node(pack, f"Flux2Cache{kind}")(encoder, each, **more).args[0] for each in (dataset, others)]
            for kind, encoder, more in (("Embeds", nano.clip, {"validation": validation}), ("Latents", nano.vae, {}))
        )
        loss = node(pack, "Flux2ValidationLoss")(held_out, out, share=0.0, seed=0, every=0, per_image=False,
                                                 per_image_every=0).args[0]  # fmt: skip
        name = node(pack, "Flux2LoraTrainer")(
            nano.model, embeds, latents, name="of the graph", steps=2, rank=2, learning_rate=2e-3, validation_items=0,
            preservation=0.5, seed=3, validation=validation, validation_loss=loss,
        ).args[2]  # fmt: skip
    return comfy_folders / "output" / "flux2_train" / Path(name).stem, comfy_folders / "loras" / name


@pytest.mark.long
def test_a_graphs_job_gives_the_same_lora_in_a_terminal(trained, base, tmp_path):
    folder, lora = trained
    done = run("train", folder / "job.json", "--set", f"output.loras={tmp_path}", "--set", f"output.runs={tmp_path}",
               "--comfyui", base)  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = Path(done.stdout.strip())
    assert ours == tmp_path / "of the graph.safetensors"
    graph, terminal = load_file(lora), load_file(ours)
    assert graph.keys() == terminal.keys() and all(torch.equal(graph[k], terminal[k]) for k in graph)
    with safe_open(lora, "pt") as a, safe_open(ours, "pt") as b:
        differing = {k for k in a.metadata() if a.metadata()[k] != b.metadata()[k]}
    assert differing <= {"modelspec.date"}
    again = json.loads((tmp_path / "of the graph" / "job.json").read_text())
    first = json.loads((folder / "job.json").read_text())
    for job in (again, first):  # each run keeps copies of its references and says where its files shall go
        job.pop("output")
        (prompt,) = job["previews"]["prompts"]
        prompt["references"] = [Path(path).name for path in prompt["references"]]
    assert again == first
    assert "training: 100%" in done.stderr
    assert first["unknown"] == [] and Path(first["held_out"][0]["folder"]).name == "one robot"
    assert first["previews"]["model"]["flavour"] == "nano" and first["previews"]["prompts"][0]["references"]
    for name in ("base_1.png", "step_000002_1.png"):  # second model, reference, negative, strength and all
        with Image.open(folder / "previews" / name) as a, Image.open(tmp_path / folder.name / "previews" / name) as b:
            assert numpy.array_equal(numpy.asarray(a), numpy.asarray(b))
    assert re.search(r"held-out loss \d", done.stderr) and "1 preview painted after 2 steps" in done.stderr


@pytest.mark.long
def test_ctrl_c_saves_what_was_learned(trained, base, tmp_path):
    arguments = ["train", trained[0] / "job.json", "--comfyui", base]
    for setting in (f"output.loras={tmp_path}", f"output.runs={tmp_path}", "steps=100000", "preservation=0"):
        arguments += ["--set", setting]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while "training:" not in (tmp_path / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "log").read_text()
    finally:
        process.kill()
    (saved,) = tmp_path.glob("of the graph_step*.safetensors")
    steps = len((tmp_path / "of the graph" / "loss.csv").read_text().splitlines()) - 1
    assert saved.stem == f"of the graph_step{steps}" and steps >= 1
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.long
def test_a_sample_is_the_nodes_with_everything_asked_for_in_its_metadata(pack, trained, nano, typed, tmp_path):
    reference = ROOT / "datasets" / "robot" / sorted(os.listdir(ROOT / "datasets" / "robot"))[0]
    done = typed("sample", "zbot at night", "--flavour", "nano", "--size", "64x48", "--steps", "2", "--seed", "7",
                 "--reference", reference, "--lora", trained[1].name, "strength=0.5",
                 "exclude=single_blocks.*", "-o", tmp_path / "a.png")  # fmt: skip
    assert done.returncode == 0, done.stderr
    from flux2_train.data.images import load_rgb, to_tensor

    with torch.inference_mode():
        model = node(pack, "Flux2LoraApply")(nano.model, 0.5, None, trained[1].name, exclude="single_blocks.*").args[0]
        expected = sampling.sample(model, nano.clip, nano.vae, "zbot at night", steps=2, width=64, height=48, seed=7,
                                   references=[to_tensor(load_rgb(reference))])  # fmt: skip
    with Image.open(tmp_path / "a.png") as image:
        asked = json.loads(image.text["flux2_train"])
        assert numpy.array_equal(numpy.asarray(image), (expected[0].clamp(0, 1) * 255).round().byte().numpy())
    assert (asked["prompt"], asked["seed"], asked["steps"], asked["width"]) == ("zbot at night", 7, 2, 64)
    assert asked["loras"] == [{"file": trained[1].name, "strength": 0.5, "exclude": "single_blocks.*"}]


@pytest.mark.parametrize("arguments, words", [
    (["paint"], "invalid choice: 'paint'"), (["train"], "CONFIG"), (["train", "nothing.json"], "There is no file"),
    (["sample", "x", "--flavour", "klein-5b"], "klein-5b"), (["sample", "x", "--size", "64"], "no size like"),
    (["sample", "x", "--lora", "a", "a prompt"], "put --lora behind the rest"),
    (["sample", "x", "--lora", "a", "strength=high"], "strength is 'high'"),
])  # fmt: skip
def test_a_wrong_command_line_is_told_before_anything_is_loaded(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_a_failure_is_one_line_and_1(trained, base):
    done = run("train", trained[0] / "job.json", "--set", "dataset.folder=nowhere", "--comfyui", base)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: There is no folder")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["train", "sample", "flavours", "cache latents", "cache embeds", "merge", "convert"])
def test_every_command_explains_itself(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.long
def test_caches_are_filled_ahead_and_found_again(trained, typed, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))  # where nothing is cached yet
    for part, what in (("latents", "images"), ("embeds", "captions")):
        first, second = (typed("cache", part, trained[0] / "job.json").stderr for _ in range(2))
        count = int(re.search(rf"{what}: (\d+) encoded, 0 found", first)[1])
        assert count >= 3 and f"{what}: 0 encoded, {count} found" in second


@pytest.mark.long
def test_a_lora_is_converted_as_the_function_does(trained, typed, tmp_path):
    from flux2_train.host.lora.merge import convert

    done = typed("convert", trained[1].stem, tmp_path / "a.safetensors", "--format", "kohya", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    said = convert(trained[1], tmp_path / "b.safetensors", "kohya", "fp32")
    assert done.stdout.strip() == said.replace("b.safetensors", "a.safetensors")
    assert_same_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.long
def test_a_checkpoint_becomes_the_lora_of_its_step(trained, typed, tmp_path):
    """The last checkpoint of a run holds the LoRA that the run has saved."""
    from safetensors.torch import load_file

    precision = "--precision", "bf16"
    done = typed("convert", f"{trained[0]}:last", tmp_path / "a.safetensors", *precision)
    assert done.returncode == 0, done.stderr
    made, saved = load_file(tmp_path / "a.safetensors"), load_file(trained[1])
    assert made.keys() == saved.keys() and all((made[k] == saved[k]).all() for k in saved)
    done = typed("convert", f"{trained[0]}:999", tmp_path / "b.safetensors")
    assert done.returncode == 2 and "has no checkpoint 999; there are " in done.stderr


@pytest.mark.long
def test_loras_are_merged_as_the_function_does(trained, typed, tmp_path, nano):
    from flux2_train.host import identify
    from flux2_train.host.lora.merge import merge

    model = identify.path_of(nano.model)
    done = typed("merge", model.name, tmp_path / "a.safetensors", "--lora", trained[1].name, "strength=0.5", "--lora",
                 trained[1], "--precision", "fp32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = str(merge(model, [(trained[1], 0.5), (trained[1], 1.0)], tmp_path / "b.safetensors", "fp32"))
    assert done.stdout.strip() == said.replace("b.safetensors", "a.safetensors")
    assert_same_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def assert_same_files(ours, expected):
    a, b = load_file(ours), load_file(expected)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
