"""Warnings about captions that other programs would cut.

ComfyUI encodes a caption of any length. The pipelines of Black Forest Labs and of diffusers cut it after 512 tokens,
counting those of the chat template around it. There the LoRA gets other embeds than it was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..bounded import is_file
from ..names import counted, shown
from .captions import beside
from .dataset import Dataset, Item

LIMIT = 512  # tokens: MAX_LENGTH of flux2's text_encoder.py, max_sequence_length of diffusers' Flux2(Klein)Pipeline
LISTED = 20  # captions that are named one by one


def warnings(dataset: Dataset, length: Callable[[str], int], more: Iterable[str] = ()) -> list[str]:
    """A sentence for each caption file, and each prompt in ``more``, of more than LIMIT tokens; the longest first.

    ``length`` gives the number of tokens of a text, including those of the template.
    """
    longest: dict[str, int] = {}
    for name, text in _named(dataset, more):
        longest[name] = max(longest.get(name, 0), length(text))
    long = sorted(((tokens, name) for name, tokens in longest.items() if tokens > LIMIT), reverse=True)
    sentences = [
        f"{shown(name)} has {tokens} tokens with the text encoder's template. All of them are encoded here, but the "
        f"pipelines of Black Forest Labs and diffusers cut at {LIMIT}: shorten it if the LoRA is for those."
        for tokens, name in long[:LISTED]
    ]
    rest = len(long) - LISTED
    return (
        [*sentences, f"{counted(rest, 'more caption has', 'more captions have')} more than {LIMIT} tokens."]
        if rest > 0
        else sentences
    )


def _named(dataset: Dataset, more: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Every text with the name that a message gives it: (name, text)."""
    for item in dataset.items:
        name = _file_of(item)
        yield from ((name, text) for text in (*item.captions, *item.class_captions))
    for source in dataset.sources:
        if source.caption_dropout:
            yield "The dropout caption", source.dropout_caption
            yield "The dropout caption", source.dropout_class_caption
    yield from ((f'The prompt "{text[:40]}..."', text) for text in more)


def _file_of(item: Item) -> str:
    """The name of the file that holds an item's caption; the image's name where no caption file lies beside it."""
    return next((path.name for path in beside(item.path) if is_file(path)), item.path.name)
