"""What LoRA Trainer shows of a run's events: losses, images that stand out, how it ends."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io
from support import brief_flux2, tiny_caches
from test_evaluation import ORDINARY, changed

from flux2_train.runs.prepare import new_trainer
from flux2_train.settings.training import TrainingSettings


class Shown:
    """A node's progress that remembers."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def advance(self, value):
        pass


@pytest.fixture
def node(pack):
    """The listener's module, and the events that it knows: the pack has modules of its own, as in ComfyUI."""
    return [importlib.import_module(f"{pack.__name__}.{name}") for name in ("nodes.listener", "flux2_train.events")]


@pytest.fixture
def listener(node):
    trainer = new_trainer(brief_flux2(), *tiny_caches(2), TrainingSettings(steps=9, rank=1))
    return node[0].TrainerListener(trainer, Shown())


def test_losses_of_held_out_images_and_images_that_stand_out_are_told(node, listener):
    events = node[1]
    for step, loss in ((0, 1.0), (9, 0.5)):
        listener(events.Validated(step, loss, held_out=True))
    first, last = zip(*ORDINARY, changed("odd", 0.97), strict=True)
    listener(events.ImagesMeasured(0, first))
    listener(events.ImagesMeasured(4, first))
    listener(events.ImagesMeasured(9, last))
    advice = "damaged or unlike the others: look at them, take them out"
    assert listener.text() == f"held-out loss 1.0000 -> 0.5000\nnot learnable: odd ({advice})"


def test_the_plan_stays_on_the_node(node, listener):
    _, events = node
    listener(events.Planned("all weights resident\npeak 1.00 GB"))
    listener(events.Phase("loading"))
    listener(events.Stepped(9, 9, 0.5, 0.5, 0.0, 0.1))
    first, second, third = listener.progress.said[-3:]
    assert first == "all weights resident\npeak 1.00 GB"
    assert second == f"loading\n{first}"
    assert third == f"step 9/9, loss 0.5000, 0.10 s/step, 0:00 left\n{first}"
    listener(events.Planned("recomputed"))
    assert listener.progress.said[-1].endswith("0:00 left\nrecomputed")


def test_time_left_is_told_from_the_last_twenty_steps(node, listener):
    listener.trainer.history.seconds = [100.0] * 30 + [3.0] * 20
    listener(node[1].Stepped(9, 99, 0.5, 0.5, 0.0, 40.0))
    assert listener.progress.said[-1] == "step 9/99, loss 0.5000, 40.00 s/step, 4:30 left"


@pytest.mark.parametrize("seconds, words", [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_durations_have_minutes_and_seconds(pack, seconds, words):
    assert importlib.import_module(f"{pack.__name__}.nodes.progress").clock(seconds) == words


def test_warnings_come_first_and_training_is_told_in_the_console(node, listener, caplog):
    events, trainer = node[1], listener.trainer
    with caplog.at_level("INFO"):
        listener(events.Planned("all weights resident"))
        listener(events.Stepped(9, 9, 0.5, 0.5, 0.0, 0.1))
        listener(events.Warned("the card is full"))
    lines = listener.progress.said[-1].split("\n")
    assert (
        lines[0] == "warning: the card is full"
        and lines[1].startswith("step 9/9")
        and lines[2] == "all weights resident"
    )
    told = [record.getMessage() for record in caplog.records]
    assert f"{trainer.config.name}: the card is full" in told
    assert any(line.startswith(f"{trainer.config.name}: step 9/9, loss 0.5000") for line in told)


@pytest.mark.parametrize("step, saved, words", [
    (5, "run_step5.safetensors", "Stopped after step 5, saved as run_step5.safetensors. Run goes on from here."),
    (5, "", "Stopped after step 5. Run goes on from here."),
    (0, "", "Stopped before the first step was done; nothing was saved."),
])  # fmt: skip
def test_cancel_says_what_was_saved_and_how_to_go_on(node, listener, step, saved, words):
    listener.trainer.step = step
    with pytest.raises(InterruptProcessingException), listener.saying_how_it_ends():
        if saved:
            listener(node[1].Saved(Path(saved), stopped=True))
        raise InterruptProcessingException
    assert listener.progress.said[-1] == words


WIRES = {  # by the trainer's input: the node to wire, what is set on it, and the setting of the run that this is
    "adapter": ("AdapterOptions", {"dropout": 0.25}, "adapter.dropout"),
    "objective": ("TrainingObjective", {"bad_losses": 2}, "guard.bad_losses"),
    "timesteps": ("Timesteps", {"strata": 3}, "timesteps.strata"),
    "optimizer": ("Optimizer", {"weight_decay": 0.25}, "optimizer.weight_decay"),
    "preserve": ("Preservation", {"every": 2}, "preservation_options.every"),
    "validation_loss": ("ValidationLoss", {"every": 7}, "validation_loss.every"),
    "save": ("SaveOptions", {"precision": "fp32"}, "save.precision"),
    "checkpoints": ("Checkpoints", {"keep": 1}, "checkpoints.keep"),
    "memory": ("Memory", {"micro_batch": 1}, "memory.micro_batch"),
}


def given(node, **changes):
    """What an option node gives with these widgets touched and no other."""
    untouched = {entry.id: entry.default for entry in node.GET_SCHEMA().inputs if hasattr(entry, "default")}
    return node.execute(**{**untouched, **changes}).args[0]


def of_the_pack(pack):
    """Both caches as nodes make them: a pack has an engine of its own here, which knows its own settings alone."""
    embeds, latents = tiny_caches(2)
    dataset, settings = replace(latents.dataset, requests=()), f"{pack.__name__}.flux2_train.settings.caches"
    kinds = importlib.import_module(settings)
    return (replace(embeds, dataset=dataset, settings=kinds.EmbedSettings()),
            replace(latents, dataset=dataset, settings=kinds.LatentSettings()))  # fmt: skip


@pytest.fixture
def trained(pack, comfy_folders):
    """``trained(name, wired)`` runs LoRA Trainer for one step and gives its job file, as plain values."""
    nodes = {node.GET_SCHEMA().node_id.removeprefix("Flux2"): node for node in pack.NODES}
    trainer = nodes["LoraTrainer"].PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})

    def run(name, wired):
        with torch.inference_mode():
            trainer.execute(brief_flux2(), *of_the_pack(pack), name=name, steps=1, rank=1, validation_items=0, **wired)
        return json.loads((comfy_folders / "output" / "flux2_train" / name / "job.json").read_text())

    return run


