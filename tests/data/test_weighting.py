"""How often and how much images count: repeats, shares, chains, regularisation, masks, references, dropout."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import gradient, picture, read
from PIL import Image

from flux2_train.data.cache import EmbedCache, LatentCache
from flux2_train.data.masks import mask_grid
from flux2_train.data.order import batches, drawn, epoch_batches, step_count
from flux2_train.data.render import render
from flux2_train.data.samples import Samples, samples
from flux2_train.errors import UserError
from flux2_train.flow.weighting import place_weights, replaced, weighted
from flux2_train.settings.base import choices
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import CaptionSettings, DatasetSettings, MaskSettings, ReferenceSettings


@pytest.fixture
def folder(tmp_path):
    """Eight pictures of one shape."""
    for number in range(8):
        picture(tmp_path / "data" / f"{number}.png", colour=(number, 0, 0), caption=f"[trigger] {number}")
    return tmp_path / "data"


def cached(dataset) -> Samples:
    """Samples of the data set's shapes with latents and embeds made up."""
    generator = torch.Generator().manual_seed(0)
    latents = {view: torch.randn(view.latent_shape, generator=generator) for view in dataset.views()}
    latents |= {mask: mask_grid(mask) for mask in dataset.masks()}
    embeds = {text: torch.randn(1, 7, 96, generator=generator) for text in dataset.texts()}
    return samples(EmbedCache(dataset, embeds), LatentCache(dataset, latents))


def seen(data, epoch, batch=1, seed=0):
    return Counter(i for indices in epoch_batches(data, batch, seed, epoch) for i in indices)


def test_repeats_and_probability(folder):
    assert set(seen(cached(read(folder, repeats=3)), 0).values()) == {3}
    data = cached(read(folder, probability=0.25))
    epochs = [seen(data, epoch) for epoch in range(4)]
    assert [sum(counts.values()) for counts in epochs] == [2] * 4
    assert set(sum(epochs, Counter()).values()) == {1}  # four epochs see everything once
    assert seen(data, 0) != seen(data, 0, seed=1)
    assert step_count(data, 1, 0, 6) == 12 == len(list(batches(data, 1, 0, 0, 6)))


def test_folders_are_chained(folder, tmp_path):
    picture(tmp_path / "more" / "x.png", (96, 64), "blue", "a [trigger] thing")
    first = read(folder, trigger="zbot", class_word="robot", repeats=2)
    both = first.chained(read(tmp_path / "more", trigger="ohwx", loss_weight=0.5))
    data = cached(both)
    assert len(both.items) == 9 and both.items[8].caption == "a ohwx thing"
    assert (both.trigger, both.class_word) == ("zbot, ohwx", "robot")
    assert [seen(data, 0)[i] for i in (0, 8)] == [2, 1]
    assert [data[i].weight for i in (0, 8)] == [1.0, 0.5]
    assert both.without("class_word") == ["more"] and both.without("trigger") == []
    assert [item.source for item in both.chained(both).items] == [*[0] * 8, 1, *[2] * 8, 3]


def test_regularisation_images_have_no_trigger_and_batches_of_their_own(folder, tmp_path):
    for number in range(4):
        picture(tmp_path / "reg" / f"{number}.png", colour=(0, number, 0), caption=f"a [trigger], {number}")
    settings = {"is_reg": True, "base_target": True, "loss_weight": 0.1}
    reg = read(tmp_path / "reg", trigger="zbot", class_word="robot", **settings)
    assert [i.caption for i in reg.items] == [f"a robot, {n}" for n in range(4)]
    assert all(i.caption == i.class_caption for i in reg.items)
    data = cached(read(folder, trigger="zbot").chained(reg))
    assert all(len({data[i].is_reg for i in indices}) == 1 for indices in epoch_batches(data, 3, 0, 0))
    assert (data[8].is_reg, data[8].base_target, data[8].weight) == (True, True, 0.1)
    assert not data[0].is_reg and not data[0].base_target


@pytest.mark.parametrize("settings, words", [
    ({"repeats": 0}, "repeats is 0"), ({"probability": 0.0}, "probability is 0; it must be at least 0.001"),
    ({"probability": 1.5}, "probability is 1.5"),
    ({"timestep_offset": 9.0}, "timestep_offset is 9; it must be at least -8 and at most 8"),
    ({"loss_weight": -1.0}, "loss_weight is -1; it must be at least 0"), ({"base_target": True},
    "base_target is on but is_reg is off"),
])  # fmt: skip
def test_weights_that_cannot_be_are_refused(folder, settings, words):
    with pytest.raises(UserError, match=words):
        DatasetSettings(folder, **settings)


