"""ComfyUI's door to the pack."""

from comfy_api.latest import ComfyExtension, io

from .flux2_train.host import contract
from .flux2_train.runs.shutdown import save_when_it_ends

try:
    from .nodes import NODES
    from .nodes.browser.routes import add_routes
    from .nodes.queue.offering import begin_offering
except ImportError as error:
    raise ImportError(contract.why_not_loaded(error)) from error

WEB_DIRECTORY = "./web"


class Flux2TrainExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> Flux2TrainExtension:
    contract.say()
    add_routes()
    begin_offering()
    save_when_it_ends()
    return Flux2TrainExtension()
