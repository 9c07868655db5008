"""Images that are kept out of training, so that their loss tells learning from memorising."""

from __future__ import annotations

import random

from ..data.samples import Samples
from ..errors import UserError
from ..settings.previews import ValidationLossSettings


def kept_out(samples: Samples, config: ValidationLossSettings) -> tuple[Samples, Samples]:
    """The items to train on and those to keep out of training: ``share`` of the images, drawn from ``seed``.

    An image goes with all its sizes and crops, and regularisation images stay. Raises UserError if nothing is left.
    """
    if not config.share:
        return samples, samples.only(())
    images = sorted({i.view.digest for i in samples.items if not samples.sources[i.source].is_reg})
    count = max(1, round(config.share * len(images)))
    if count >= len(images):
        raise UserError(
            f"A share of {config.share:g} keeps {count} of {len(images)} images out of training, which leaves none; "
            "lower the share or add images."
        )
    out = set(random.Random(f"{config.seed}/held out").sample(images, count))
    groups = ([], [])
    for index, item in enumerate(samples.items):
        groups[item.view.digest in out].append(index)
    return samples.only(groups[0]), samples.only(groups[1])


def also_trained(held_out: Samples, trained: Samples) -> str:
    """A sentence naming held-out images that are trained on all the same, empty where there are none."""
    known = {item.view.digest for item in trained.items}
    names = sorted({item.path.name for item in held_out.items if item.view.digest in known})
    if not names:
        return ""
    return (
        f"{len(names)} held-out images are trained on as well ({', '.join(names[:3])}): their loss says nothing about "
        "new images. Take them out of one of the two data sets."
    )
