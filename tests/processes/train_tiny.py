"""One process of several that ``accelerate launch`` started: trains the tiny FLUX.2.

Arguments: the pickled caches, the file to write (with the process's number behind it), settings as JSON.
"""

import pickle
import sys
import time
from contextlib import closing
from pathlib import Path

from flux2_train.host.system.bootstrap import import_comfyui
from flux2_train.settings.earlier import settings_of
from flux2_train.train import processes

caches, target, config = sys.argv[1:]

with processes.launched() as accelerator:
    import_comfyui()
    import torch
    from support import brief_flux2

    from flux2_train.runs.prepare import new_trainer

    with processes.main_first(accelerator):
        time.sleep(0.5 * accelerator.is_main_process)  # or it might be first by chance
        with Path(f"{target}.order").open("a") as order:
            order.write(str(accelerator.process_index))
    trainer = new_trainer(brief_flux2(), *pickle.loads(Path(caches).read_bytes()), settings_of(config), accelerator)
    with torch.inference_mode(), closing(trainer.run()) as run:
        events = list(run)
    matrices = {name: (part.down, part.up) for name, part in trainer.adapters.parts().items()}
    Path(f"{target}.{accelerator.process_index}").write_bytes(pickle.dumps((matrices, events, trainer.history.losses)))
processes.leave()
