// Load FLUX.2: which files are there, which are missing or of the wrong kind, and what this machine's memory allows.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { panelOf } from "./shown.js";

const LOADER = "Flux2Load";
const ASKED = ["flavour", "precision", "variant", "transformer", "text_encoder", "vae"];
const WAIT = 250; // ms without another change

function ask(node, always) {
    clearTimeout(node.flux2Waiting);
    node.flux2Waiting = setTimeout(async () => {
        const asked = node.flux2Asked = (node.flux2Asked ?? 0) + 1;
        const values = node.widgets.filter(({ name }) => ASKED.includes(name)).map(({ name, value }) => [name, value]);
        const answer = await api.fetchApi(`/flux2_train/files?${new URLSearchParams(values)}`);
        // a node that was removed meanwhile must get no panel, and an older question's answer is none to this one
        if (!answer.ok || !node.graph || asked !== node.flux2Asked) return;
        const panel = panelOf(node);
        if (!always && panel.written) return;
        panel.show({ text: (await answer.json()).lines.join("\n"), image: "" });
    }, WAIT);
}

app.registerExtension({
    name: "flux2_train.files",
    nodeCreated(node) {
        if (node.comfyClass !== LOADER) return;
        for (const widget of node.widgets.filter(({ name }) => ASKED.includes(name))) {
            const changed = widget.callback;
            widget.callback = function (...given) {
                ask(node, true);
                return changed?.apply(this, given);
            };
        }
        ask(node, false);
    },
});
