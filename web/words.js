// What the pack's own JavaScript says, in the language that ComfyUI is set to. The translations are in locales/; run
// scripts/make_locales.py after a change of a text.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let translations = {};

// The text in the reader's language. {name} in it stands for a value.
export function words(english, values = {}) {
    const text = translations.flux2_train?.[english] ?? english;
    return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

// One text for one and one for many: {count} in them is the number. A language without a plural has the same text twice.
export const counted = (number, one, many) => (number === 1 ? one : many).replace("{count}", number);

// The state of a run or of a job in words. In classes, comparisons and answers of the server it stays English.
export const stateInWords = (state) => ({
    running: words("running"), finished: words("finished"), stopped: words("stopped"), failed: words("failed"),
    killed: words("killed"), paused: words("paused"), broken: words("broken"), waiting: words("waiting"), done: words("done"),
})[state] ?? state;

// Why a run has ended: the server says it in English, as do run.json and the log.
export const whyInWords = (why) => (why === "cancelled" ? words("cancelled") : why);

// A category as ComfyUI shows it: its last part is translated.
export const categoryOf = (kind) => `FLUX.2/${translations.nodeCategories?.[kind] ?? kind}`;

app.registerExtension({
    name: "flux2_train.words",
    async init() {
        const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
        try {
            translations = (await api.getCustomNodesI18n())[language] ?? {};
        } catch {
            translations = {}; // a server that has no translations: English it is
        }
    },
});
