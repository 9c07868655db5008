"""Captions that the pipelines of FLUX.2's makers cut are named with their length; what is encoded stays ComfyUI's."""

from dataclasses import replace
from pathlib import Path

import comfy.text_encoders.flux
import pytest
import torch
import transformers
from pictures import picture, read

from flux2_train.data import long_captions
from flux2_train.data.cache import cache_embeds
from flux2_train.data.store import Store
from flux2_train.host.encoding import encode
from flux2_train.settings.dataset_folder import ONE_PROMPT, CaptionSettings

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokens():
    """Length of a text as the pipelines count it: Qwen's tokenizer with the chat template, nothing cut."""
    folder = Path(comfy.text_encoders.flux.__file__).parent / "qwen25_tokenizer"
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(TEMPLATE.format(text))["input_ids"])


@pytest.fixture
def encoder(nano):
    with torch.inference_mode(), encode.TextEncoder(nano.clip) as found:
        yield found


def words(tokens, wanted):
    """A caption of exactly so many tokens with its template."""
    text = " ".join(["fox"] * (wanted - tokens("fox") + 1))
    assert tokens(text) == wanted
    return text


def test_files_are_named_with_their_tokens_the_longest_first(tmp_path, tokens, encoder):
    for name, length in (("short", 100), ("full", 512), ("long", 513), ("longest", 700)):
        picture(tmp_path / f"{name}.png", colour=(length % 256, 0, 0), caption=words(tokens, length))
    found = long_captions.warnings(read(tmp_path), encoder.length)
    assert [line.split(" with ")[0] for line in found] == ["longest.txt has 700 tokens", "long.txt has 513 tokens"]
    assert all("cut at 512: shorten it" in line for line in found)


def test_all_of_a_long_caption_is_encoded_as_comfyui_does(tmp_path, tokens, encoder, nano):
    text = words(tokens, 600)
    picture(tmp_path / "data" / "a.png", caption=text)
    embeds, _ = cache_embeds(read(tmp_path / "data"), encoder, Store(tmp_path / "store"))
    expected = nano.clip.encode_from_tokens_scheduled(nano.clip.tokenize(text))[0][0]
    assert embeds.embeds[text].shape[1] == 600
    assert torch.equal(embeds.embeds[text], expected.to(embeds.embeds[text]))


def test_prompts_class_captions_and_dropout_captions_are_looked_at(tmp_path, tokens, encoder):
    picture(tmp_path / "a.png", caption="[trigger] " + words(tokens, 505))
    dropout = CaptionSettings(dropout=0.5, dropout_caption=words(tokens, 530))
    dataset = read(tmp_path, trigger="zbot", class_word="a toy of wood and tin and cloth", caption_options=dropout)
    found = long_captions.warnings(dataset, encoder.length, ["a cat", words(tokens, 540)])
    longest = max(map(tokens, (*dataset.items[0].captions, *dataset.items[0].class_captions)))
    assert longest > max(map(tokens, dataset.items[0].captions))  # of the class caption
    source = dataset.sources[0]
    dropped = max(map(tokens, (source.dropout_caption, source.dropout_class_caption)))  # with their words in front
    assert 540 > dropped > 530 > longest
    assert [line.split(" tokens")[0] for line in found] == [
        f'The prompt "{"fox " * 10}..." has 540', f"The dropout caption has {dropped}", f"a.txt has {longest}",
    ]  # fmt: skip


def test_without_a_caption_file_the_image_is_named_and_many_are_counted(tmp_path, tokens, encoder):
    for number in range(long_captions.LISTED + 3):
        picture(tmp_path / f"{number}.png", colour=(number, 0, 0), caption=None)
    dataset = read(tmp_path, captions=ONE_PROMPT, prompt=words(tokens, 520))
    found = long_captions.warnings(dataset, encoder.length)
    assert len(found) == long_captions.LISTED + 1 and found[0].split(" has ")[0].endswith(".png")
    assert found[-1] == "3 more captions have more than 512 tokens."


def test_nothing_is_said_of_short_captions(robot, encoder):
    assert long_captions.warnings(replace(robot.dataset), encoder.length, ["a cat"]) == []
