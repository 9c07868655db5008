"""Encoded once, again only if something that matters changed, and never missed: counted."""

from dataclasses import replace

import comfy.quant_ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from pictures import picture, read
from PIL import Image
from support import CPU

from flux2_train.data.cache import cache_embeds, cache_latents
from flux2_train.data.samples import samples
from flux2_train.data.store import Store
from flux2_train.host.encoding import encode
from flux2_train.settings.crops import CropSettings
from flux2_train.settings.dataset_folder import MaskSettings


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        picture(tmp_path / "data" / f"{name}.png", colour=colour, caption=f"[trigger] {name}")
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def latents(nano, store):
    """Encodes a data set's images with nano's VAE (or another one); gives how many had to be."""

    def run(dataset, vae=nano.vae, **options):
        with torch.inference_mode():
            return cache_latents(dataset, encode.ImageEncoder(vae, **options), store)[1].encoded

    return run


@pytest.fixture
def embeds(nano, store):
    def run(dataset, clip=nano.clip, more=()):
        with torch.inference_mode():
            return cache_embeds(dataset, encode.TextEncoder(clip), store, more)[1].encoded

    return run


@pytest.mark.long
def test_nothing_is_encoded_twice(folder, latents, embeds):
    assert (latents(read(folder)), embeds(read(folder, trigger="zbot", class_word="toy"))) == (3, 7)
    assert (latents(read(folder)), embeds(read(folder, trigger="zbot", class_word="toy"))) == (0, 0)


def test_a_replaced_image_of_equal_name_and_size_is_encoded_again(folder, latents):
    latents(read(folder))
    size = (folder / "b.png").stat().st_size
    Image.new("RGB", (64, 64), (0, 0, 254)).save(folder / "b.png")
    assert (folder / "b.png").stat().st_size == size
    assert latents(read(folder)) == 1


def test_a_moved_renamed_or_touched_image_is_not(folder, latents):
    latents(read(folder))
    (folder / "b.png").rename(folder / "z.png")
    (folder / "b.txt").rename(folder / "z.txt")
    (folder / "a.png").touch()
    folder.rename(folder.parent / "moved")
    assert latents(read(folder.parent / "moved")) == 0


@pytest.mark.long
def test_an_edited_caption_is_encoded_again_and_no_image(folder, latents, embeds):
    latents(read(folder))
    embeds(read(folder))
    (folder / "b.txt").write_text("another")
    assert (latents(read(folder)), embeds(read(folder))) == (0, 1)
    assert embeds(read(folder), more=["a preview", "another"]) == 1
    assert embeds(read(folder, trigger="zbot")) == 3
    assert embeds(read(folder, trigger="zbot", class_word="toy")) == 3


def test_a_changed_crop_encodes_exactly_the_images_it_changes(folder, latents):
    picture(folder / "wide.png", (128, 64), "white")
    assert latents(read(folder)) == 4
    assert latents(read(folder, crop_options=CropSettings(crop_aspect="square"))) == 1
    assert latents(read(folder, crop_options=CropSettings(crop_aspect="square", crop_style="corner"))) == 1
    assert latents(read(folder, resolution=128)) == 4
    assert latents(read(folder, crop_options=CropSettings(flip_x=True))) == 4
    assert latents(read(folder, crop_options=CropSettings(flip_x=True))) == 0


def test_a_changed_background_encodes_exactly_the_transparent_images(folder, latents):
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save(folder / "clear.png")
    (folder / "clear.txt").write_text("x")
    assert latents(read(folder)) == 4
    assert latents(read(folder, background="black")) == 1


def test_another_vae_precision_or_tile_is_another_cache(folder, latents, nano):
    import copy

    dataset = read(folder)
    assert latents(dataset) == 3
    other = copy.copy(nano.vae)
    other.first_stage_model = copy.deepcopy(nano.vae.first_stage_model)
    assert latents(dataset, other) == 0  # the same weights
    with torch.inference_mode():
        other.first_stage_model.encoder.weight.view(-1)[0] += 1
    assert latents(dataset, other) == 3
    assert latents(dataset, precision="bf16") == 3 and latents(dataset, precision="fp32") == 0
    assert latents(dataset, tile=128) == 3 and latents(dataset) == 0


@pytest.mark.long
def test_another_text_encoder_or_a_lora_on_it_is_another_cache(folder, embeds):
    from test_encode import ENCODERS

    dataset, clip, other = read(folder), ENCODERS["klein-4b"](), ENCODERS["klein-4b"]()
    assert embeds(dataset, clip) == 4
    assert embeds(dataset, clip.clone()) == embeds(dataset, other) == 0  # the same weights
    name = next(k for k in clip.cond_stage_model.state_dict() if k.endswith("q_proj.weight"))
    shape = clip.cond_stage_model.state_dict()[name].shape

    def with_lora(strength):
        patched = clip.clone()
        patched.add_patches({name: ("diff", (torch.ones(shape) * 1e-2,))}, strength_patch=strength)
        return patched

    assert embeds(dataset, with_lora(1.0)) == 4
    assert embeds(dataset, clip) == embeds(dataset, with_lora(1.0)) == 0  # also while ComfyUI has it merged
    assert embeds(dataset, with_lora(0.5)) == 4
    with torch.inference_mode():
        other.cond_stage_model.get_parameter(name).view(-1)[0] += 1
    assert embeds(dataset, other) == 4


