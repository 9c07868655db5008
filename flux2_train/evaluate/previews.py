"""Previews: the prompts of a Validation node, painted by ComfyUI's own sampler with the adapters of that moment."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from ..adapters.live import Adapters
from ..errors import UserError
from ..events import Event, Phase, Previewed, PreviewPicture, Warned
from ..host import identify
from ..host.borrowed.borrow import borrow
from ..host.graph_types import ModelPatcher
from ..host.sampling import painter
from ..host.sampling import sample as sampling
from ..host.sampling.references import INDEX
from ..host.system.memory import free, is_out_of_memory
from ..names import counted
from ..settings.previews import Prompt
from ..settings.steering import CHANGE
from ..train.preview_request import PreviewRequest
from .copies import TrainingPictures, warnings_of

Weights = Callable[[], AbstractContextManager]


class Previews:
    """Paints the prompts of ``request`` with the ``adapters`` of a run. ``trained`` is the run's MODEL.

    The base model's pictures are painted once and kept. After memory has run out once, ``on`` is false and nothing more
    is painted. ``prompts`` are all that were ever painted, ``shown`` the places of those that are painted now, and
    ``encode`` gives the embeds of a new text, or raises UserError that says why it cannot. ``together``: several
    processes paint the same, because they share the base, so none of them may leave anything out alone. Raises
    UserError if ``embeds`` lacks a prompt, or if the adapters do not fit the second MODEL.
    """

    def __init__(
        self,
        request: PreviewRequest,
        trained: ModelPatcher,
        embeds: Mapping[str, Tensor],
        adapters: Adapters,
        method: str = INDEX,
        together: bool = False,
    ):
        self.request, self.adapters, self.method, self.together = request, adapters, method, together
        self.embeds: ChainMap[str, Tensor] = ChainMap({}, embeds)
        self.encode: Callable[[str], Tensor] = _unknown
        self.config, self.on = request.config, True
        self.prompts: list[Prompt] = list(self.config.prompts)
        self.shown = list(range(len(self.prompts)))
        self.base: dict[int, Tensor] = {}
        self.base_latents: dict[int, Tensor] = {}
        self.pictures: TrainingPictures | None = None  # what previews are compared with, if they are
        self.copied: set[tuple[int, str]] = set()  # numbers of prompts, and the pictures that they were found to copy
        self.references: list[list[Tensor]] = [[] for _ in self.config.prompts]
        if any(text not in embeds for text in self.config.texts):
            raise UserError(
                "The embeds lack the prompts of the previews: wire Validation into Cache Embeds too and queue again."
            )
        second = request.model
        self._settings(0).require_for(trained if second is None else second)
        if second is not None and identify.sizes(second) != identify.sizes(trained):
            raise UserError(
                f"Validation's second MODEL is {identify.flavour_name(second)}, the trained one "
                f"{identify.flavour_name(trained)}: wire a model of the same flavour, such as its distilled one."
            )

    def prepare(self) -> Iterator[Event]:
        """Encode the reference images. Call before the model is borrowed, so that the VAE has the device to itself."""
        if any(self.request.references):
            yield Phase("encoding reference images of previews")
            vae, resize = self.request.vae, self.config.resize_references
            self.references[: len(self.request.references)] = [
                painter.encode_references(vae, list(i), resize) for i in self.request.references
            ]

    def choose(self, chosen: Sequence[tuple[str, ...]]) -> None:
        """Paint the texts that come last in ``chosen``, or the run's own prompts where it is empty.

        Each new text gets the next number, in the order of ``chosen``, and keeps it.
        """
        del self.prompts[len(self.config.prompts) :]
        self.shown = list(range(len(self.prompts)))
        for texts in chosen:
            self.shown = [self._number(text) for text in dict.fromkeys(texts)]
        self.references += [[] for _ in range(len(self.prompts) - len(self.references))]

    def _number(self, text: str) -> int:
        texts = [prompt.text for prompt in self.prompts]
        if text not in texts:
            self.prompts.append(Prompt(text))
            return len(texts)
        return texts.index(text)

    def encode_missing(self, texts: Sequence[str]) -> None:
        """Encode those of the texts whose embeds are not known yet. Raises UserError that says why it cannot."""
        for text in texts:
            if text not in self.embeds:
                self.embeds[text] = self.encode(text)

    def paint(self, borrowed: ModelPatcher, step: int, weights: Weights, memory_required: float) -> Iterator[Event]:
        """Paint the previews after ``step`` steps with the MODEL that is borrowed for training.

        ``weights`` gives a context manager that puts the weights to paint with in place. Afterwards ``memory_required``
        bytes of the device are free for training again.
        """
        try:
            self.encode_missing([self.prompts[number].text for number in self.shown])
            with self._model(borrowed) as model:
                latents = yield from self._latents(model, step, weights)
            pictures = tuple(self._pictures(model, step, latents))
            yield Previewed(step, pictures)
            yield from warnings_of(self.copied, step, pictures)
        except UserError as error:  # a run goes on, and a text that it was given cannot be encoded any more
            self.shown = [number for number in self.shown if self.prompts[number].text in self.embeds]
            yield Warned(f"Not all previews were painted after {step} steps: {error}", (CHANGE,))
        except Exception as error:
            if not is_out_of_memory(error) or self.together:
                raise
            self.on = False
            free()
            yield Warned(
                f"Memory ran out while painting previews of {'x'.join(map(str, self.config.largest))} after {step} "
                "steps: there will be no more of them, training goes on. Make them smaller next time."
            )
        painter.back(borrowed, memory_required)

    @contextmanager
    def _model(self, borrowed: ModelPatcher) -> Iterator[ModelPatcher]:
        if self.request.model is None:
            yield borrowed
            return
        with borrow(self.request.model, self.adapters.deltas(), checkpointing=False) as second:
            yield second

    def _latents(
        self, model: ModelPatcher, step: int, weights: Weights
    ) -> Generator[Event, None, list[tuple[Tensor | None, Tensor]]]:
        """Yield phases; return (base, painted) latents by prompt. base is None if that picture is known already."""
        latents: list[tuple[Tensor | None, Tensor]] = []
        for count, number in enumerate(self.shown, 1):
            yield Phase(f"painting preview {count} of {len(self.shown)} after {counted(step, 'step')}")
            prompt, base = self.prompts[number], None
            if number not in self.base:
                with self.adapters.at_strength(0.0):
                    base = self._paint(model, number)
            with weights(), self.adapters.at_strength(self.config.strength_of(prompt)):
                latents.append((base, self._paint(model, number)))
        return latents

    def _settings(self, number: int) -> sampling.PaintSettings:
        config, prompt = self.config, self.prompts[number]
        return sampling.PaintSettings(
            prompt.steps or config.steps, config.guidance, config.sampler, *config.size_of(prompt),
            config.seed_of(number, prompt),
        )  # fmt: skip

    def _paint(self, model: ModelPatcher, number: int) -> Tensor:
        prompt, references = self.prompts[number].text, self.references[number]
        settings = self._settings(number)
        return painter.paint(model, self.embeds, prompt, self.config.negative, references, settings, self.method)

    def _pictures(
        self, model: ModelPatcher, step: int, latents: list[tuple[Tensor | None, Tensor]]
    ) -> Iterator[PreviewPicture]:
        to_decode = [latent for pair in latents for latent in pair if latent is not None]
        decoded = iter([image[0] for image in painter.decode(self.request.vae, to_decode)])
        for number, (base, painted) in zip(self.shown, latents, strict=True):
            if base is not None:
                self.base[number], self.base_latents[number] = next(decoded), base
            asked = self._settings_used(model, step, number)
            nearest = self.pictures.nearest(painted, self.base_latents[number]) if self.pictures else None
            label, base_picture = self.prompts[number].label, self.base[number]
            yield PreviewPicture(label, base_picture, next(decoded), asked, number + 1, nearest)

    def _settings_used(self, model: ModelPatcher, step: int, number: int) -> dict:
        """All settings that a picture was painted with, as they are written into its file."""
        config, prompt, references = self.config, self.prompts[number], self.references[number]
        width, height = config.size_of(prompt)
        return {
            "prompt": prompt.text, "negative": config.negative, "width": width, "height": height,
            "steps": sampling.steps_for(model, prompt.steps or config.steps), "guidance": config.guidance,
            "sampler": config.sampler, "seed": config.seed_of(number, prompt), "references": len(references),
            "training_steps": step, "strength": config.strength_of(prompt), "transformer": identify.file_of(model),
        }  # fmt: skip


def _unknown(text: str) -> Tensor:
    raise UserError("nothing here can encode a new text; add it to Validation and Cache Embeds.")
