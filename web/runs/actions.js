// What can be done with a run. Each button says what it will do; what cannot be undone is asked for first.
import { app } from "../../../scripts/app.js";
import { counted, words } from "../words.js";
import { ask, field } from "./ask.js";
import { get, post, queueGraph, say, trying } from "./server.js";
import { askVariations } from "./variations.js";
import { bytes, button, make } from "./words.js";

const TRAINER = "Flux2LoraTrainer";
const VARIED = ["rank", "alpha", "learning_rate", "steps", "seed", "batch", "preservation", "dataset.folder",
    "dataset.resolution"];
const ENDED = ["finished", "stopped", "failed", "killed", "paused"];

export function actionsOf(run, detail) {
    const running = run.state === "running";
    const done = (action) => async () => {
        if ((await trying(action)) !== undefined) detail.changed();
    };
    const all = [
        running && button(words("Stop and keep"), done(() => stop(run)), { className: "first" }),
        run.graph.workflow && button(words("Load into the graph"), done(() => load(run)), { className: running ? "" : "first" }),
        ENDED.includes(run.state) && run.checkpoints.length > 0
            && button(run.state === "finished" ? words("Go on for more steps …") : words("Go on"), () => goOnFrom(run, detail)),
        run.job && button(words("Queue variations …"), done(() => vary(run, detail))),
        run.job && button(words("Compare …"), done(() => compare(run, detail)),
            { title: words("Ctrl and a click on another run in the list does the same.") }),
        run.job && button(words("Copy job file"), () => copied(run, detail)),
        run.checkpoints.length > 0 && button(words("LoRA from a checkpoint …"), done(() => loraOf(run))),
        !running && button(words("Delete …"), done(() => remove(run, detail)), { className: "danger" }),
    ];
    return make("div", { className: "actions" }, ...all.filter(Boolean));
}

async function compare(run, detail) {
    const { runs } = await get("runs", { count: 200 });
    const others = runs.filter(({ name }) => name !== run.name);
    if (!others.length) {
        say("info", words("There is no other run yet."));
        return undefined;
    }
    const other = make("select", { name: "other" }, ...others.map(({ name }) => make("option", { value: name }, name)));
    const given = await ask(words("Compare {run}", { run: run.name }), { yes: words("Compare"), fields: [field(words("with"), other)] });
    if (given) detail.onCompare([run, others.find(({ name }) => name === given.other)]);
    return undefined;
}

async function copied(run, detail) {
    await detail.copyJob(run.name);
    say("success", words("The job file is in the clipboard: save it, and python -m flux2_train train repeats the run."));
}

async function stop(run) {
    await post("stop", { run: run.name });
    say("info", words("{run} ends after the step in progress; its LoRA is kept.", { run: run.name }));
    return true;
}

async function load(run) {
    const { workflow } = await get("runs/graph", { run: run.name });
    await app.loadGraphData(workflow, true, true, run.name);
    return true;
}

// A finished run needs more steps to go on. The graph is queued where it was kept and takes this very run; else the
// run's job is queued.
async function goOn(run, detail) {
    const more = run.state === "finished" || run.step >= run.total;
    const asked = more ? await askSteps(run) : {};
    if (!asked) return undefined;
    const { prompt, workflow } = run.newest && run.graph.prompt ? await get("runs/graph", { run: run.name }) : {};
    if (prompt && prepare(prompt, asked.steps)) await queueGraph(prompt, workflow);
    else await post("queue/add", { run: run.name, set: asked.steps ? { steps: asked.steps } : {} });
    say("success", asked.steps ? words("{run} goes on to {steps} steps, as soon as ComfyUI comes to it.", { run: run.name, steps: asked.steps })
        : words("{run} goes on, as soon as ComfyUI comes to it.", { run: run.name }));
    detail.onQueued();
    return true;
}

export async function goOnFrom(run, detail) {
    if ((await trying(() => goOn(run, detail))) !== undefined) detail.changed();
}

function askSteps(run) {
    const steps = make("input", { type: "number", name: "steps", min: run.step + 1, max: 1_000_000, required: true,
        value: String(run.step * 2) });
    return ask(words("Go on with {run}", { run: run.name }), { yes: words("Go on"), fields: [
        field(words("steps in all"), steps, words("{count} are done.", { count: run.step }))] });
}

// Sets what going on needs in the trainer of a kept graph; false if the graph does not say it itself.
function prepare(prompt, steps) {
    const trainers = Object.values(prompt).filter((node) => node.class_type === TRAINER);
    if (trainers.length !== 1) return false;
    const { inputs } = trainers[0];
    if (Array.isArray(inputs.steps) || Array.isArray(inputs.resume)) return false;
    inputs.resume = "auto";
    if (steps) Object.assign(inputs, { steps: Number(steps), ...(inputs.epochs ? { epochs: 0 } : {}) });
    return true;
}

async function vary(run, detail) {
    const chosen = await askVariations(words("Queue variations of {run}", { run: run.name }),
        words("One job is added for every combination of these values. The server trains them one after the other when ComfyUI has nothing else to do."), VARIED);
    if (!chosen) return undefined;
    const { added } = await post("queue/add", { run: run.name, vary: chosen });
    say("success", counted(added.length, words("{count} job waits."), words("{count} jobs wait.")));
    detail.onQueued();
    return true;
}

async function loraOf(run) {
    const steps = make("select", { name: "step" }, ...[...run.checkpoints].reverse().map((step) =>
        make("option", { value: step }, words("step {step}", { step }))));
    const given = await ask(words("LoRA from a checkpoint of {run}", { run: run.name }), { yes: words("Write the LoRA file"),
        fields: [field(words("checkpoint"), steps)],
        text: words("It is written into models/loras under the run's name with the step behind it; nothing is overwritten.") });
    if (!given) return undefined;
    await post("runs/lora", { run: run.name, step: Number(given.step) });
    say("success", words("The LoRA of step {step} is being written; it is in ComfyUI's queue.", { step: given.step }));
    return true;
}

async function remove(run, detail) {
    const given = await ask(words("Delete {run}?", { run: run.name }), { yes: words("Delete {size}", { size: bytes(run.size) }), danger: true,
        text: [words("Its checkpoints, previews, curve and log are removed from the disk for good."), run.lora
            ? words("Its LoRA {file} stays.", { file: run.lora }) : words("LoRAs that it saved stay.")].join(" ") });
    if (!given) return undefined;
    await post("runs/delete", { run: run.name });
    detail.onClose();
    return true;
}
