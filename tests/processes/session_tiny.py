"""One process of several that ``accelerate launch`` started: whole runs of the tiny FLUX.2, with their folders.

Arguments: the pickled caches, the folder for LoRAs and runs, and a JSON list of runs: settings, how they begin, and
after which step and by what they end (a signal to the main process, or 0 for an exception in it).
"""

import json
import os
import pickle
import sys
from pathlib import Path

from flux2_train.host.system.bootstrap import import_comfyui
from flux2_train.train import processes

caches, place, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

with processes.launched() as accelerator:
    import_comfyui()
    import torch
    from support import brief_flux2

    from flux2_train.events import Completed
    from flux2_train.runs.folder import RunFolder
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.runs.resume import AUTO, NEW
    from flux2_train.runs.session import train
    from flux2_train.settings.earlier import settings_of

    def ending(at, by):
        def listen(event):
            if not isinstance(event, Completed) or event.step != at:
                return
            if by:
                os.kill(os.getpid(), by)
            raise RuntimeError(f"step {at} shall be the last")

        return listen

    for config, how, at, by in runs:
        trainer = new_trainer(brief_flux2(), *pickle.loads(caches.read_bytes()), settings_of(config), accelerator)
        begin = how if how in (AUTO, NEW) else RunFolder(place / "runs" / how)
        with torch.inference_mode():
            train(trainer, place / "loras", place / "runs", ending(at, by), begin)
processes.leave()
