// Import Settings: a button fills the imported settings in the nodes of the graph. It sets values of widgets by their
// names and changes nothing else; it says which nodes are missing and which values their menus do not have.
import { app } from "../../scripts/app.js";
import { titleOf } from "./shown.js";
import { words } from "./words.js";

const IMPORT = "Flux2ImportSettings";
const KEY = "flux2_settings";

function say(severity, node, detail) {
    app.extensionManager?.toast?.add({ severity, summary: titleOf(node), detail, life: 15000 });
}

function offers(widget, value) {
    const choices = widget.options?.values;
    return !Array.isArray(choices) || choices.includes(value);
}

// Sets the widgets of a node; returns the names of those that do not offer their value.
function fill(node, values) {
    const refused = [];
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets?.find((candidate) => candidate.name === name);
        if (!widget) continue;
        if (offers(widget, value)) widget.value = value;
        else refused.push(name);
    }
    node.setDirtyCanvas(true, true);
    return refused;
}

// Nodes of one kind get their entries in the order in which the nodes were made.
export function fillGraph(graph, settings) {
    const missing = [], refused = [];
    let filled = 0;
    for (const [type, entries] of Object.entries(settings)) {
        const nodes = graph._nodes.filter((node) => node.comfyClass === type).sort((a, b) => a.id - b.id);
        entries.forEach((values, number) => {
            if (!Object.keys(values).length) return;
            const node = nodes[number];
            if (!node) return missing.push(type.replace("Flux2", ""));
            filled += 1;
            refused.push(...fill(node, values).map((name) => `${node.title}: ${name}`));
        });
    }
    return { filled, missing, refused };
}

app.registerExtension({
    name: "flux2_train.import_settings",
    nodeCreated(node) {
        if (node.comfyClass !== IMPORT) return;
        let settings = null;
        const executed = node.onExecuted;
        node.onExecuted = function (output, ...rest) {
            settings = output?.[KEY]?.[0] ?? settings;
            return executed?.call(this, output, ...rest);
        };
        const button = node.addWidget("button", "fill in the graph", null, () => {
            if (!settings) return say("warn", node, words("Run this node first: it reads the file."));
            const { filled, missing, refused } = fillGraph(app.graph, settings);
            const parts = [words("{count} nodes are filled in.", { count: filled })];
            const listed = (names) => ({ names: names.join(", ") });
            if (missing.length) parts.push(words("Add and wire these nodes, then press again: {names}.", listed(missing)));
            if (refused.length) parts.push(words("Their menus lack a value: {names}.", listed(refused)));
            say(missing.length || refused.length ? "warn" : "success", node, parts.join(" "));
        });
        button.label = words("fill in the graph");
        button.serialize = false; // it holds no value, so that saved workflows do not change
    },
});