def option_nodes(pack) -> dict:
    """What every option node gives, each with one widget changed, by the trainer's input of earlier versions."""
    nodes = {node.GET_SCHEMA().node_id.removeprefix("Flux2"): node for node in pack.NODES}
    return {name: given(nodes[node], **widgets) for name, (node, widgets, _) in WIRES.items()}


def test_option_nodes_that_no_earlier_version_had_reach_the_run(pack, trained):
    nodes = {node.GET_SCHEMA().node_id.removeprefix("Flux2"): node for node in pack.NODES}
    routing = given(nodes["TokenRouting"], selection_ratio=0.5, start_layer_idx=1, end_layer_idx=1)
    rollout = given(nodes["ScheduledSampling"], probability=1.0)
    job = trained("later", {"options": {"option0": routing, "option1": rollout}})
    assert job["training"]["routing"]["selection_ratio"] == 0.5 and job["training"]["rollout"]["probability"] == 1.0


@pytest.mark.long
@pytest.mark.parametrize("earlier", [False, True], ids=["one socket", "sockets of earlier versions"])
def test_every_option_node_reaches_the_run(pack, trained, earlier):
    wired = option_nodes(pack)
    one = {"options": {f"option{number}": options for number, options in enumerate(wired.values())}}
    job = trained(f"wired_{earlier}", wired if earlier else one)
    for _, widgets, setting in WIRES.values():
        section, field = setting.split(".")
        default = getattr(getattr(TrainingSettings(), section), field)
        assert [job["training"][section][field]] == list(widgets.values()) != [default], setting
    known = importlib.import_module(f"{pack.__name__}.nodes.train").EARLIER
    assert set(known) - WIRES.keys() == {"validation"}  # what is wired there is painted in test_server


@pytest.mark.parametrize("node", WIRES.values(), ids=lambda row: row[0])
def test_the_same_section_twice_is_refused_by_the_name_of_its_node(pack, trained, node):
    """Through the growing socket, and where an old socket and the new one are both wired."""
    nodes = {each.GET_SCHEMA().node_id.removeprefix("Flux2"): each for each in pack.NODES}
    first, second = given(nodes[node[0]]), given(nodes[node[0]], **node[1])
    title = nodes[node[0]].GET_SCHEMA().display_name
    earlier = next(name for name, row in WIRES.items() if row is node)
    for wired in ({"options": {"option0": first, "option4": second}}, {"options": {"option0": first}, earlier: second}):
        with pytest.raises(ValueError, match=f"{title} is wired into LoRA Trainer twice; one of the two would be"):
            trained("refused", wired)


def test_what_is_no_option_node_is_refused(pack, trained):
    with pytest.raises(ValueError, match="'optimizer' of LoRA Trainer takes an option node, but a dict is wired in"):
        trained("refused", {"optimizer": {"lr": 1}})
    with pytest.raises(ValueError, match="nonsense"):  # as ComfyUI passes on a wire into no input
        trained("refused", {"nonsense": option_nodes(pack)["save"]})
