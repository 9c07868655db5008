"""Option nodes: untouched they change nothing, and every widget reaches its setting."""

import json
import sys
from pathlib import Path

import pytest

from flux2_train.settings.recipes import RECIPES
from flux2_train.settings.training import TrainingSettings

# node, widget, what it is set to, section; as a table, since there is nothing else to say about them
TABLE = """
TrainingObjective loss huber loss
TrainingObjective huber_width 0.5 loss
TrainingObjective huber_schedule snr loss
TrainingObjective wavelet_detail 4.0 loss
TrainingObjective loss_min 0.5 loss
TrainingObjective loss_max 0.5 loss
TrainingObjective guidance 4.0 guidance
TrainingObjective guidance_max 5.0 guidance
TrainingObjective contrastive_guidance 3.0 guidance
TrainingObjective contrastive_schedule sigma guidance
TrainingObjective contrastive_project True guidance
TrainingObjective true_cfg 4.0 guidance
TrainingObjective references index_timestep_zero guidance
TrainingObjective bad_losses 2 guard
TrainingObjective divergence 9.0 guard
TrainingObjective stop_on_divergence True guard
Timesteps distribution beta timesteps
Timesteps beta_alpha 3.0 timesteps
Timesteps beta_beta 3.0 timesteps
Timesteps mode_scale 0.5 timesteps
Timesteps shift constant timesteps
Timesteps shift_factor 2.0 timesteps
Timesteps shift_steps 4 timesteps
Timesteps bias low-noise timesteps
Timesteps min 0.2 timesteps
Timesteps max 0.8 timesteps
Timesteps strata 8 timesteps
Timesteps weighting bell timesteps
Timesteps sigmoid_scale 2.0 timesteps
Timesteps sigmoid_mean 0.5 timesteps
Timesteps sigmoid_std 2.0 timesteps
Optimizer optimizer lion optimizer
Optimizer schedule rex optimizer
Optimizer warmup 0.1 optimizer
Optimizer weight_decay 0.2 optimizer
Optimizer max_grad_norm 2.0 optimizer
Optimizer end 0.1 optimizer
Optimizer cycles 3 optimizer
Optimizer power 1.0 optimizer
Optimizer eps 0.001 optimizer
Optimizer ema_decay 0.9 ema
Optimizer ema_warmup 3 ema
Optimizer ema_export False ema
Optimizer ema_preview False ema
Preservation kind blank preservation_options
Preservation every 2 preservation_options
Preservation together True preservation_options
Preservation outside_mask 0.5 preservation_options
"""
LISTS = [
    ("Timesteps", "values", "1, 0.5", "timesteps", (1.0, 0.5)),
    ("Timesteps", "weights", "1, 2", "timesteps", (1.0, 2.0)),
    ("Optimizer", "betas", "0.9, 0.95", "optimizer", (0.9, 0.95)),
    ("Optimizer", "block_rates", "*img*=0.5", "optimizer", (("*img*", 0.5),)),
    ("Optimizer", "other", "torch.optim.Muon", "optimizer", "torch.optim.Muon"),
    (
        "Optimizer",
        "other_arguments",
        "momentum=0.9, nesterov=true, x=y",
        "optimizer",
        (("momentum", 0.9), ("nesterov", True), ("x", "y")),
    ),
]


def rows():
    for line in TABLE.split("\n"):
        if line:
            node, widget, text, section = line.split()
            try:
                value = json.loads(text.lower())
            except ValueError:
                value = text.replace("-", " ")
            yield node, widget, value, section, value
    yield from LISTS


@pytest.fixture(scope="module")
def nodes(pack):
    return {node.GET_SCHEMA().node_id.removeprefix("Flux2"): node for node in pack.NODES}


def settings(node, **changes) -> dict:
    """What the node gives with these widgets touched and no other."""
    untouched = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs}
    return node.execute(**{**untouched, **changes}).args[0].sections


