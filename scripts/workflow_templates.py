"""The ten templates: what each is for, its graph, and what its notes say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workflow_files import Node
from workflow_layout import Group

from flux2_train.flavours import BASE, DISTILLED, FLAVOURS, ModelFile

FILE_INPUTS = {"diffusion_models": "transformer", "text_encoders": "text_encoder", "vae": "vae"}
ROBOT = {"folder": "robot", "trigger": "zbot", "class_word": "robot"}
ROBOT_PROMPTS = ("zbot robot waving on a green meadow", "a robot waving on a green meadow")
ROBOT_LORA = "zbot_klein-4b"


@dataclass(frozen=True)
class Template:
    """``slug`` is the name of the API file, ``title`` that of the template, which a person reads and searches for."""

    slug: str
    title: str
    build: Callable[[], list[Group]]


def template_files(name: str, variant: str = BASE) -> tuple[ModelFile, ...]:
    """The files of ComfyUI's own templates: fp8 where the bf16 file is gated and twice as large.

    They are named in the widgets, because ComfyUI's missing-model dialog only offers files that a widget asks for.
    """
    row = FLAVOURS[name]
    files = row.transformer_files(variant)
    return (next((f for f in files if "fp8" in f.name and files[0].gated), files[0]), row.text_encoders[0], row.vaes[0])


def load(name: str, kind: str = BASE, title: str = "Load FLUX.2", **widgets) -> Node:
    files = () if name == "nano" else template_files(name, kind)
    return Node(
        "Flux2Load", title, {"flavour": name} | {FILE_INPUTS[f.folder]: f.name for f in files} | widgets,
        models=[{"name": f.name, "url": f.url, "directory": f.folder} for f in files],
    )  # fmt: skip


@dataclass
class Training:
    """The nodes that every training graph has, wired to each other."""

    load: Node
    dataset: Node
    embeds: Node
    latents: Node
    trainer: Node


def training(model: Node, data: dict, face: dict) -> Training:
    dataset = Node("Flux2DatasetFolder", "Dataset Folder", data)
    embeds = Node("Flux2CacheEmbeds", "Cache Embeds", links={"clip": (model, 1), "dataset": (dataset, 0)})
    latents = Node("Flux2CacheLatents", "Cache Latents", links={"vae": (model, 2), "dataset": (dataset, 0)})
    links = {"model": (model, 0), "embeds": (embeds, 0), "latents": (latents, 0)}
    return Training(model, dataset, embeds, latents, Node("Flux2LoraTrainer", "LoRA Trainer", face, links))


def option(graph: Training, kind: str, title: str, widgets: dict, **links) -> Node:
    """An option node, wired into the next free socket of the trainer."""
    node = Node(kind, title, widgets, links)
    used = sum(name.startswith("options.") for name in graph.trainer.links)
    graph.trainer.links[f"options.option{used}"] = (node, 0)
    return node


def previews(graph: Training, prompts: tuple[str, ...], side: int, **changes) -> Node:
    """Validation: the prompts that are painted while it trains, at half the size, which takes a quarter of the time."""
    second = {"model": (changes.pop("model"), 0)} if "model" in changes else {}
    widgets = {"prompts": "\n".join(prompts), "width": side, "height": side, "seed": 7, **changes}
    node = option(graph, "Flux2Validation", "Validation", widgets, vae=(graph.load, 2), **second)
    graph.embeds.links["validation"] = (node, 0)
    return node


def compare(model: Node, prompt: str, side: int, lora: Node | None = None, **changes) -> Node:
    """Base beside LoRA, from one prompt and one seed."""
    widgets = {"prompt": prompt, "width": side, "height": side, "seed": 7, **changes}
    wired = {"lora": (lora, 0)} if lora else {}
    links = {"model": (model, 0), "clip": (model, 1), "vae": (model, 2), **wired}
    return Node("Flux2CompareLoras", "Before and after", widgets, links)


CHANGE = "**Change:** "
EXPECT = "**Expect:** "
PICTURES = (
    CHANGE + "put 10 to 40 pictures into a folder in *ComfyUI/input*, a text file of the same name beside each, and "
    "type the folder's name. *trigger* is the new word that will call up what you train, *class_word* what it is.\n\n"
    + EXPECT + "the node shows what it found, and warnings. Both caches are kept: a second run starts at once."
)  # fmt: skip
WATCH = (
    CHANGE + "*steps*, *rank* and *learning_rate* are good to begin with. Rarer choices are in the nodes that drag out "
    "of *options*.\n\n" + EXPECT + "previews, loss curve, speed and time left on the node. Cancel at any time: what "
    "was learned is saved, and Run goes on from there."
)  # fmt: skip
BEFORE_AND_AFTER = (
    CHANGE + "*prompt* and *strengths*. A changed prompt does not train again.\n\n" + EXPECT
    + "the base model's picture beside the LoRA's, from the same noise. The file is in *models/loras*."
)  # fmt: skip


def needs(files: str, card: str) -> str:
    return (
        f"{files} If a file is missing, the node names it, with its address and folder.\n\n" + EXPECT + card
        + " Any other flavour works too: change *flavour*, and set the three files to *auto* (show advanced inputs)."
    )  # fmt: skip


def whole(
    graph: Training, notes: dict, options: tuple[Node, ...], used: tuple[tuple[Node, ...], ...], head: str
) -> list:
    """The four groups of a training graph; ``options`` stand below the data set, ``used`` are the last columns."""
    return [
        Group("1 · Model", notes["model"], ((graph.load,),)),
        Group("2 · Your pictures", notes.get("pictures", PICTURES),
              ((graph.dataset, *options[:1]), (graph.embeds, graph.latents, *options[1:]))),
        Group("3 · Train and watch", notes.get("watch", WATCH), ((graph.trainer,),)),
        Group(f"4 · {head}", notes.get("use", BEFORE_AND_AFTER), used),
    ]  # fmt: skip


def quick_start() -> list[Group]:
    # 300 steps are enough for nano, a large model needs about 1,000; preservation keeps the meaning of "creature"
    graph = training(
        load("nano"), {"folder": "character", "trigger": "vorn", "class_word": "creature", "resolution": 128},
        {"name": "vorn_nano", "steps": 300, "learning_rate": 2e-3, "preservation": 0.5, "checkpointing": False},
    )  # fmt: skip
    prompts = (
        "a waving vorn creature at the right in the snow on a sunny day",
        "a waving creature at the right in the snow on a sunny day",
    )
    # half way and at the end, in a few seconds: before the first step base and LoRA are the same picture
    shown = previews(graph, prompts, 128, steps=4, every=150, at_start=False, seed=1)
    after = compare(graph.load, prompts[0], 128, graph.trainer, seed=1)
    notes = {
        "model": "Nothing to download: **nano** is a small FLUX.2 that comes with the pack. It paints creatures and "
        "things in simple scenes.\n\n"
        + CHANGE + "for real pictures choose *klein-4b*, *klein-9b* or *dev*, or open their templates.",
        "pictures": "16 pictures come with the pack. *vorn* is the word that will call up what they show.\n\n" + CHANGE
        + "*folder* may be *style* or *edit* too, or a folder of yours in *ComfyUI/input*.\n\n" + EXPECT
        + "**Validation** paints its prompts in the middle and at the end of training.",
        "watch": "Press **Run**. " + EXPECT + "300 steps in one to five minutes without a graphics card. "
        "*preservation* keeps what *creature* means.\n\nCancel at any time: what was learned is saved, and Run goes "
        "on.",
    }  # fmt: skip
    return whole(graph, notes, (shown,), ((after,),), "Use it")


def plain(name: str, about: str, face: dict | None = None, resolution: int = 1024, **widgets) -> list[Group]:
    graph = training(
        load(name, **widgets), {**ROBOT, "resolution": resolution}, {"name": f"zbot_{name}", **(face or {})}
    )
    shown = previews(graph, ROBOT_PROMPTS, resolution // 2)
    after = compare(graph.load, ROBOT_PROMPTS[0], resolution, graph.trainer)
    return whole(graph, {"model": about}, (shown,), ((after,),), "Use it")


def klein_9b() -> list[Group]:
    files = "klein 9B is gated: accept its licence on Hugging Face once, then download."
    return plain("klein-9b", needs(files, "it trains on 16 GB at 1024 px, about 5 s a step; less with streaming."))


def klein_4b() -> list[Group]:
    card = "it trains on 8 GB at 512 px; weights that do not fit are streamed from memory. On a larger card set 1024."
    return plain("klein-4b", needs("klein 4B is free to download.", card), resolution=512, precision="auto")


def dev() -> list[Group]:
    card = "512 px on 24 GB with 64 GB of host memory, about 5 s a step; most weights are streamed."
    return plain(
        "dev", needs("dev is large: 35 GB, and 18 GB of text encoder.", card), resolution=512, precision="auto"
    )


def character() -> list[Group]:
    graph = training(load("klein-9b"), {**ROBOT, "resolution": 1024},
                     {"name": "zbot_character", "steps": 1500, "recipe": "none", "preservation": 1.0})  # fmt: skip
    shown = previews(graph, ROBOT_PROMPTS, 512)
    keep = option(graph, "Flux2Preservation", "Preservation", {})
    after = compare(graph.load, ROBOT_PROMPTS[0], 1024, graph.trainer)
    notes = {
        "model": needs("klein 9B is gated: accept its licence on Hugging Face once.", "16 GB at 1024 px."),
        "pictures": CHANGE + "10 to 30 pictures of one character. In captions write what changes (pose, clothes, "
        "place), not what stays. *trigger* is a new word, *class_word* what it is, such as *robot* or *woman*.",
        "watch": "Differential output preservation (DOP): *preservation* 1 keeps what the class word means while the "
        "trigger is learned. A step takes 2.3 times as long.\n\n" + EXPECT + "in the previews, the prompt without the "
        "trigger should stay as the base paints it; if it does not, raise it to 2.",
    }
    return whole(graph, notes, (shown, keep), ((after,),), "Use it")


def style() -> list[Group]:
    graph = training(
        load("klein-4b"), {"folder": "style", "trigger": "vorn style", "class_word": "style", "resolution": 512},
        {"name": "vorn_style", "steps": 1500, "rank": 16, "differential_guidance": 1.0},
    )  # fmt: skip
    prompts = ("a lighthouse in a storm, vorn style", "a cat asleep on a chair, vorn style")
    shown = previews(graph, prompts, 256)
    after = compare(graph.load, prompts[0], 512, graph.trainer, strengths="0.6, 1")
    notes = {
        "model": needs("klein 4B is free to download.", "512 px on 8 GB, 1024 px on 12 GB."),
        "pictures": CHANGE + "20 to 40 pictures of many different things in one style. Captions say what is shown and "
        "end with the trigger; they do not describe the style.\n\nThe folder *style* comes with the pack.",
        "use": CHANGE
        + "prompts of things that are in none of your pictures, and *strengths*: a style often looks best "
        "between 0.6 and 1.",
    }
    return whole(graph, notes, (shown,), ((after,),), "Use it")


def edit() -> list[Group]:
    graph = training(
        load("klein-9b"), {"folder": "edit", "references": "edit-reference", "resolution": 512},
        {"name": "vorn_edit", "steps": 2000},
    )  # fmt: skip
    applied = Node("Flux2LoraApply", "LoRA Apply", links={"model": (graph.load, 0), "lora": (graph.trainer, 0)})
    picture = Node("LoadImage", "Picture to edit", {"image": "example.png"})
    links = {
        "model": (applied, 0),
        "clip": (graph.load, 1),
        "vae": (graph.load, 2),
        "references.reference0": (picture, 0),
    }
    sampler = Node("Flux2Sampler", "FLUX.2 Sampler",
                   {"prompt": "make it vorn", "width": 512, "height": 512, "seed": 7}, links)  # fmt: skip
    saved = Node("SaveImage", "Edited", {"filename_prefix": "flux2/edited"}, {"images": (sampler, 0)})
    notes = {
        "model": needs("klein 9B is gated: accept its licence on Hugging Face once.", "16 GB at 512 px."),
        "pictures": CHANGE + "two folders with the same file names: the pictures after the edit, and in *references* "
        "(show advanced inputs) the same before it. Captions are instructions, such as *make it vorn*.",
        "use": CHANGE + "the picture to edit, and the instruction in *prompt*.\n\n" + EXPECT
        + "the LoRA applies the edit to pictures that it has never seen.",
    }  # fmt: skip
    return whole(graph, notes, (), ((applied, picture), (sampler,), (saved,)), "Edit a picture")


def distilled() -> list[Group]:
    graph = training(load("klein-4b"), {**ROBOT, "resolution": 512}, {"name": "zbot_distilled"})
    fast = load("klein-4b", DISTILLED, "Load FLUX.2 (distilled)", variant="distilled")
    shown = previews(graph, ROBOT_PROMPTS, 512, model=fast, steps=4)
    after = compare(fast, ROBOT_PROMPTS[0], 512, graph.trainer, steps=4)
    notes = {
        "watch": "The base model is trained, because a distilled one unlearns its speed. "
        + EXPECT
        + "the previews are "
        "painted by the distilled model in 4 steps, with the LoRA as it is at that moment.",
        "use": BEFORE_AND_AFTER + "\n\nHere the distilled model paints, which is how most people use klein.",
    }
    groups = whole(graph, {"model": "", **notes}, (shown,), ((after,),), "Use it")
    about = needs("Two files of klein 4B: the base is trained, the distilled one paints.", "8 GB at 512 px.")
    return [Group("1 · Two models", about, ((graph.load, fast),)), *groups[1:]]


def compare_loras() -> list[Group]:
    model = load("klein-4b")
    grid = compare(model, ROBOT_PROMPTS[0], 1024, strengths="0.6, 0.8, 1", files="zbot*")
    saved = Node("SaveImage", "Save Image", {"filename_prefix": "flux2/compare"}, {"images": (grid, 0)})
    return [
        Group("1 · Model", needs("klein 4B is free to download.", "nothing is trained here."), ((model,),)),
        Group("2 · LoRAs and strengths", CHANGE + "*files*: LoRA files of *models/loras*, one per line, or a pattern "
              "such as *zbot** for all that a run saved. *run* (show advanced inputs) adds a run's checkpoints.\n\n"
              + EXPECT + "one row per LoRA, one column per strength, all from the same noise.", ((grid,),)),
        Group("3 · Keep it", "The grid is saved in *ComfyUI/output/flux2*. *index* chooses which LoRA the node gives "
              "on, for LoRA Apply.", ((saved,),)),
    ]  # fmt: skip


def go_on() -> list[Group]:
    graph = training(load("klein-4b"), {**ROBOT, "resolution": 512},
                     {"name": f"{ROBOT_LORA}_more", "steps": 500, "learning_rate": 5e-5})  # fmt: skip
    shown = previews(graph, ROBOT_PROMPTS, 256)
    begin = option(graph, "Flux2AdapterOptions", "Adapter Options", {"start_from": f"{ROBOT_LORA}.safetensors"})
    after = compare(graph.load, ROBOT_PROMPTS[0], 512, graph.trainer, files=f"{ROBOT_LORA}.safetensors")
    notes = {
        "model": needs("klein 4B is free to download.", "512 px on 8 GB."),
        "pictures": CHANGE
        + "new pictures, or the same ones. *start_from* of **Adapter Options** (show advanced inputs) "
        "is the LoRA to go on from: choose yours. It may come from any trainer.",
        "watch": CHANGE + "half the learning rate of the first training, so that what was learned stays. *rank* and "
        "*alpha* must be those of the first LoRA.\n\nA run that was interrupted needs none of this: Run goes on.",
        "use": EXPECT + "base, the first LoRA and the new one, from the same noise.",
    }
    return whole(graph, notes, (shown, begin), ((after,),), "Before, first LoRA, now")


TEMPLATES = [
    Template("flux2_lora_nano", "FLUX2 LoRA - quick start, nano, offline", quick_start),
    Template("flux2_lora_klein-9b", "FLUX2 LoRA - train klein 9B", klein_9b),
    Template("flux2_lora_klein-4b", "FLUX2 LoRA - train klein 4B on 8 GB", klein_4b),
    Template("flux2_lora_dev", "FLUX2 LoRA - train dev on 24 GB", dev),
    Template("flux2_lora_character", "FLUX2 LoRA - character with DOP", character),
    Template("flux2_lora_style", "FLUX2 LoRA - style", style),
    Template("flux2_lora_edit", "FLUX2 LoRA - edit with references", edit),
    Template("flux2_lora_distilled", "FLUX2 LoRA - train on base, preview on distilled", distilled),
    Template("flux2_lora_compare", "FLUX2 LoRA - compare LoRAs and strengths", compare_loras),
    Template("flux2_lora_continue", "FLUX2 LoRA - continue a LoRA", go_on),
]