def test_a_step_draws_one_of_several_captions_with_its_class_caption(folder):
    (folder / "0.txt").write_text("[trigger] one\n[trigger] two\n[trigger] three")
    options = CaptionSettings(several="choose")
    data = cached(read(folder, trigger="zbot", class_word="robot", caption_options=options))
    found = [data.draw(0, random.Random(n)) for n in range(40)]
    pairs = {
        text: class_text for text, class_text in zip(data.items[0].captions, data.items[0].class_captions, strict=True)
    }
    for text, class_text in pairs.items():
        (one,) = {id(s.class_embeds) for s in found if s.embeds is data.embeds[text]}
        assert one == id(data.embeds[class_text])


def test_captions_are_dropped_as_often_as_asked_with_an_embedding_of_their_own(folder):
    options = CaptionSettings(dropout=0.25, dropout_caption="[trigger]")
    data = cached(read(folder, trigger="zbot", class_word="robot", caption_options=options))
    found = [data.draw(0, random.Random(n)) for n in range(1000)]
    said = Counter((id(s.embeds), id(s.class_embeds)) for s in found)
    own, dropped = ((id(data.embeds[a]), id(data.embeds[b])) for a, b in (("zbot 0", "robot 0"), ("zbot", "robot")))
    assert set(said) == {own, dropped} and 200 < said[dropped] < 300
    plain = cached(read(folder, trigger="zbot"))
    assert all(plain.draw(0, random.Random(n)).embeds is plain.embeds["zbot 0"] for n in range(50))


@pytest.fixture
def edits(folder, tmp_path):
    """Two reference folders: one of the images' shape, one of other shapes and another ending."""
    for number in range(8):
        picture(tmp_path / "near" / f"{number}.png", (64, 64), (0, number, 0), None)
        picture(tmp_path / "far" / f"{number}.jpg", (64 + 32 * number, 64), (0, number * 9, 9), None)
    return tmp_path / "near", tmp_path / "far"


def test_references_are_combined_or_one_is_drawn(folder, edits):
    both = cached(read(folder, references=edits))
    assert [len(both.draw(i, random.Random(0)).references) for i in range(8)] == [2] * 8
    one = cached(read(folder, references=edits, reference_options=ReferenceSettings(sampling="random")))
    drawn_shapes = Counter(tuple(one.draw(3, random.Random(n)).references[0].shape) for n in range(100))
    assert (
        set(drawn_shapes.values()) == {min(drawn_shapes.values()), max(drawn_shapes.values())}
        and len(drawn_shapes) == 2
    )
    assert min(drawn_shapes.values()) > 30
    assert [s.references[0].shape for s in (one[3], one[3])] == [one[3].references[0].shape] * 2


def test_up_to_ten_reference_folders_are_given_in_order(folder, edits):
    data = cached(read(folder, references=edits * 5))
    assert [view.path.parent.name for view in data.items[3].references] == ["near", "far"] * 5
    assert len(data[3].references) == 10 and data.tokens() > 10 * data[3].latent[0, 0].numel()


def test_loose_references_are_flipped_with_their_image(folder, edits):
    items = read(folder, references=edits[1:], crop_options=CropSettings(flip_x=True, flip_y=True)).items[:4]
    assert [(i.references[0].crop.flip_x, i.references[0].crop.flip_y) for i in items] == [
        (i.view.crop.flip_x, i.view.crop.flip_y) for i in items
    ]
    assert len({(i.view.crop.flip_x, i.view.crop.flip_y) for i in items}) == 4


def test_references_are_dropped_as_often_as_asked(folder, edits):
    data = cached(read(folder, references=edits, reference_options=ReferenceSettings(dropout=0.5)))
    counts = Counter(len(data.draw(0, random.Random(n)).references) for n in range(200))
    assert set(counts) == {0, 2} and 70 < counts[0] < 130


def test_references_of_other_sizes_share_batches(folder, edits):
    """Batches are full whatever the references' sizes, and equal sizes come together as far as that goes."""
    data = cached(read(folder, references=edits[1:]))
    assert len({data.shape(i) for i in range(8)}) > 2
    assert sorted(len(b) for b in epoch_batches(data, 4, 0, 0)) == [4, 4]
    assert sorted(len(b) for b in epoch_batches(data, 3, 0, 0)) == [2, 3, 3]


