"""The next run of a name says what has changed in its data set since the last one."""

# ruff: noqa: F401, F811 - pytest finds fixtures by the names that are imported, and gives them as arguments

from dataclasses import replace

import pytest
from resuming import CONFIG, Listener, caches, model, session

from flux2_train import events
from flux2_train.runs import resume
from flux2_train.runs.prepare import new_trainer


def told(model, pair, place) -> list[str]:
    """The warnings of a new run on that data set."""
    listener = Listener()
    session(new_trainer(model, *pair, replace(CONFIG, steps=1)), place, listener, resume.NEW)
    return [event.text for event in listener.of(events.Warned)]


@pytest.mark.long
def test_what_was_left_out_is_said_once(model, caches, tmp_path):
    dataset = caches[0].dataset
    first, *others = (replace(item, view=replace(item.view, path=tmp_path / f"{n}.png"))
                      for n, item in enumerate(dataset.items))  # fmt: skip

    def with_items(items, **changes):
        changed = replace(dataset, items=tuple(items), **changes)
        return tuple(replace(cache, dataset=changed) for cache in caches)

    def read(pair):  # the latents of a moved file are those of the file
        moved = {
            item.view: caches[1].latents[old.view] for item, old in zip([first, *others], dataset.items, strict=True)
        }
        return pair[0], replace(pair[1], latents=moved)

    whole = read(with_items([first, *others]))
    without = read(with_items(others, excluded=(first.path,)))
    assert told(model, whole, tmp_path) == []
    assert told(model, without, tmp_path) == ["Since the run run the data set has changed: 1 left out (0.png)."]
    assert told(model, without, tmp_path) == []
