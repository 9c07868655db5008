"""Validation: every widget reaches what is painted, prompts come from lines and libraries, references find theirs."""

import importlib
import json

import pytest
import torch

COMMON = {
    "vae": None, "prompts": "zbot at sea\na toy", "width": 64, "height": 48, "every": 9, "at_start": False, "seed": 5,
}  # fmt: skip
LIBRARY = {"portrait": "zbot portrait", "weak": {"prompt": "zbot at sea", "adapter_strength": 0.5}}
EVERY = "all for every prompt"


@pytest.fixture(scope="module")
def node(pack, nano):
    (found,) = (n for n in pack.NODES if n.GET_SCHEMA().node_id == "Flux2Validation")
    return lambda **inputs: found.execute(**{**COMMON, "vae": nano.vae, **inputs}).args[0].sections["validation"]


@pytest.fixture(scope="module")
def fingerprint(pack):
    (found,) = (n for n in pack.NODES if n.GET_SCHEMA().node_id == "Flux2Validation")
    return found.fingerprint_inputs


@pytest.mark.parametrize("widget, value, field, expected", [
    ("negative", "blurry", "negative", "blurry"), ("width", 96, "width", 96), ("height", 80, "height", 80),
    ("steps", 7, "steps", 7), ("guidance", 3.5, "guidance", 3.5), ("sampler", "heun", "sampler", "heun"),
    ("seed", 8, "seed", 8), ("seeds", "walking", "seeds", "walking"), ("strength", 0.5, "strength", 0.5),
    ("every", 3, "every", 3), ("at_start", True, "at_start", True),
    ("resize_references", False, "resize_references", False), ("copies", False, "copies", False),
])  # fmt: skip
def test_every_widget_reaches_its_setting(node, widget, value, field, expected):
    assert getattr(node(**{widget: value}).config, field) == expected != getattr(node().config, field)


def test_no_widget_is_left_out_of_this_test(pack):
    (found,) = (n for n in pack.NODES if n.GET_SCHEMA().node_id == "Flux2Validation")
    (mark,) = test_every_widget_reaches_its_setting.pytestmark
    others = {"vae", "model", "prompts", "prompt_file", "references", "references_for"}
    tested = {row[0] for row in mark.args[1]} | others
    assert {entry.id for entry in found.GET_SCHEMA().inputs} == tested


def test_the_second_model_and_the_vae_are_handed_on(node, nano):
    assert node().model is None and node().vae is nano.vae
    assert node(model=nano.model).model is nano.model


def test_a_prompt_library_stands_behind_the_lines(node, fingerprint, comfy_folders):
    path = comfy_folders / "input" / "library.json"
    path.write_text(json.dumps(LIBRARY))
    before, given = fingerprint(prompt_file="library.json"), node(prompt_file="library.json")
    prompts = given.config.prompts
    assert [p.text for p in prompts] == ["zbot at sea", "a toy", "zbot portrait", "zbot at sea"]
    assert [p.label for p in prompts] == ["zbot at sea", "a toy", "portrait", "weak"]
    strengths = [node(prompt_file="library.json", strength=0.8).config.strength_of(p) for p in prompts]
    assert strengths == [0.8, 0.8, 0.8, 0.5]
    path.write_text(json.dumps({**LIBRARY, "third": "one more"}))
    assert fingerprint(prompt_file="library.json") != before  # or ComfyUI would not read it again
    assert len(node(prompt_file="library.json").config.prompts) == 5


def test_references_belong_to_their_own_prompt_or_to_all(node):
    first, second = (torch.full((n, 32, 32, 3), 0.5) for n in (1, 2))
    wired = {"reference0": first, "reference1": second, "reference2": None}
    assert node().references == ()
    each = node(references=wired).references
    assert [[image is first, image is second] for images in each for image in images] == [[True, False], [False, True]]
    assert [len(images) for images in node(references={"reference1": second}).references] == [0, 1]
    every = node(references=wired, references_for=EVERY).references
    assert len(every) == 2 and all(a is first and b is second for a, b in every)


def test_a_reference_without_a_prompt_is_named(node, pack):
    error = importlib.import_module(f"{pack.__name__}.flux2_train.errors").UserError
    image = torch.zeros(1, 32, 32, 3)
    with pytest.raises(error, match="reference2 is wired but the prompts here are 2"):
        node(references={"reference2": image})
    assert len(node(references={"reference2": image}, references_for=EVERY).references) == 2
    with pytest.raises(error, match="has 0 prompts"):
        node(prompts="\n  \n")
