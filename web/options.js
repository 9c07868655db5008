// The growing socket for option nodes: a wired socket is called after what is wired in, the free one 'options'.
import { app } from "../../scripts/app.js";
import { words } from "./words.js";

const TAKERS = ["Flux2LoraTrainer", "Flux2DatasetFolder"];

function label(node) {
    for (const [slot, input] of node.inputs.entries()) {
        if (!input.name.startsWith("options.")) continue;
        const link = node.graph && node.getInputLink(slot); // a new node is in no graph yet
        const output = link && node.graph.getNodeById(link.origin_id)?.outputs?.[link.origin_slot];
        input.label = (link && (output?.label || output?.localized_name || output?.name)) || words("options");
    }
    node.graph?.trigger("node:slot-label:changed", { nodeId: node.id, slotType: LiteGraph.INPUT }); // newer nodes
    node.setDirtyCanvas(true, true);
}

app.registerExtension({
    name: "flux2_train.options",
    nodeCreated(node) {
        if (!TAKERS.includes(node.comfyClass)) return;
        const changed = node.onConnectionsChange;
        node.onConnectionsChange = function (...change) {
            changed?.apply(this, change);
            label(this); // at once, because the newer nodes read a socket's name when its wire changes
            // the frontend removes sockets in the next frame
            requestAnimationFrame(() => requestAnimationFrame(() => label(this)));
        };
        label(node);
    },
});
