// What is asked of the server, and what a node's widgets and wired option nodes say about its data set.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { reach } from "../panel/reach.js";
import { words } from "../words.js";

const ROUTE = "/flux2_train/data";
const WIDGETS = ["folder", "captions", "prompt", "resolution", "trigger", "class_word", "references", "subfolders", "is_reg"];
const SECTIONS = {
    Flux2CaptionOptions: "caption_options", Flux2CropOptions: "crop_options", Flux2MaskOptions: "mask_options",
    Flux2ReferenceOptions: "reference_options",
};

export const addressOf = (what, query) => api.apiURL(`${ROUTE}/${what}?${new URLSearchParams(query)}`);

export class Refused extends Error {
    constructor(found, status) {
        super(found.error ?? words("The server does not answer."));
        Object.assign(this, { now: found.now, status });
    }
}

async function answered(answer) {
    const found = await answer.json().catch(() => ({}));
    if (!answer.ok) throw new Refused(found, answer.status);
    return found;
}

export const read = async (what) => answered(await reach(`${ROUTE}/${what}`));

export const send = async (what, body) => answered(await reach(`${ROUTE}/${what}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
}));

const valuesOf = (node) => Object.fromEntries((node.widgets ?? [])
    .filter((widget) => widget.name && ["string", "number", "boolean"].includes(typeof widget.value))
    .map((widget) => [widget.name, widget.value]));

export function settingsOf(node) {
    const values = valuesOf(node);
    const settings = Object.fromEntries(WIDGETS.filter((name) => name in values).map((name) => [name, values[name]]));
    for (let slot = 0; slot < (node.inputs?.length ?? 0); slot += 1) {
        const wired = node.getInputNode?.(slot);
        const section = SECTIONS[wired?.comfyClass];
        if (section) settings[section] = valuesOf(wired);
    }
    return settings;
}

// the flavour of the graph's Load FLUX.2, whose tokenizer counts
export function flavourOf() {
    const loader = (app.rootGraph ?? app.graph)._nodes.find((node) => node.comfyClass === "Flux2Load");
    return loader?.widgets.find(({ name }) => name === "flavour")?.value ?? "klein-4b";
}
