"""Images that are held out of training. Their loss shows whether a run learns or memorises."""

from __future__ import annotations

import random

from ..errors import UserError
from ..events import Warned
from ..names import counted
from ..settings.previews import ValidationLossSettings
from .samples import Samples


def kept_out(samples: Samples, config: ValidationLossSettings) -> tuple[Samples, Samples]:
    """(samples to train on, samples held out): ``config.share`` of the images are held out, drawn from ``config.seed``.

    All sizes and crops of an image go together. Regularisation images are never held out. Raises UserError if no image
    is left to train on.
    """
    if not config.share:
        return samples, samples.only(())
    images = sorted({i.view.digest for i in samples.items if not samples.sources[i.source].is_reg})
    count = max(1, round(config.share * len(images)))
    if count >= len(images):
        raise UserError(
            f"A share of {config.share:g} keeps {count} of {counted(len(images), 'image')} out of training, "
            "which leaves none; lower the share or add images."
        )
    held_out = set(random.Random(f"{config.seed}/held out").sample(images, count))
    groups = ([], [])
    for index, item in enumerate(samples.items):
        groups[item.view.digest in held_out].append(index)
    return samples.only(groups[0]), samples.only(groups[1])


def also_trained(held_out: Samples, trained: Samples) -> Warned | None:
    """A warning that names held-out images which are trained on as well; ``None`` if there are none."""
    trained_on = {item.view.digest for item in trained.items}
    names = sorted({item.path.name for item in held_out.items if item.view.digest in trained_on})
    if not names:
        return None
    images = counted(len(names), "held-out image is", "held-out images are")
    return Warned(
        f"{images} trained on as well ({', '.join(names[:3])}): the held-out "
        "loss says nothing about images it was not trained on. Take each of them out of one of the two data sets.",
        pictures=tuple(names[:3]),
    )
