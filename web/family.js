// The pack's nodes look like one family: a colour for each kind of node, and one for each of its wires.
import { app } from "../../scripts/app.js";
import { categoryOf } from "./words.js";

const NODES = {
    Train: { color: "#3d3468", bgcolor: "#28253a" },
    Options: { color: "#2f4858", bgcolor: "#222c33" },
    Use: { color: "#2f5545", bgcolor: "#222f2a" },
};
const WIRES = {
    FLUX2_DATASET: "#e0a458",
    FLUX2_EMBEDS: "#ffd500",
    FLUX2_LATENTS: "#ff9cf9",
    FLUX2_OPTIONS: "#8f7dff",
    FLUX2_DATASET_OPTIONS: "#6cc4ff",
    LORA_MODEL: "#62d2a2",
    LOSS_MAP: "#9aa7b5",
};

// Choosing a theme empties the colours of all types that the theme does not know; these come back.
function keep(colours, type, colour) {
    let current = colours[type] || colour;
    Object.defineProperty(colours, type, {
        enumerable: true,
        configurable: true,
        get: () => current,
        set: (value) => {
            current = value || colour;
        },
    });
}

app.registerExtension({
    name: "flux2_train.family",
    nodeCreated(node) {
        const category = node.constructor.nodeData?.category;
        Object.assign(node, NODES[Object.keys(NODES).find((kind) => categoryOf(kind) === category)]);
    },
    setup() {
        for (const [type, colour] of Object.entries(WIRES)) {
            keep(app.canvas.default_connection_color_byType, type, colour);
            keep(app.canvas.constructor.link_type_colors, type, colour);
        }
        const sheet = document.createElement("style"); // for the newer nodes; a theme's own colours win over it
        const lines = Object.entries(WIRES).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
        sheet.textContent = `:root { ${lines.join(" ")} }`;
        document.head.append(sheet);
    },
});
