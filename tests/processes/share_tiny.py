"""One process of several that ``accelerate launch`` started: trains with the whole base and with a shared one.

Arguments: the pickled caches, the file to write (with the process's number behind it), settings as JSON, and formats of
the weights; but for the first one preservation is off. What is written: for each format whether the LoRAs, losses and
steps are the same, and what was received.
"""

import pickle
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from flux2_train.host.system.bootstrap import import_comfyui
from flux2_train.settings.earlier import settings_of
from flux2_train.train import processes

caches, target, config, *formats = sys.argv[1:]


def trained(model, config):
    """(trainer, bytes received in each step, bytes of the base that this process has kept)."""
    trainer = new_trainer(model, *pickle.loads(Path(caches).read_bytes()), config, accelerator)
    via, received, kept = trainer.memory.how.via, [], 0
    with torch.inference_mode(), closing(trainer.run()) as run:
        for event in run if trainer.is_main else trainer._run():
            if isinstance(event, Completed) and via:
                received.append(via.received)
                kept = sum(group.own.nbytes for group in trainer.memory.how.streamed.ring.groups)
    return trainer, received, kept


def same(one, other):
    """Whether two trainers have learned the same bits, from the same losses."""
    pairs = zip(one.adapters.trainable(), other.adapters.trainable(), strict=True)
    return one.history.losses == other.history.losses and all(torch.equal(a, b) for a, b in pairs)


with processes.launched() as accelerator:
    import_comfyui()
    import torch
    from support import tiny_flux2, with_few_words

    from flux2_train.events import Completed
    from flux2_train.runs.prepare import new_trainer

    given, results = settings_of(config), {}
    for format in formats:
        config = given if format == formats[0] else replace(given, preservation=0.0)
        whole, _, _ = trained(with_few_words(tiny_flux2(format=format, single=6)), config)
        shared_config = replace(config, memory=replace(config.memory, share_base=True))
        shared, received, kept = trained(with_few_words(tiny_flux2(format=format, single=6)), shared_config)
        plan = shared.memory.plan.estimate
        results[format] = {
            "same": same(whole, shared), "moved": any(p.any() for p in shared.adapters.trainable()[1::2]),
            "received": received, "planned": plan.traffic, "kept": kept, "weights": plan.parts["weights"],
            "whole": whole.memory.plan.estimate.parts["weights"], "text": shared.memory.describe(),
        }  # fmt: skip
    Path(f"{target}.{accelerator.process_index}").write_bytes(pickle.dumps(results))
processes.leave()
