"""Files that other programs' own code writes act here as they did there: what can be had of those programs is run.

diffusers, peft and LyCORIS are packages; checkouts of the others are named by MUSUBI_TUNER, AI_TOOLKIT and ONETRAINER.
``python -m bench.lora_matrix`` prints the same with every program as a reader.
"""

import pytest
import torch

from bench.lora import checkouts, packages
from bench.lora.ours import ours
from bench.lora.trees import base_weights, in_blocks
from flux2_train.errors import UserError

UNREAD = {"GLoRA": "GLoRA", "T-LoRA": "T-LoRA", "IA3": "IA3"}
PEERS = {
    peer.name: peer
    for peer in (
        packages.diffusers(), packages.peft(), packages.lycoris(), packages.comfyui(), checkouts.musubi(),
        checkouts.ai_toolkit(), checkouts.onetrainer(),
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return base_weights()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [(peer.name, kind) for peer in PEERS.values() for kind in peer.writes])
def test_what_a_program_writes_acts_here_as_there(weights, tmp_path, name, kind):
    peer = PEERS[name]
    if peer.missing:
        pytest.skip(peer.missing)
    written = peer.writes[kind](weights, tmp_path)
    if kind in UNREAD:
        with pytest.raises(UserError, match=UNREAD[kind]):
            ours().reads(weights, written.path)
        return
    with torch.inference_mode(False):
        found = ours().reads(weights, written.path)
    for layer in in_blocks(weights):
        effect = written.made[layer] - weights[f"{layer}.weight"]
        assert effect.any() and (found[layer] - written.made[layer]).norm() < 1e-5 * effect.norm()
