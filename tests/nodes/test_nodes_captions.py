"""Folder Images and Caption Images: what is shown, what is written, and what sees no pictures."""

from pathlib import Path

import folder_paths
import pytest
from comfy_api.latest import io
from pictures import gradient, picture

from flux2_train.data import sidecar


@pytest.fixture
def nodes(pack):
    """``nodes(id, **widgets)``: the outputs of a node and what it shows."""

    def run(kind, **given):
        node = next(each for each in pack.NODES if each.GET_SCHEMA().node_id == f"Flux2{kind}")
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
        return clone.EXECUTE_NORMALIZED(**given)

    return run


@pytest.fixture
def caption(nodes, place):
    """``caption(**widgets)``: (captions, text on the node) of Caption Images on the folder."""

    def run(**given):
        widgets = {"folder": place.name, "which": "only missing", "template": "[trigger] ...", "write": "preview only"}
        listed = {name: value if isinstance(value, list) else [value] for name, value in (widgets | given).items()}
        found = nodes("CaptionImages", **listed)
        return found.args[0], found.ui["flux2_text"][0]

    return run


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_nothing_is_written_before_it_is_asked_for(caption, place):
    (place / "1.txt").unlink()
    (place / "2.txt").write_text(" ")
    before = texts(place)
    shown, text = caption(captions=["one", "two"])
    assert shown == ["[trigger] one", "[trigger] two"] and texts(place) == before
    assert "2 captions to write; nothing is written yet" in text and "1.png: [trigger] one" in text
    _, text = caption(captions=["one", "two"], write="write")
    assert "good: 2 captions written" in text
    assert texts(place) == {"0.txt": "a [trigger] number 0", "1.txt": "[trigger] one", "2.txt": "[trigger] two"}
    assert "every picture has a caption" in caption(captions=[])[1]


def test_all_are_written_with_another_template(caption, place):
    caption(captions=["a\nb\n\nc"], which="all", template="photo of [trigger], \u2026 at night", write="write")
    assert list(texts(place).values()) == [f"photo of [trigger], {c} at night" for c in "abc"]


def test_pictures_are_given_in_the_order_of_the_captions(nodes, place):
    gradient((64, 48)).save(place / "1.png")
    (place / sidecar.NAME).write_text('{"version": 1, "pictures": {"0.png": {"exclude": true}}}')
    images = nodes("FolderImages", folder=place.name, which="all").args[0]
    assert [tuple(image.shape) for image in images] == [(1, 48, 64, 3), (1, 128, 64, 3)]
    with pytest.raises(ValueError, match="Every picture in .* has a caption"):
        nodes("FolderImages", folder=place.name, which="only missing")


@pytest.mark.parametrize("changes, words", [
    ({"captions": ["x"] * 2, "which": "all"}, "got 2 captions for 3 pictures"),
    ({"template": "[trigger]", "captions": ["x"]}, r"needs \.\.\. where the caption goes"),
    ({"which": "all"}, "has neither 'captions' nor 'clip'"), ({"folder": " "}, "No folder is named"),
    ({"folder": "robot", "which": "all", "write": "write"}, "stays as it is"),
    ({"folder": "not there"}, "There is no folder"),
])  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_written(caption, place, changes, words):
    before = texts(place)
    with pytest.raises(ValueError, match=words):
        caption(**changes)
    assert texts(place) == before


def test_a_text_encoder_that_cannot_see_says_so_and_names_one_that_can(caption, place, nano):
    with pytest.raises(ValueError, match="cannot see pictures: wire one that can .Qwen3-VL, Qwen3.5"):
        caption(clip=nano.clip, which="all", write="write")
    assert texts(place)["0.txt"] == "a [trigger] number 0"


@pytest.mark.long
def test_a_text_encoder_that_sees_describes_each_picture_as_generate_text_does(caption, place, monkeypatch):
    pytest.importorskip("comfy_extras.nodes_textgen")
    from comfy_extras.nodes_textgen import TextGenerate
    from seeing import seeing_clip

    from flux2_train.data.images import load_rgb, to_tensor

    gradient((64, 64)).save(place / "0.png")
    clip = seeing_clip(monkeypatch)
    shown, _ = caption(clip=clip, which="all", template="...", prompt="What?", max_length=6)
    core = [
        TextGenerate.execute(clip, "What?", 6, {"sampling_mode": "off"}, to_tensor(load_rgb(place / name))).args[0]
        for name in ("0.png", "1.png", "2.png")
    ]
    assert shown == [" ".join(text.split()) for text in core] and len(set(shown)) > 1
    generated = clip.generate
    monkeypatch.setattr(clip, "generate", lambda *_, **__: pytest.fail("it was described already"))
    written, _ = caption(clip=clip, which="all", template="...", prompt="What?", max_length=6, write="write")
    assert written == shown and list(texts(place).values()) == shown
    monkeypatch.setattr(clip, "generate", generated)
    assert caption(clip=clip, which="all", template="...", prompt="And?", max_length=6)[0] != shown


def test_a_caption_that_appears_meanwhile_stays(pack, place):
    import importlib

    module = importlib.import_module(f"{pack.__name__}.nodes.making.captions")
    _, found = module._targets(place.name, "all", True)
    (place / "0.txt").write_text("somebody else")
    lines = list(module._lines(found, ["x", "y", "z"], True))
    assert lines[0].startswith("warning: 0.txt was changed by somebody else") and "good: 2 captions written" in lines
    assert list(texts(place).values()) == ["somebody else", "y", "z"]


def test_a_changed_folder_runs_both_nodes_again(pack, place):
    kinds = [each for each in pack.NODES if each.GET_SCHEMA().node_id in ("Flux2FolderImages", "Flux2CaptionImages")]
    before = [kind.fingerprint_inputs(folder=place.name) for kind in kinds]
    picture(Path(folder_paths.get_input_directory()) / place.name / "new.png")
    assert all(
        now != was for now, was in zip([k.fingerprint_inputs(folder=place.name) for k in kinds], before, strict=True)
    )
