"""Dataset Folder and its option nodes, run as ComfyUI runs them: every widget changes the data set as it says."""

import re
from types import SimpleNamespace

import pytest
from comfy_api.latest import io
from pictures import gradient, picture
from PIL import Image

OPTIONS = {"CaptionOptions": "caption_options", "CropOptions": "crop_options", "MaskOptions": "mask_options",
           "ReferenceOptions": "reference_options"}  # fmt: skip


@pytest.fixture(scope="module")
def nodes(pack):
    """The node classes by id, prepared as ComfyUI's executor prepares them."""
    return {
        node.GET_SCHEMA().node_id.removeprefix("Flux2"): node.PREPARE_CLASS_CLONE(
            {"hidden_inputs": {io.Hidden.unique_id: "1"}}
        )
        for node in pack.NODES
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of pictures with everything that options act on, and masks and references for it beside it."""
    base = tmp_path_factory.mktemp("graph")
    sizes = {"wide": (128, 64), "two": (64, 64), "small": (32, 32), "tags": (64, 64)}
    for name, size in sizes.items():
        picture(base / "data" / f"{name}.png", size, "red" if name == "two" else "blue", "[trigger] " + name)
        for number in "12":
            picture(base / f"before{number}" / f"{name}.jpg", (64, 32), "green", None)
    (base / "data" / "two.txt").write_text("[trigger] one\nother")
    (base / "data" / "tags.txt").write_text("[trigger] a, b, c, d, e; f; g")
    Image.new("RGBA", (64, 64), (255, 0, 0, 90)).save(base / "data" / "clear.png")
    (base / "data" / "clear.txt").write_text("see through")
    for number in "12":
        picture(base / f"before{number}" / "clear.jpg", (64, 32), "green", None)
    (base / "masks").mkdir()
    gradient((128, 64)).getchannel("R").save(base / "masks" / "wide.png")
    picture(base / "strict" / "wide.png", (256, 128), "green", None)
    picture(base / "only" / "wide.png", (128, 64), "blue", "[trigger] wide")
    picture(base / "deep" / "sub" / "x.png")
    picture(base / "deep" / "y.png")
    (base / "broken").mkdir()
    (base / "broken" / "b.png").write_bytes(b"x")
    picture(base / "broken" / "y.png")
    (base / "bare").mkdir()
    Image.new("RGB", (64, 64)).save(base / "bare" / "a_name.png")
    (base / "bare" / "rows.jsonl").write_text('{"image": "a_name.png", "caption": "from a row"}')
    return base


@pytest.fixture(scope="module")
def made(nodes, place):
    """``made(folder widgets, CropOptions={...})`` runs the small graph and gives its data set, with names for parts."""

    def run(node, **changes):
        untouched = {i.id: i.default for i in nodes[node].GET_SCHEMA().inputs if hasattr(i, "default")}
        for name, value in untouched.items():  # the frontend sends a combo's first choice where it has no default
            assert value is not None or name == "more", name
        return nodes[node].EXECUTE_NORMALIZED(**{**untouched, **changes})

    def graph(folder=None, earlier=False, **options):
        folder = dict(folder or {})
        for name in ("folder", "references"):
            if name in folder:
                folder[name] = "; ".join(str(place / part) for part in folder[name].split(";"))
        wired = {
            f"option{number}": run(
                node, **{k: str(place / v) if k == "folder" else v for k, v in widgets.items()}
            ).args[0]
            for number, (node, widgets) in enumerate(options.items())
        }
        if earlier:  # as prompts of earlier versions have them
            wired = {OPTIONS[node]: value for node, value in zip(options, wired.values(), strict=True)}
        else:
            wired = {"options": wired}
        base = {"folder": str(place / "data"), "resolution": 64, "trigger": "zbot", "class_word": "toy"}
        return parts(run("DatasetFolder", **{**base, **wired, **folder}).args[0])

    return graph


def parts(dataset) -> SimpleNamespace:
    items = {}
    for item in dataset.items:
        items.setdefault(item.path.stem, []).append(item)
    return SimpleNamespace(
        all=dataset, source=dataset.sources[0], items=items, said={n: i[0].captions for n, i in items.items()},
        masks={n: i[0].mask for n, i in items.items() if i[0].mask},
        size={n: i[0].size for n, i in items.items()}, box={n: i[0].view.crop.box for n, i in items.items()},
    )  # fmt: skip


RANDOM_SQUARES = {"crop_aspect": "square", "crop_style": "random"}
# node, widgets, what must then be so of the data set, and not without them
TABLE = [
    ("CaptionOptions", {"several": "choose"}, lambda d: d.said["two"] == ("zbot one", "zbot, other")),
    ("CaptionOptions", {"dropout": 0.25},
     lambda d: d.source.caption_dropout == 0.25 and d.source.dropout_caption == ""),
    ("CaptionOptions", {"dropout": 0.25, "dropout_caption": "[trigger]"},
     lambda d: (d.source.dropout_caption, d.source.dropout_class_caption) == ("zbot", "toy")),
    ("CaptionOptions", {"shuffle": 3}, lambda d: 1 < len(d.said["tags"]) <= 3),
    ("CaptionOptions", {"shuffle": 9, "keep_tokens": 2},
     lambda d: len(d.said["tags"]) > 2 and all(t.startswith("zbot a, b, ") for t in d.said["tags"])),
    ("CaptionOptions", {"shuffle": 9, "separator": ";"},
     lambda d: len(d.said["tags"]) > 1 and all("a, b, c, d, e" in t for t in d.said["tags"])),
    ("CaptionOptions", {"shuffle": 9, "tag_dropout": 0.5}, lambda d: any("c" not in t for t in d.said["tags"])),
    ("CaptionOptions", {"shuffle": 9, "tag_dropout": 0.5, "keep_order": True},
     lambda d: len(d.said["tags"]) > 1
     and all(letters == sorted(letters) for letters in map(re.compile(r"\b[a-e]\b").findall, d.said["tags"]))),
    ("CaptionOptions", {"prepend_trigger": False}, lambda d: d.said["clear"] == ("see through",)),
    ("CaptionOptions", {"shuffle": 2, "seed": 1}, lambda d: len(d.said["tags"]) == 2),
    ("CropOptions", {"crop": False}, lambda d: d.box["wide"] == (0, 0, 128, 64) and d.size["wide"] == (96, 48)),
    ("CropOptions", {"crop_aspect": "square"},
     lambda d: d.size["wide"] == (64, 64) and d.box["wide"] == (32, 0, 96, 64)),
    ("CropOptions", {"aspects": "1:2"}, lambda d: d.size["wide"] == (48, 80)),
    ("CropOptions", {"crop_aspect": "square", "crop_style": "corner"}, lambda d: d.box["wide"] == (0, 0, 64, 64)),
    ("CropOptions", {**RANDOM_SQUARES, "crops": 3}, lambda d: len({i.view.crop.box for i in d.items["wide"]}) == 3),
    ("CropOptions", {"flip_x": True}, lambda d: [i.view.crop.flip_x for i in d.items["two"]] == [False, True]),
    ("CropOptions", {"flip_y": True}, lambda d: [i.view.crop.flip_y for i in d.items["two"]] == [False, True]),
    ("CropOptions", {"rotation": 10.0},
     lambda d: [abs(i.view.crop.angle) > 0 for i in d.items["two"]] == [False, True]),
    ("CropOptions", {"color_jitter": 0.1}, lambda d: [len(i.view.crop.colours) for i in d.items["two"]] == [0, 4]),
    ("CropOptions", {"rotation": 10.0, "variations": 3},
     lambda d: len({i.view.crop.angle for i in d.items["two"]}) == 4),
    ("CropOptions", {"resolutions": "64, 128"}, lambda d: [i.size for i in d.items["two"]] == [(64, 64), (128, 128)]),
    ("CropOptions", {"resolutions": "32, 64", "use": "nearest"},
     lambda d: [[i.size for i in d.items[n]] for n in ("two", "small")] == [[(64, 64)], [(32, 32)]]),
    ("CropOptions", {"resolutions": "0.0009765625", "resolution_type": "area"}, lambda d: d.size["two"] == (32, 32)),
    ("CropOptions", {"upscale": False}, lambda d: d.size["small"] == (32, 32)),
    ("CropOptions", {"minimum": 64.0, "too_small": "skip"},
     lambda d: "small" not in d.items and "small.png: 32x32 is below" in d.all.skipped[0]),
    ("CropOptions", {"maximum": 64.0, "too_large": "skip"},
     lambda d: set(d.items) == {"two", "small", "tags", "clear"}),
    ("CropOptions", {**RANDOM_SQUARES, "seed": 1}, lambda d: d.size["wide"] == (64, 64) and d.box["wide"][0] != 32),
    ("MaskOptions", {"folder": "masks"}, lambda d: list(d.masks) == ["wide"]),
    ("MaskOptions", {"alpha": True}, lambda d: list(d.masks) == ["clear"]),
    ("MaskOptions", {"alpha": True, "invert": True}, lambda d: "clear" in d.masks and d.masks["clear"].invert),
    ("MaskOptions", {"alpha": True, "minimum": 0.5}, lambda d: "clear" in d.masks and d.masks["clear"].minimum == 0.5),
    ("ReferenceOptions", {"sampling": "random"}, lambda d: d.source.reference_sampling == "random"),
    ("ReferenceOptions", {"dropout": 0.5}, lambda d: d.source.reference_dropout == 0.5),
    ("DatasetFolder", {"folder": "only"}, lambda d: list(d.items) == ["wide"]),
    ("DatasetFolder", {"captions": "file name"}, lambda d: d.said["wide"] == ("zbot, wide",)),
    ("DatasetFolder", {"captions": "one prompt", "prompt": "a [trigger]"},
     lambda d: set(d.said.values()) == {("a zbot",)}),
    ("DatasetFolder", {"folder": "bare", "captions": "jsonl"}, lambda d: d.said == {"a_name": ("zbot, from a row",)}),
    ("DatasetFolder", {"folder": "bare", "prompt": "default"}, lambda d: d.said == {"a_name": ("zbot, default",)}),
    ("DatasetFolder", {"resolution": 128}, lambda d: d.size["two"] == (128, 128) and d.all.resolution == 128),
    ("DatasetFolder", {"repeats": 4}, lambda d: d.source.repeats == 4),
    ("DatasetFolder", {"trigger": " ohwx "}, lambda d: d.said["wide"] == ("ohwx wide",) and d.all.trigger == "ohwx"),
    ("DatasetFolder", {"class_word": "robot"}, lambda d: d.items["wide"][0].class_captions == ("robot wide",)),
    ("DatasetFolder", {"references": "before1;before2"},
     lambda d: [v.path.parent.name for v in d.items["wide"][0].references] == ["before1", "before2"]),
    ("DatasetFolder", {"folder": "broken", "bad_files": "skip"},
     lambda d: str(d.all.skipped).startswith("('b.png cannot be read")),
    ("DatasetFolder", {"folder": "deep", "subfolders": False}, lambda d: list(d.items) == ["y"]),
    ("DatasetFolder", {"background": "black"}, lambda d: d.items["clear"][0].view.background == "black"),
    ("DatasetFolder", {"max_samples": 2}, lambda d: len(d.all.items) == 2),
    ("DatasetFolder", {"probability": 0.5}, lambda d: d.source.probability == 0.5),
    ("DatasetFolder", {"loss_weight": 0.25}, lambda d: d.source.weight == 0.25),
    ("DatasetFolder", {"is_reg": True}, lambda d: d.source.is_reg and d.said["wide"] == ("toy wide",)),
    ("DatasetFolder", {"is_reg": True, "base_target": True}, lambda d: d.source.base_target),
    ("DatasetFolder", {"batch": 3}, lambda d: d.source.batch == 3),
    ("DatasetFolder", {"balance": 2.0}, lambda d: d.source.balance == 2),
    ("DatasetFolder", {"timestep_offset": -0.5}, lambda d: d.source.timestep_offset == -0.5),
]  # fmt: skip


@pytest.mark.parametrize("node, widgets, holds", TABLE, ids=[f"{n}-{'-'.join(w)}" for n, w, _ in TABLE])
def test_every_widget_acts(made, node, widgets, holds):
    plain = made()
    changed = made(widgets) if node == "DatasetFolder" else made(**{node: widgets})
    assert holds(changed) and not holds(plain)
    assert changed.all.fingerprint != plain.all.fingerprint  # so that nothing downstream believes in the old one


def test_widgets_that_need_others_to_show(made, place):
    """Rows that would not differ from the plain data set alone."""
    loose = made({"references": "before1"}).items["wide"][0].references[0].crop
    large = made({"references": "before1"}, ReferenceOptions={"resolution": 128}).items["wide"][0].references[0].crop
    assert large.size[0] * large.size[1] > 3 * loose.size[0] * loose.size[1]
    strict = made({"folder": "only", "references": "strict"}, ReferenceOptions={"kind": "strict"},
                  CropOptions={"crop_aspect": "square", "crop_style": "corner", "flip_x": True})  # fmt: skip
    assert [(i.references[0].crop.box, i.references[0].crop.flip_x) for i in strict.items["wide"]] == [
        ((0, 0, 128, 128), False), ((0, 0, 128, 128), True),
    ]  # fmt: skip
    for widgets in ({"minimum": 64.0, "too_small": "refuse"}, {"maximum": 64.0, "too_large": "refuse"}):
        with pytest.raises(ValueError, match="1 file cannot be used: (small|wide).png: "):
            made(CropOptions=widgets)
    with pytest.raises(ValueError, match="1 file cannot be used: b.png cannot be read"):
        made({"folder": "broken", "bad_files": "refuse"})
    shuffles = {made(CaptionOptions={"shuffle": 2, "seed": seed}).said["tags"] for seed in range(4)}
    boxes = {made(CropOptions={**RANDOM_SQUARES, "seed": seed}).box["wide"] for seed in range(4)}
    assert len(shuffles) > 1 and len(boxes) == 4


def test_data_sets_are_chained(made, nodes):
    first = made().all
    both = made({"more": first, "folder": "only", "repeats": 3, "is_reg": True, "class_word": "robot"})
    assert len(both.all.items) == 6 and [s.repeats for s in both.all.sources] == [1, 3]
    assert both.all.items[5].captions == ("robot wide",) and both.all.items[:5] == first.items


def test_no_widget_is_left_out_of_this_test(nodes):
    tested = {(node, widget) for node, widgets, _ in TABLE for widget in widgets}
    tested |= {("ReferenceOptions", "kind"), ("ReferenceOptions", "resolution"), ("DatasetFolder", "more")}
    tested |= {("DatasetFolder", "options")}
    every = {(n, i.id) for n in (*OPTIONS, "DatasetFolder") for i in nodes[n].GET_SCHEMA().inputs}
    assert every == tested


SET = [
    ("CaptionOptions", {"shuffle": 3}), ("CropOptions", {"crop_aspect": "square"}), ("MaskOptions", {"alpha": True}),
    ("ReferenceOptions", {"dropout": 0.5}),
]  # fmt: skip


def test_all_option_nodes_are_wired_at_once_in_any_order(made):
    """The same data set through the one socket, in both orders, and through the sockets of earlier versions."""
    one, other, earlier = (made(**dict(SET)), made(**dict(SET[::-1])), made(earlier=True, **dict(SET)))
    assert one.all.fingerprint == other.all.fingerprint == earlier.all.fingerprint != made().all.fingerprint
    for node, widgets in SET:
        assert made(earlier=True, **{node: widgets}).all.fingerprint == made(**{node: widgets}).all.fingerprint


def test_the_same_options_twice_and_other_nodes_are_refused_by_name(made, nodes):
    crop = nodes["CropOptions"].EXECUTE_NORMALIZED().args[0]
    for wired in (
        {"options": {"option0": crop, "option1": crop}},
        {"options": {"option0": crop}, "crop_options": crop},
    ):
        with pytest.raises(ValueError, match="Crop Options is wired into Dataset Folder twice"):
            made(wired)
    with pytest.raises(ValueError, match="'option0' of Dataset Folder takes an option node, but a str is wired in"):
        made({"options": {"option0": "crop"}})


@pytest.mark.parametrize("node", OPTIONS)
def test_untouched_options_change_nothing(made, node):
    assert made(**{node: {}}).all.fingerprint == made().all.fingerprint
