"""Image tokens that skip blocks (TREAD): around the blocks of ComfyUI's model, without changing its forward.

Where a route begins, the tokens that are kept are gathered for each sample, with their rotary embeddings. Where it
ends, they go back to their places; the others are the tensors that came in. Recomputation happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...streaming.uploads import uploaded

KEY = "flux2_train_routing"  # of transformer_options


@dataclass(frozen=True)
class Route:
    """Blocks ``first`` to ``last``, both included, and ``kept`` (B, K), ascending: the image tokens that they see.

    Double and single blocks are numbered together, as in ``planning.layout``.
    """

    first: int
    last: int
    kept: Tensor

    def rows(self, which: slice | Sequence[int]) -> Route:
        """The route of some samples of the batch."""
        return replace(self, kept=self.kept[which])


class TokenRouting:
    """The routes of one pass of the model, on images of ``image`` tokens. References behind them are always kept."""

    def __init__(self, routes: Sequence[Route], image: int, device: torch.device):
        self.routes = [replace(route, kept=uploaded(route.kept, device)) for route in routes]
        self.image = image
        self.skipping: Tensor | None = None  # (B, image + references, D), as it was where the route began
        self.index: Tensor | None = None  # (B, kept + references), places in ``skipping``
        self.pe: Tensor | None = None

    def move(self, device: torch.device, skipping: Tensor | None) -> None:
        """Go on with blocks on another device, to which ``skipping`` has been copied."""
        self.routes = [replace(route, kept=route.kept.to(device)) for route in self.routes]
        if skipping is not None:
            self.skipping, self.index, self.pe = skipping, self.index.to(device), self.pe.to(device)

    def through(self, block: Callable, number: int, args: tuple, kwargs: dict):
        """Run block ``number`` on the tokens that its route keeps, or on all where it has none."""
        route = next((route for route in self.routes if route.first <= number <= route.last), None)
        if route is None:
            return block(*args, **kwargs)
        if kwargs.get("attn_mask") is not None:
            raise NotImplementedError("token routing with an attention mask: FLUX.2 has none")
        if "img" in kwargs:
            return self._double(route, block, number, args, kwargs)
        return self._single(route, block, number, args, kwargs)

    def _double(self, route: Route, block: Callable, number: int, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor]:
        text = kwargs["txt"].shape[1]
        if number == route.first:
            kwargs["img"] = self._begin(route, kwargs["img"], text, kwargs["pe"])
        image, text_stream = block(*args, **self._routed(route, kwargs, 0))
        return (self._end(image) if number == route.last else image), text_stream

    def _single(self, route: Route, block: Callable, number: int, args: tuple, kwargs: dict) -> Tensor:
        stream, *others = args
        text = kwargs["transformer_options"]["img_slice"][0]
        if number == route.first:
            kept = self._begin(route, stream[:, text:], text, kwargs["pe"])
            stream = torch.cat((stream[:, :text], kept), 1)
        stream = block(stream, *others, **self._routed(route, kwargs, text))
        if number < route.last:
            return stream
        return torch.cat((stream[:, :text], self._end(stream[:, text:])), 1)

    def _begin(self, route: Route, image: Tensor, text: int, pe: Tensor) -> Tensor:
        """The kept tokens of ``image`` (B, image + references, D), whose other tokens wait for ``_end``."""
        batch, tokens, _ = image.shape
        references = torch.arange(self.image, tokens, device=image.device).expand(batch, -1)
        self.skipping, self.index = image, torch.cat((route.kept, references), 1)
        words = torch.arange(text, device=image.device).expand(batch, -1)
        joint = torch.cat((words, self.index + text), 1)
        self.pe = torch.take_along_dim(pe, joint[:, None, :, None, None, None], 2)
        return torch.take_along_dim(image, self.index[:, :, None], 1)

    def _end(self, image: Tensor) -> Tensor:
        """All tokens again: those that went through the blocks, and between them those that skipped."""
        index = self.index[:, :, None].expand_as(image)
        everything = self.skipping.scatter(1, index, image)
        self.skipping = self.index = self.pe = None
        return everything

    def _routed(self, route: Route, kwargs: dict, text: int) -> dict:
        """The arguments of a block that sees fewer image tokens. ``text`` tokens come before them in its stream."""
        fewer = self.image - route.kept.shape[1]

        def moved(place: int | None) -> int | None:
            return place - fewer if place is not None and place >= text + self.image else place

        dims = {
            name: [(moved(start), moved(end), which) for start, end, which in kwargs[name]]
            for name in ("modulation_dims_img", "modulation_dims")
            if kwargs.get(name)
        }
        return {**kwargs, **dims, "pe": self.pe}


def routed(run: Callable, original: Callable, number: int, *args, **kwargs):
    """``run`` (see ``recompute.Recompute``) for a block, in a pass that may route tokens."""
    routing: TokenRouting | None = kwargs.get("transformer_options", {}).get(KEY)

    def block(*args, **kwargs):
        return run(original, number, *args, **kwargs)

    return block(*args, **kwargs) if routing is None else routing.through(block, number, args, kwargs)
