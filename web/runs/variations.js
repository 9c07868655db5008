// Asks which settings of a training are to have which values, and queues the open graph once for each combination.
import { app } from "../../../scripts/app.js";
import { nodesOf } from "../data/nodes.js";
import { counted, words } from "../words.js";
import { ask } from "./ask.js";
import { queueGraph, say } from "./server.js";
import { make } from "./words.js";

const TRAINER = "Flux2LoraTrainer", DATA = "Flux2DatasetFolder";
const FIRST = ["rank", "alpha", "learning_rate", "steps", "seed", "batch", "preservation"]; // what most people vary
const FIXED = ["name", "resume", "control_after_generate"];
const MOST = 64; // jobs that are added at once, as in flux2_train/runs/queue/grid.py
const UNFIT = /[\\/:*?"<>|@]/g; // for the name of a run

// Resolves to the texts of the values by setting, or to null. ``choices`` are names of settings.
export async function askVariations(title, text, choices) {
    const rows = [0, 1].map((number) => {
        const setting = make("select", { name: `setting${number}`, "aria-label": words("Setting {number}", { number: number + 1 }) },
            make("option", { value: "" }, words("nothing more")), ...choices.map((name) => make("option", { value: name }, name)));
        setting.value = number ? "" : choices[0];
        const values = make("input", { name: `values${number}`, placeholder: "8, 16, 32", "aria-label":
            words("Values of setting {number}, with commas between", { number: number + 1 }), required: number === 0 });
        return make("div", { className: "line" }, setting, values);
    });
    const given = await ask(title, { yes: words("Add to the queue"), fields: rows, text });
    if (!given) return null;
    const chosen = {};
    for (const number of [0, 1]) {
        const texts = given[`values${number}`].split(",").map((each) => each.trim()).filter(Boolean);
        if (given[`setting${number}`] && texts.length) chosen[given[`setting${number}`]] = texts;
    }
    return chosen;
}

// the nodes of a kind in the open graph that are neither muted nor bypassed
const activeOf = (kind) => nodesOf(app.rootGraph ?? app.graph, kind).filter(({ mode }) => ![2, 4].includes(mode));

const isWired = (node, name) => node.inputs?.some(({ widget, link }) => widget?.name === name && link != null);

const isSet = (node) => ({ name, value, options, serialize }) => !FIXED.includes(name) && !name.startsWith("flux2_")
    && serialize !== false && options?.serialize !== false && ["number", "string", "boolean"].includes(typeof value) && !isWired(node, name);

// the widgets of a trainer that can be varied, by name, and the folder if there is one data set
function settingsOf(trainer) {
    const found = Object.fromEntries(trainer.widgets.filter(isSet(trainer)).map((widget) => [widget.name, widget]));
    const folders = activeOf(DATA), folder = folders[0]?.widgets.find(({ name }) => name === "folder");
    if (folders.length === 1 && folder && !isWired(folders[0], "folder")) found.folder = folder;
    const first = FIRST.filter((name) => name in found);
    return Object.fromEntries([...first, "folder", ...Object.keys(found)].filter((name) => name in found).map((name) => [name, found[name]]));
}

// the value that a widget gets for a text; throws for one that it cannot have
function valueOf({ name, value, options }, text) {
    if (typeof value === "number") {
        const number = Number(text), { min = -Infinity, max = Infinity } = options ?? {};
        if (!Number.isFinite(number)) throw new Error(words("{value} is no number, and {setting} must be one.", { value: text, setting: name }));
        if (number < min || number > max) throw new Error(words("{setting} is {value}; it must lie between {min} and {max}.", { setting: name, value: text, min, max }));
        return number;
    }
    const choices = typeof value === "boolean" ? ["true", "false"] : options?.values;
    if (Array.isArray(choices) && !choices.includes(text)) throw new Error(words("{setting} is {value}; choose one of {choices}.", { setting: name, value: text, choices: choices.join(", ") }));
    return typeof value === "boolean" ? text === "true" : text;
}

// every combination: lists of [setting, text]
function combinations(chosen) {
    return Object.entries(chosen).reduce((all, [name, texts]) => all.flatMap((before) => texts.map((text) => [...before, [name, text]])), [[]]);
}

// [prompt, workflow] of the open graph with other values in its widgets, which get theirs back
async function graphWith(values) {
    const before = values.map(([widget]) => [widget, widget.value]);
    try {
        for (const [widget, value] of values) widget.value = value;
        const { output, workflow } = await app.graphToPrompt();
        return [output, workflow];
    } finally {
        for (const [widget, value] of before) widget.value = value;
    }
}

function oneTrainer() {
    const trainers = activeOf(TRAINER);
    if (!trainers.length) throw new Error(words("The open graph has no LoRA Trainer. Open a template, or the workflow of a run."));
    if (trainers.length > 1) throw new Error(words("The open graph has {count} LoRA Trainers: bypass all but the one to vary.", { count: trainers.length }));
    const [trainer] = trainers;
    if (isWired(trainer, "name")) throw new Error(words("The name of LoRA Trainer is wired: each variation needs one of its own. Take the wire off."));
    return trainer;
}

export async function varyOpenGraph() {
    const trainer = oneTrainer(), settings = settingsOf(trainer), name = trainer.widgets.find((widget) => widget.name === "name");
    const varied = await askVariations(words("Queue variations of the open graph"),
        words("The graph is queued once for every combination of these values, and each run's name says what differs. ComfyUI trains them one after the other; what they share is loaded and encoded once."),
        Object.keys(settings));
    if (!varied) return undefined;
    const all = combinations(varied);
    if (all.length > MOST) throw new Error(words("These are {count} trainings; at most {most} are queued at once.", { count: all.length, most: MOST }));
    const graphs = [];
    for (const chosen of all) {
        const more = chosen.map(([setting, text]) => `${setting} ${text}`).join(" ").replace(UNFIT, "-");
        graphs.push(await graphWith([...chosen.map(([setting, text]) => [settings[setting], valueOf(settings[setting], text)]), [name, `${name.value} ${more}`]]));
    }
    for (const graph of graphs) await queueGraph(...graph);
    say("success", counted(all.length, words("{count} training is queued."), words("{count} trainings are queued.")));
    return true;
}