def test_a_changed_mask_or_reference_is_made_again_alone(folder, latents):
    base = folder.parent
    for name in "abc":
        picture(base / "masks" / f"{name}.png", colour="white", caption=None)
        picture(base / "before" / f"{name}.png", colour=(0, 0, ord(name)), caption=None)

    def made(**mask):
        return latents(read(folder, mask_options=MaskSettings(base / "masks", **mask), references=(base / "before",)))

    assert (made(), made()) == (7, 0)  # three images, three references and one mask, as all are white
    half = Image.new("L", (64, 64), 255)
    half.paste(0, (0, 0, 32, 64))
    half.save(base / "masks" / "b.png")
    assert made() == 1
    assert made(minimum=0.5) == 2 and made(invert=True, minimum=0.5) == 2
    picture(base / "before" / "c.png", colour="black", caption=None)
    assert made() == 1


def test_how_an_encoders_weights_are_stored_identifies_it():
    """fp8 and bf16 never mix, nor do two scales of the same 8-bit values."""
    weight = torch.randn(32, 64)

    def identity(stored):
        module = torch.nn.Linear(64, 32)
        module.weight = torch.nn.Parameter(stored, requires_grad=False)
        module.bias = None
        return encode.identity_of(module, ModelPatcher(module, CPU, CPU), [])

    layout = comfy.quant_ops.QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    scaled = comfy.quant_ops.QuantizedTensor.from_float
    kinds = [weight, weight.bfloat16(), weight.half(), weight.to(torch.float8_e4m3fn)]
    kinds += [scaled(w, layout, scale="recalculate") for w in (weight, 2 * weight)]
    assert torch.equal(*(w._qdata.view(torch.uint8) for w in kinds[-2:]))
    assert len({identity(w) for w in kinds}) == len(kinds)
    assert identity(weight) == identity(weight.clone())


def test_equal_content_is_encoded_once(folder, latents, embeds):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "copy.txt").write_text((folder / "a.txt").read_text())
    assert (latents(read(folder)), embeds(read(folder))) == (3, 4)


def test_interrupting_keeps_what_is_done(folder, store, nano):
    class Interrupted(BaseException):
        """As ComfyUI's is: no Exception."""

    def cancel_after_two(done, total):
        if done == 2:
            raise Interrupted

    with torch.inference_mode():
        encoder = encode.ImageEncoder(nano.vae)
        with pytest.raises(Interrupted):
            cache_latents(read(folder), encoder, store, report=cancel_after_two)
        assert cache_latents(read(folder), encoder, store)[1].encoded == 1


def test_batches_of_one_size_are_what_single_images_are(folder, nano, tmp_path):
    picture(folder / "wide.png", (128, 64), "white")
    dataset = read(folder)
    with torch.inference_mode():
        encoder = encode.ImageEncoder(nano.vae)
        one = cache_latents(dataset, encoder, Store(tmp_path / "one"))[0].latents
        many = cache_latents(dataset, encoder, Store(tmp_path / "many"), batch=4)[0].latents
        for view in dataset.views():
            assert one[view].shape == view.latent_shape
            assert torch.allclose(one[view], many[view], atol=1e-5)


@pytest.mark.long
def test_what_training_reads_is_what_the_encoders_make(robot, nano, store):
    with torch.inference_mode():
        embeds, _ = cache_embeds(robot.dataset, encode.TextEncoder(nano.clip), store)
        latents, _ = cache_latents(robot.dataset, encode.ImageEncoder(nano.vae), store)
        stored, direct = samples(embeds, latents), samples(robot.embeds, robot.latents)
        assert len(stored) == len(direct) == 6
        for one, other in zip(stored, direct, strict=True):
            assert torch.equal(one.embeds, other.embeds) and torch.equal(one.class_embeds, other.class_embeds)
            assert torch.allclose(one.latent, other.latent, atol=1e-5) and one.shape == other.shape
        assert [s.item for s in stored[1:3]] == list(robot.dataset.items[1:3])
        assert stored.tokens() == max(s.tokens for s in direct)
    assert [stored.shape(i) for i in range(6)] == [s.shape for s in direct]


def test_the_fingerprint_knows_how_a_folder_is_seen(folder):
    prints = {read(folder, **changes).fingerprint for changes in (
        {}, {"repeats": 2}, {"loss_weight": 2.0}, {"is_reg": True},
    )}  # fmt: skip
    assert len(prints) == 4
    assert replace(read(folder), settings="other").fingerprint == read(folder).fingerprint
