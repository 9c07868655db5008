// LoRA Trainer: choosing a recipe fills in the node's own values and those of the Timesteps and Optimizer nodes wired
// into it; all of them can then be changed one by one. The server sets what has no widget in the graph.
import { app } from "../../scripts/app.js";

const TRAINER = "Flux2LoraTrainer";
const LOADER = "Flux2Load";

function fill(node, values) {
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find((candidate) => candidate.name === name);
        if (widget) widget.value = value;
    }
    node.setDirtyCanvas(true, true);
}

// the flavour of the Load FLUX.2 whose MODEL reaches a node, through whatever stands between
function flavourOf(node, seen = new Set()) {
    if (!node || seen.has(node)) return undefined;
    seen.add(node);
    if (node.comfyClass === LOADER) return node.widgets.find(({ name }) => name === "flavour")?.value;
    const slot = node.inputs?.findIndex(({ type }) => type === "MODEL") ?? -1;
    return slot < 0 ? undefined : flavourOf(node.getInputNode(slot), seen);
}

function apply(trainer, recipe) {
    fill(trainer, recipe.of_flavour[flavourOf(trainer)] ?? recipe.face);
    for (const slot of trainer.inputs.keys()) {
        const options = trainer.getInputNode(slot);
        const values = recipe.wired[options?.comfyClass];
        if (values && options.widgets) fill(options, values);
    }
}

app.registerExtension({
    name: "flux2_train.recipes",
    nodeCreated(node) {
        if (node.comfyClass !== TRAINER) return;
        // the widget's own options do not hold what is not the frontend's, the node's definition does
        const { recipes } = node.constructor.nodeData.input.optional.recipe[1];
        const choice = node.widgets.find((widget) => widget.name === "recipe");
        const chosen = choice.callback;
        choice.callback = function (value, ...rest) {
            if (recipes[value]) apply(node, recipes[value]);
            return chosen?.call(this, value, ...rest);
        };
    },
});
