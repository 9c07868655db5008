"""ComfyUI's server, as far as this pack can use it."""

from __future__ import annotations

from server import PromptServer

from ...flux2_train.host import contract


def prompt_server() -> PromptServer | None:
    """The server; None without one, or if this ComfyUI's lacks something that we use: then runs are not shown."""
    return None if contract.lacking(contract.BROWSER) else getattr(PromptServer, "instance", None)
