"""Previews: the prompts of a Validation node, painted by ComfyUI's own sampler with the adapters as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor

from ..adapters.live import Adapters
from ..errors import UserError
from ..events import Event, Phase, Previewed, PreviewPicture, Warned
from ..host import identify
from ..host.borrowed.borrow import borrow
from ..host.sampling import painter
from ..host.sampling import sample as sampling
from ..host.sampling.references import INDEX
from ..host.system.memory import free, is_out_of_memory
from ..train.preview_request import PreviewRequest

Weights = Callable[[], AbstractContextManager]


class Previews:
    """Paints ``validation`` with the ``adapters`` of a run on ``trained``, its MODEL.

    The base model's pictures are painted once and kept. ``on`` turns false for good when memory ran out. Raises
    UserError if a text is not in ``embeds``, and for a second MODEL that the adapters do not fit.
    """

    def __init__(
        self, validation: PreviewRequest, trained, embeds: Mapping[str, Tensor], adapters: Adapters, method: str = INDEX
    ):
        self.validation, self.embeds, self.adapters, self.method = validation, embeds, adapters, method
        self.config, self.on = validation.config, True
        self.base: dict[int, Tensor] = {}
        self.references: list[list[Tensor]] = [[] for _ in self.config.prompts]
        if any(text not in embeds for text in self.config.texts):
            raise UserError(
                "The embeds lack validation prompts: wire Validation into Cache Embeds too and queue again."
            )
        second = validation.model
        self._settings(0).require_for(trained if second is None else second)
        if second is not None and identify.sizes(second) != identify.sizes(trained):
            raise UserError(
                f"Validation's second MODEL is {identify.flavour_name(second)}, the trained one "
                f"{identify.flavour_name(trained)}: wire a model of the same flavour, such as its distilled one."
            )

    def prepare(self) -> Iterator[Event]:
        """Encode the reference images. Call before the model is borrowed, so that the VAE has the device alone."""
        if any(self.validation.references):
            yield Phase("encoding reference images of previews")
            vae, resize = self.validation.vae, self.config.resize_references
            self.references = [painter.encode_references(vae, list(i), resize) for i in self.validation.references]

    def paint(self, borrowed, step: int, weights: Weights, memory_required: float) -> Iterator[Event]:
        """Paint after ``step`` steps on the MODEL as borrowed for training, which has its ``memory_required`` again.

        ``weights`` is a context manager that puts the weights to paint with in place.
        """
        try:
            with self._model(borrowed) as model:
                latents = yield from self._latents(model, step, weights)
            yield Previewed(step, tuple(self._pictures(model, step, latents)))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.on = False
            free()
            yield Warned(
                f"Memory ran out while painting previews of {self.config.width}x{self.config.height} after {step} "
                "steps: there will be no more of them, training goes on. Make them smaller next time."
            )
        painter.back(borrowed, memory_required)

    @contextmanager
    def _model(self, borrowed) -> Iterator:
        if self.validation.model is None:
            yield borrowed
            return
        with borrow(self.validation.model, self.adapters.deltas(), checkpointing=False) as second:
            yield second

    def _latents(self, model, step: int, weights: Weights):
        """Yield what is being done, return the latents: base where it is not known yet, and painted, by prompt."""
        found: list[tuple[Tensor | None, Tensor]] = []
        for number, prompt in enumerate(self.config.prompts):
            yield Phase(f"painting preview {number + 1} of {len(self.config.prompts)} after {step} steps")
            base = None
            if number not in self.base:
                with self.adapters.at_strength(0.0):
                    base = self._paint(model, number)
            with weights(), self.adapters.at_strength(self.config.strength_of(prompt)):
                found.append((base, self._paint(model, number)))
        return found

    def _settings(self, number: int) -> sampling.PaintSettings:
        asked = self.config
        return sampling.PaintSettings(
            asked.steps, asked.guidance, asked.sampler, asked.width, asked.height, asked.seed_of(number)
        )

    def _paint(self, model, number: int) -> Tensor:
        prompt, references = self.config.prompts[number].text, self.references[number]
        settings = self._settings(number)
        return painter.paint(model, self.embeds, prompt, self.config.negative, references, settings, self.method)

    def _pictures(self, model, step: int, latents: list[tuple[Tensor | None, Tensor]]) -> Iterator[PreviewPicture]:
        news = [latent for pair in latents for latent in pair if latent is not None]
        decoded = iter([image[0] for image in painter.decode(self.validation.vae, news)])
        for number, (base, _) in enumerate(latents):
            if base is not None:
                self.base[number] = next(decoded)
            prompt = self.config.prompts[number]
            yield PreviewPicture(prompt.label, self.base[number], next(decoded), self._asked(model, step, number))

    def _asked(self, model, step: int, number: int) -> dict:
        """Everything a picture was painted from, as it is written into its file."""
        asked, prompt = self.config, self.config.prompts[number]
        return {
            "prompt": prompt.text, "negative": asked.negative, "width": asked.width, "height": asked.height,
            "steps": sampling.steps_for(model, asked.steps), "guidance": asked.guidance, "sampler": asked.sampler,
            "seed": asked.seed_of(number), "references": len(self.references[number]), "training_steps": step,
            "strength": asked.strength_of(prompt), "transformer": identify.file_of(model),
        }  # fmt: skip
