// LoRA Trainer: choosing a recipe fills in the node's own values, which can then be changed one by one.
// The values come from the node's definition; the server sets whatever has no widget here.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "flux2_train.recipes",
    nodeCreated(node) {
        if (node.comfyClass !== "Flux2LoraTrainer") return;
        const choice = node.widgets?.find((widget) => widget.name === "recipe");
        const recipes = choice?.options?.recipes;
        if (!recipes) return;
        const chosen = choice.callback;
        choice.callback = function (value, ...rest) {
            for (const [name, filled] of Object.entries(recipes[value] ?? {})) {
                const widget = node.widgets.find((candidate) => candidate.name === name);
                if (widget) widget.value = filled;
            }
            node.setDirtyCanvas(true, true);
            return chosen?.call(this, value, ...rest);
        };
    },
});
