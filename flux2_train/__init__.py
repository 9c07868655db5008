"""The training engine: trains an adapter for the FLUX.2 model that a ComfyUI graph holds.

It imports no node, no server and no browser. Only ``flux2_train.host`` uses ComfyUI's internals.
"""

__version__ = "0.1.0"