def test_mixed_references_train_like_single_ones(folder, edits):
    """A batch whose samples have references of different sizes, or none, predicts what each sample does alone."""
    from support import tiny_flux2

    from flux2_train.host.borrowed.velocity import Condition, velocity

    data = cached(read(folder, references=edits[1:]))
    mixed = [data[0], data[5], replace(data[2], references=())]
    model = tiny_flux2()
    x, t = torch.randn(3, *data[0].latent.shape[1:]), torch.tensor([0.2, 0.5, 0.8])
    conditions = [Condition(s.embeds, s.references) for s in mixed]
    with torch.inference_mode():
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        together = velocity(model, x, t, conditions)
        alone = torch.cat([velocity(model, x[i : i + 1], t[i : i + 1], conditions[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_partners_that_are_missing_or_surplus_are_named(folder, edits):
    (edits[0] / "3.png").unlink()
    picture(edits[1] / "left over.png", caption=None)
    with pytest.raises(UserError, match="1 image has no reference: .*near holds no image named 3"):
        read(folder, references=edits)
    assert any(
        "far has references that belong to no image: left over" in w
        for w in read(folder, references=edits[1:]).warnings
    )
    picture(edits[1] / "0.png", caption=None)
    with pytest.raises(UserError, match="far has 0.jpg and 0.png; only one file"):
        read(folder, references=edits[1:])
    with pytest.raises(UserError, match="references names 11 folders; at most 10"):
        read(folder, references=(edits[0],) * 11)


def test_broken_partners_are_named(folder, edits):
    (edits[0] / "2.png").write_bytes(b"broken")
    dataset = read(folder, references=edits[:1])
    assert len(dataset.items) == 7 and any("2.png (partner of 2.png) cannot be read" in s for s in dataset.skipped)
    strict = ReferenceSettings(kind="strict")
    dataset = read(folder, references=edits[1:], reference_options=strict)
    assert [i.path.stem for i in dataset.items] == ["0"]
    assert any("1.jpg is 96x64 and 1.png 64x64: they must have the same shape" in s for s in dataset.skipped)


def test_loose_references_have_their_own_shape_and_resolution(folder, edits):
    views = {i.path.stem: i.references[0] for i in read(folder, references=edits[1:]).items}
    assert views["0"].crop.size == (64, 64) and views["2"].crop.size[0] > views["2"].crop.size[1]
    larger = (
        read(folder, references=edits[1:], reference_options=ReferenceSettings(resolution=128)).items[0].references[0]
    )
    assert larger.crop.size == (128, 128)


crop_options = st.builds(
    CropSettings, crop_aspect=st.sampled_from(choices(CropSettings, "crop_aspect")), aspects=st.just((0.5, 1.0, 2.0)),
    seed=st.integers(0, 9),
    crop_style=st.sampled_from(["center", "random",
    "corner"]), flip_x=st.booleans(), flip_y=st.booleans(), upscale=st.booleans(),
) | st.builds(CropSettings, crop=st.just(False), flip_x=st.booleans())  # fmt: skip


@pytest.mark.long
@given(st.integers(16, 200), st.integers(16, 200), st.sampled_from([1, 2, 3]), crop_options)
def test_image_mask_and_strict_reference_show_the_same_place(tmp_path_factory, width, height, factor, options):
    """The mask is the image's own brightness and the reference the image itself, at another size."""
    if max(width, height) > 8 * min(width, height):
        return
    base = tmp_path_factory.mktemp("aligned")
    image = gradient((width, height))
    for name, size in (("data", 1), ("before", factor), ("masks", factor)):
        (base / name).mkdir()
        saved = image.resize((width * size, height * size), Image.Resampling.BICUBIC)
        (saved if name != "masks" else saved.getchannel("R")).save(base / name / "x.png")
    dataset = read(
        base / "data", prompt="x", crop_options=options, references=(base / "before",),
        mask_options=MaskSettings(base / "masks"),
        reference_options=ReferenceSettings(kind="strict"),
    )  # fmt: skip
    for item in dataset.items:
        (reference,) = item.references
        assert reference.crop.size == item.mask.view.crop.size == item.size
        assert all(side % 16 == 0 for side in item.size)
        here, there = (np.asarray(render(view), float) for view in (item.view, reference))
        assert np.abs(here - there).mean() < 6
        cells = here[..., 0].reshape(item.size[1] // 16, 16, item.size[0] // 16, 16).mean((1, 3)) + 1e-6
        values = mask_grid(item.mask)[0, 0].numpy()
        assert np.abs(values - cells / cells.mean()).max() < 0.25


def test_masks_from_a_folder_or_from_alpha(folder, tmp_path):
    (tmp_path / "masks").mkdir()
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(tmp_path / "masks" / "0.png")
    dataset = read(folder, mask_options=MaskSettings(tmp_path / "masks"))
    assert [item.mask is not None for item in dataset.items] == [True] + [False] * 7
    assert "7 images have no mask and count fully: 1, 2, 3, 4, 5 and 2 more" in dataset.warnings
    expected = torch.tensor([2.0, 2.0, 0.0, 0.0]).expand(1, 1, 4, 4)
    assert torch.equal(mask_grid(dataset.items[0].mask), expected)
    invert = read(folder, mask_options=MaskSettings(tmp_path / "masks", invert=True)).items[0].mask
    assert torch.equal(mask_grid(invert), expected.flip(-1))
    soft = read(folder, mask_options=MaskSettings(tmp_path / "masks", minimum=0.5)).items[0].mask
    assert torch.allclose(mask_grid(soft), torch.tensor([4 / 3, 4 / 3, 2 / 3, 2 / 3]).expand(1, 1, 4, 4))
    (tmp_path / "grey").mkdir()
    half.point(lambda value: max(value, 102)).save(tmp_path / "grey" / "0.png")  # 1 and 0.4 become 1 and 0.7
    soft = read(folder, mask_options=MaskSettings(tmp_path / "grey", minimum=0.5)).items[0].mask
    assert torch.allclose(mask_grid(soft), torch.tensor([1.0, 1.0, 0.7, 0.7]).expand(1, 1, 4, 4) / 0.85)
    rgba = Image.new("RGB", (64, 64), "red")
    rgba.putalpha(half)
    rgba.save(folder / "1.png")
    alpha = read(folder, mask_options=MaskSettings(alpha=True))
    assert [item.mask is not None for item in alpha.items] == [False, True] + [False] * 6
    assert torch.equal(mask_grid(alpha.items[1].mask), expected)
    assert alpha.items[1].view.background == "white"


def test_a_mask_that_hides_everything_is_refused_by_name(folder, tmp_path):
    picture(tmp_path / "masks" / "0.png", colour="black", caption=None)
    mask = read(folder, mask_options=MaskSettings(tmp_path / "masks")).items[0].mask
    with pytest.raises(UserError, match="The mask of 0.png is black all over"):
        mask_grid(mask)
    with pytest.raises(UserError, match="not from both"):
        MaskSettings(tmp_path, alpha=True)
    with pytest.raises(UserError, match="minimum is 2"):
        MaskSettings(minimum=2.0)


def test_masks_and_weights_in_the_loss():
    losses = torch.rand(3, 128, 2, 2)
    mask = torch.tensor([[2.0, 0.0], [2.0, 0.0]])[None, None]
    factors = place_weights([mask, None, None], [1.0, 1.0, 0.5], losses)
    means = weighted(losses, factors).flatten(1).mean(1)
    assert torch.allclose(means[0], losses[0, :, :, 0].mean())  # the mean over what counts
    assert torch.allclose(means[1:], losses[1:].flatten(1).mean(1) * torch.tensor([1.0, 0.5]))
    assert place_weights([None] * 3, [1.0] * 3, losses) is None and weighted(losses, None) is losses
    both = weighted(losses[:1], place_weights([mask], [0.25], losses[:1]))  # of one sample they multiply
    assert torch.allclose(both.mean(), 0.25 * means[0])


def test_base_targets_replace_only_their_samples():
    target, base = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    assert replaced(target, base, [False, True, False]).flatten(1).mean(1).tolist() == [0.0, 1.0, 0.0]


def test_batches_are_read_ahead_and_drawn_by_step_alone(folder):
    data = cached(read(folder, caption_options=CaptionSettings(dropout=0.5)))
    order = list(batches(data, 2, 0, 9, 0))
    whole = list(drawn(data, order, seed=5))
    assert [[s.item for s in batch] for batch in whole] == [[data.items[i] for i in indices] for indices in order]
    assert {id(s.embeds) for batch in whole for s in batch} > {id(data.embeds[""])}

    def names(found):
        return [[id(s.embeds) for s in batch] for batch in found]

    assert names(drawn(data, order[4:], seed=5, first=5)) == names(whole[4:])  # as after a resume
    assert names(drawn(data, order, seed=6)) != names(whole)
