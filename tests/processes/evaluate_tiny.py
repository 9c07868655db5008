"""One process of several that ``accelerate launch`` started: trains the tiny FLUX.2, paints and measures meanwhile.

Arguments: the pickled problems of test_evaluation_processes, one run each, and the file to write what
came of them (with the process's number behind it).
"""

import pickle
import sys
from contextlib import closing
from pathlib import Path

from flux2_train.host.system.bootstrap import import_comfyui
from flux2_train.train import processes

problems, target = sys.argv[1:]

with processes.launched() as accelerator:
    import_comfyui()
    import torch
    from support import brief_flux2

    from flux2_train.flavours import FLAVOURS
    from flux2_train.host.loading import load
    from flux2_train.runs.prepare import new_trainer
    from flux2_train.train.preview_request import PreviewRequest

    found = []
    for caches, config, painting, vae in pickle.loads(Path(problems).read_bytes()):
        validation = painting and PreviewRequest(painting, load.load_vae(vae, FLAVOURS["nano"]))
        trainer = new_trainer(brief_flux2(), *caches, config, accelerator, validation)
        with torch.inference_mode(), closing(trainer.run()) as run:
            events = list(run)
        matrices = {name: (part.down, part.up) for name, part in trainer.adapters.parts().items()}
        found.append((matrices, events, len(trainer.between_steps.previews.base) if validation else 0))
    Path(f"{target}.{accelerator.process_index}").write_bytes(pickle.dumps(found))
processes.leave()