@pytest.mark.parametrize("name", ["TrainingObjective", "Timesteps", "Optimizer", "Preservation"])
def test_untouched_they_change_nothing(nodes, name):
    for section, value in settings(nodes[name]).items():
        assert repr(value) == repr(getattr(TrainingSettings(), section))  # two imports of the engine: compared as text


@pytest.mark.parametrize("name, widget, sent, section, value", list(rows()))
def test_every_widget_reaches_its_setting(nodes, name, widget, sent, section, value):
    default = getattr(getattr(TrainingSettings(), section), widget)
    assert getattr(settings(nodes[name], **{widget: sent})[section], widget) == value != default


def test_no_widget_is_left_out_of_this_test(nodes):
    tested = {(name, widget) for name, widget, *_ in rows()}
    all_widgets = {(n, e.id) for n in ("TrainingObjective", "Timesteps", "Optimizer", "Preservation")
                   for e in nodes[n].GET_SCHEMA().inputs}  # fmt: skip
    assert all_widgets - tested == {("Timesteps", "preview_resolution")}


def test_the_plot_follows_the_size_it_is_drawn_for(nodes):
    node = nodes["Timesteps"]
    untouched = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs}
    small, large = (node.execute(**{**untouched, "preview_resolution": size}).args[1] for size in (128, 2048))
    assert small.shape == large.shape == (1, 400, 800, 3) and (small != large).any()


@pytest.mark.long
def test_recipes_reach_the_browser(nodes):
    """As values of widgets that exist, and the wired nodes give with them what the server would set without them."""
    entries = {entry.id: entry for entry in nodes["LoraTrainer"].GET_SCHEMA().inputs}
    sent = entries["recipe"].as_dict()["recipes"]
    assert {name: recipe["face"] for name, recipe in sent.items()} == {n: r.face for n, r in RECIPES.items()}
    assert all(set(recipe["face"]) <= set(entries) for recipe in sent.values())
    character, counts = sent["character"], sent["musubi"]
    assert character["of_flavour"] == {"nano": {**character["face"], "steps": 300, "learning_rate": 2e-3}}
    assert counts["of_flavour"]["nano"]["steps"] == 0  # a recipe that counts epochs goes on doing so
    for name, recipe in RECIPES.items():
        for node, section in (("Timesteps", "timesteps"), ("Optimizer", "optimizer")):
            widgets = json.loads(json.dumps(sent[name]["wired"].get(f"Flux2{node}", {})))
            expected = recipe.sections.get(section, getattr(TrainingSettings(), section))
            assert repr(settings(nodes[node], **widgets)[section]) == repr(expected)


@pytest.mark.parametrize("node, changes", [
    ("Timesteps", {"distribution": "round robin", "values": "1, 0.75", "min": 0.5, "sigmoid_mean": 0.25}),
    ("Optimizer", {"betas": "0.9, 0.95", "block_rates": "double_blocks.*=0.5, *img*=0.0", "warmup": 5.0}),
])  # fmt: skip
def test_widgets_show_a_section_as_it_was_set(pack, nodes, node, changes):
    fields = sys.modules[f"{pack.__name__}.nodes.fields"]
    section = settings(nodes[node], **changes)[node.lower()]
    shown = fields.as_widgets(section)
    assert {name: shown[name] for name in changes} == changes
    assert repr(settings(nodes[node], **shown)[node.lower()]) == repr(section)


OF_TRAINER = ("preservation", "differential_guidance", "accumulate", "recipe")  # what docs/objectives.md is about


def test_the_document_has_every_option_and_every_choice(nodes):
    text = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text()
    entries = [e for n in ("TrainingObjective", "Timesteps", "Optimizer", "Preservation")
               for e in nodes[n].GET_SCHEMA().inputs]  # fmt: skip
    entries += [e for e in nodes["LoraTrainer"].GET_SCHEMA().inputs if e.id in OF_TRAINER]
    names = [e.id for e in entries] + [choice for e in entries for choice in getattr(e, "options", None) or []]
    assert [name for name in dict.fromkeys(names) if f"`{name}`" not in text] == []
