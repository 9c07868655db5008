"""python -m bench.speed.kernels: what a step asks of a card, counted: operations that compute, and bytes they move.

One double and one single block of an eighth of klein-9b's width, with an eighth of its tokens at 1024 px and of the
rank, so that activations and weights are in the same proportion. They stand for blocks inside a deep model, so the
single block leaves out nothing, as the last one of a model would. Each operation reads its inputs once and writes its
outputs once; views cost nothing. An operation is what torch dispatches: comfy-kitchen's rotation and attention are one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from contextlib import suppress
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flux2_train.host.system.bootstrap import import_comfyui

from .contenders import CONTENDERS
from .problem import Problem, write_weights

FREE = ("aten::_unsafe_view", "aten::empty", "aten::new_empty", "aten::detach", "aten::lift", "aten::_reshape_alias")
STEP = 3  # the counted one: the first builds the optimizer's state


class Counted(TorchDispatchMode):
    """Counts operations by name, and the bytes of the tensors that they read and write."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes = Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        name = function._schema.name
        if not function.is_view and not name.startswith(FREE):
            self.kernels[name] += 1
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor))
        return found


class _Done(Exception):
    """The counted step is over."""


def count(name: str, problem: Problem) -> Counted:
    """Operations and bytes of one step of a contender, its optimizer included."""
    steps, counted = [], Counted()

    def done(loss: float | None) -> None:
        steps.append(loss)
        if len(steps) == STEP - 1:
            counted.__enter__()
        elif len(steps) == STEP:
            counted.__exit__(None, None, None)
            raise _Done

    import_comfyui()
    from flux2_train.host.borrowed import last_block

    with suppress(_Done), patch.object(last_block, "read_rows", lambda *_: None):
        CONTENDERS[name](problem, done)
    return counted


def main() -> None:
    """Print a row for each contender and mode, and the operations with --each."""
    root = argparse.ArgumentParser(prog="python -m bench.speed.kernels", description=__doc__)
    root.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["ours", "diffusers"])
    root.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    root.add_argument("--each", action="store_true", help="print every operation with its count")
    options = root.parse_args()
    torch.set_num_threads(1)
    sizes = {"hidden": 512, "double": 1, "single": 1, "context": 128, "tokens": 22**2, "text": 64, "rank": 2}
    with tempfile.TemporaryDirectory() as folder:
        for mode in (False, True):
            problem = Problem(f"{folder}/w.safetensors", dtype=options.dtype, checkpointing=mode, **sizes)
            write_weights(problem)
            for name in options.contenders:
                found = count(name, problem)
                row = {"contender": name, "checkpointing": mode, "operations": found.kernels.total()}
                print(json.dumps(row | {"megabytes": round(found.bytes / 1e6, 1)}))
                if options.each:
                    print(json.dumps(dict(found.kernels.most_common())))


if __name__ == "__main__":
    main()
