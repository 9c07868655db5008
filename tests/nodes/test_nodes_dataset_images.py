"""Dataset Images: what the graph makes becomes files that are trained on, the same files for the same images."""

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from PIL import Image

from flux2_train.data.folder import read_folder


@pytest.fixture
def run(pack):
    """``run(images, **others)``: the node's outputs, as ComfyUI's executor would give them."""
    node = next(each for each in pack.NODES if each.GET_SCHEMA().node_id == "Flux2DatasetImages")
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})

    def once(images, captions=("a [trigger] one\na [trigger] two\na [trigger] three",), **others):
        given = {"name": ["made"], "resolution": [64], "trigger": ["zbot"], "class_word": ["toy"], **others}
        return clone.EXECUTE_NORMALIZED(images=images, captions=list(captions), **given).args

    return once


def images(seed=0):
    """A batch of two and one of another size."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 64, 64, 3, generator=rng), torch.rand(1, 64, 96, 3, generator=rng)]


def folder_of(name):
    from pathlib import Path

    return Path(folder_paths.get_input_directory()) / name


def test_images_captions_masks_and_references_become_a_data_set(run):
    masks = [torch.zeros(3, 64, 64)[:2], torch.ones(64, 96)]
    masks[0][0, :, 32:] = 1
    masks[0][1] = 0.5
    dataset, name = run(images(), masks=masks, references=images(1))
    first, second, third = dataset.items
    assert [item.caption for item in dataset.items] == ["a zbot one", "a zbot two", "a zbot three"]
    assert first.class_caption == "a toy one" and third.size == (80, 48)
    for item, given in zip(dataset.items, [*images()[0], *images()[1]], strict=True):
        kept = np.asarray(Image.open(item.path), dtype=np.float32) / 255
        assert np.abs(kept - given.numpy()).max() <= 0.5 / 255 + 1e-6
    assert all(item.mask and len(item.references) == 1 for item in dataset.items)
    assert (np.asarray(Image.open(first.mask.view.path))[:, ::32] == [0, 255]).all()
    assert np.asarray(Image.open(second.mask.view.path)).max() == 128
    assert read_folder(dataset.requests[0]).fingerprint == dataset.fingerprint  # the job does it again
    assert sorted(path.name for path in folder_of(name).iterdir()) == [
        *(f"0000{n}.{kind}" for n in (1, 2, 3) for kind in ("png", "txt")), "flux2_dataset.json", "masks",
    ]  # fmt: skip


def test_the_same_images_get_the_same_folder_and_what_a_person_changed_there_stays(run):
    dataset, name = run(images(2))
    (folder_of(name) / "00001.txt").write_text("mended")
    again, same = run(images(2))
    other, another = run(images(3))
    assert same == name != another and again.items[0].caption == "zbot, mended"
    assert other.items[0].caption == dataset.items[0].caption
    assert not list(folder_of("x").parent.glob(".*partial"))


def test_one_caption_for_all_a_list_and_none(run):
    assert [i.caption for i in run(images(4), ["a robot"])[0].items] == ["zbot, a robot"] * 3
    assert [i.caption for i in run(images(4), ["x", "y\nz", "w"])[0].items] == ["zbot, x", "zbot, y z", "zbot, w"]
    assert [i.caption for i in run(images(4), [""])[0].items] == ["zbot"] * 3


@pytest.mark.parametrize("changes, words", [
    ({"captions": ["a\nb"]}, "3 images and 2 captions"), ({"masks": [torch.ones(1, 64, 64)]}, "3 images and 1 masks"),
    ({"references": [torch.ones(2, 64, 64, 3)]}, "3 images and 2 references"),
    ({"name": ["../x"]}, "cannot be a folder's name"), ({"name": [""]}, "cannot be a folder's name"),
    ({"masks": [torch.ones(3, 32, 64)], "captions": ["x"]}, "they must have the same shape"),
    ({"images": [torch.ones(0, 64, 64, 3)]}, "got 0 images"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(run, changes, words):
    given = {"images": [torch.rand(3, 64, 64, 3)], **changes}
    with pytest.raises(ValueError) as error:
        run(**given)
    assert words in str(error.value)
