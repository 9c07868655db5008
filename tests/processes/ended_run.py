"""A run in a thread that dies with its process, as ComfyUI's does; in the third step it stands still.

Arguments: the pickled caches and the folder for LoRAs and runs. Prints a line when the third step is in progress.
"""

# ruff: noqa: E402 - the path comes first, then ComfyUI

import pickle
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from flux2_train.host.system.bootstrap import import_comfyui

import_comfyui()

import torch
from resuming import CONFIG
from support import brief_flux2

from flux2_train.runs.prepare import new_trainer
from flux2_train.runs.session import train
from flux2_train.runs.shutdown import save_when_it_ends

caches, place = Path(sys.argv[1]), Path(sys.argv[2])
trainer = new_trainer(brief_flux2(), *pickle.loads(caches.read_bytes()), CONFIG)
backward = trainer._backward


def slow(*arguments):
    result = backward(*arguments)
    if trainer.step == 2:  # the gradients of the third step are there, its noise and times are drawn
        print("in step 3", flush=True)
        time.sleep(600)
    return result


trainer._backward = slow
save_when_it_ends()


def work():
    with torch.inference_mode():
        train(trainer, place / "loras", place / "runs", lambda event: None)


threading.Thread(target=work, daemon=True).start()
try:
    threading.Event().wait()
except KeyboardInterrupt:
    print("stopped", flush=True)
