"""nano that reads a caption's words and a sample of the padding behind them: six times as fast on small images.

Each sampled token weighs in attention as much as all that it stands for, as when nano was trained
(``bench.nano.flow``), and every token has the place that it has among all 512.
"""

import math

import torch
from comfy.ldm.flux.model import Flux

WORDS, FILLERS = 40, 12
whole = Flux.forward_orig


def brief(self, img, img_ids, txt, txt_ids, *args, attn_mask=None, **options):
    """Flux.forward_orig on fewer text tokens."""
    length = txt.shape[1]
    chosen = torch.cat((torch.arange(WORDS), torch.linspace(WORDS, length - 1, FILLERS).long()))
    bias = torch.zeros(len(chosen) + img.shape[1], dtype=img.dtype, device=img.device)
    bias[WORDS : len(chosen)] = math.log((length - WORDS) / FILLERS)
    mask = bias.expand(len(img), 1, 1, -1)
    return whole(self, img, img_ids, txt[:, chosen], txt_ids[:, chosen], *args, attn_mask=mask, **options)
