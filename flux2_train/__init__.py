"""The training engine: teaches an adapter on the FLUX.2 model that a ComfyUI graph holds.

Knows no node, no server and no browser. Only ``flux2_train.host`` touches ComfyUI internals.
"""

__version__ = "0.1.0"
