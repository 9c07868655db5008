// LoRA Trainer and Dataset Folder had one socket for each option node. Workflows and prompts that were saved then are
// opened with the same nodes wired into the growing socket 'options'. The server takes prompts as they are.
import { app } from "../../scripts/app.js";

const EARLIER = {
    Flux2LoraTrainer: [
        "adapter", "objective", "timesteps", "optimizer", "preserve", "validation", "validation_loss", "save",
        "checkpoints", "memory",
    ],
    Flux2DatasetFolder: ["caption_options", "crop_options", "mask_options", "reference_options"],
};
const WIRES = { Flux2LoraTrainer: "FLUX2_OPTIONS", Flux2DatasetFolder: "FLUX2_DATASET_OPTIONS" };

const isOption = (name) => name.startsWith("options.");

// The sockets of a saved node: free ones of earlier versions are left out, wired ones become options.
function renewSockets(node) {
    const earlier = EARLIER[node.type];
    if (!earlier || !node.inputs?.some((input) => earlier.includes(input.name))) return false;
    let count = node.inputs.filter((input) => isOption(input.name) && input.link != null).length;
    const kept = node.inputs.filter((input) => !earlier.includes(input.name) && (!isOption(input.name) || input.link != null));
    const wired = node.inputs.filter((input) => earlier.includes(input.name) && input.link != null);
    const renewed = wired.map((input) => ({ name: `options.option${count++}`, type: WIRES[node.type], link: input.link }));
    node.inputs = [...kept, ...renewed];
    return true;
}

// A link is an array in a workflow and an object in a subgraph: it must name the place that its socket now has.
function renewLinks(node, links) {
    const byId = new Map((links ?? []).filter(Boolean).map((link) => [Array.isArray(link) ? link[0] : link.id, link]));
    for (const [slot, input] of node.inputs.entries()) {
        const link = byId.get(input.link);
        if (Array.isArray(link)) link[4] = slot;
        else if (link) link.target_slot = slot;
    }
}

function renewGraph(graph) {
    for (const node of graph.nodes ?? []) {
        if (renewSockets(node)) renewLinks(node, graph.links);
    }
    for (const subgraph of graph.definitions?.subgraphs ?? []) renewGraph(subgraph);
}

function renewPrompt(prompt) {
    const renewed = structuredClone(prompt);
    for (const node of Object.values(renewed)) {
        const earlier = EARLIER[node?.class_type] ?? [];
        let count = Object.keys(node?.inputs ?? {}).filter(isOption).length;
        for (const name of earlier.filter((name) => Array.isArray(node.inputs?.[name]))) {
            node.inputs[`options.option${count++}`] = node.inputs[name];
            delete node.inputs[name];
        }
    }
    return renewed;
}

app.registerExtension({
    name: "flux2_train.earlier",
    beforeConfigureGraph(graph) {
        renewGraph(graph);
    },
    setup() {
        // The frontend drops wires into sockets that a node does not have, and has no hook before it opens a prompt.
        const load = app.loadApiJson;
        app.loadApiJson = function (prompt, ...rest) {
            return load.call(this, renewPrompt(prompt), ...rest);
        };
    },
});
