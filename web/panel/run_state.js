// A run as the panel shows it, added up from the lines of its record (docs/run-folder.md). It knows neither page nor
// server, only the language.
import { words } from "../words.js";

const RECENT = 20; // steps whose mean duration says how long the rest takes
export const CURVES = ["loss", "smoothed", "validation", "preservation", "selectivity"];

export class RunState {
    constructor() {
        this.curves = Object.fromEntries(CURVES.map((name) => [name, []])); // by step; undefined where there is none
        this.seconds = [];
        this.checkpoints = new Set();
        this.previews = new Map(); // by step: pictures
        this.warnings = [];
        this.helps = new Map(); // by warning: what could be asked of the run, and which pictures it is about
        this.notes = [];
        this.plan = null;
        this.step = this.total = this.used = 0;
        this.phase = this.status = this.why = this.saved = "";
        this.rate = this.learningRate = null;
        this.prompts = [];
        this.heldOut = false;
        this.change = null; // what the LoRA changes with and without the trigger, as last measured
        this.best = 0; // the step that is the best so far
        this.bestFile = ""; // its LoRA, once the run has ended
        this.next = 0; // lines that were added up
    }

    // what the route says beside the lines
    take({ status, why, step, total, learning_rate: learningRate, prompts, every, keeps, lora, trains }) {
        this.status = status ?? this.status;
        this.why = why ?? "";
        this.trains = Boolean(trains);
        if (!this.trains) this.phase = ""; // a process that was killed did not say that it ended
        this.learningRate ??= learningRate;
        if (!this.prompts.length) this.prompts = prompts ?? [];
        this.every = every;
        this.keeps = keeps;
        this.saved = lora ?? this.saved;
        this.step ||= step ?? 0;
        this.total = (this.trains && this.total) || total || this.total; // stopped, it ends where it is
    }

    add(lines) {
        for (const line of lines) this[`on_${line.kind}`]?.(line);
        this.next += lines.length;
    }

    on_began({ total }) {
        Object.assign(this, { total, status: "running", trains: true, why: "", warnings: [], phase: "" });
    }

    on_steps(line) {
        const first = line.step?.[0] ?? line.first, { loss } = line;
        if (first <= this.step) this.forget(first);
        for (let i = 0; i < loss.length; i++) {
            const step = line.step ? line.step[i] : line.first + i;
            if (line.step && step <= this.step) this.forget(step);
            this.curves.loss[step] = loss[i];
            this.curves.smoothed[step] = line.smoothed?.[i] ?? 0;
            if (line.preservation?.[i]) this.curves.preservation[step] = line.preservation[i];
            if (line.seconds) this.seconds[step] = line.seconds[i];
            this.step = step;
        }
        this.total = line.total;
        this.rate = line.rate;
        this.phase = "";
    }

    // a run that goes back trains some steps again
    forget(first) {
        for (const name of ["loss", "smoothed", "preservation"]) this.curves[name].length = Math.min(this.curves[name].length, first);
        this.step = first - 1;
    }

    on_resumed({ step, total }) {
        if (step < this.step) this.forget(step + 1);
        Object.assign(this, { step, total });
        this.notes.push(words("went on after step {step}", { step }));
    }

    on_validation({ step, loss, held_out: heldOut }) {
        this.curves.validation[step] = loss;
        this.heldOut = heldOut;
    }

    on_selectivity(line) {
        this.curves.selectivity[line.step] = line.selectivity ?? undefined; // endless where nothing changed without the trigger
        this.change = line;
    }

    on_best({ step, file }) {
        Object.assign(this, { best: step, bestFile: file ?? "" });
    }

    on_preview({ step, pictures }) {
        this.previews.set(step, pictures);
        this.previews = new Map([...this.previews].sort(([a], [b]) => a - b));
    }

    on_checkpoint({ step }) {
        this.checkpoints.add(step);
    }

    on_phase({ text }) {
        this.phase = text;
    }

    on_plan(line) {
        this.plan = line;
    }

    on_memory({ used, whole }) {
        Object.assign(this, { used, whole });
    }

    on_warning({ text, remedies = [], pictures = [] }) {
        this.helps.set(text, { remedies, pictures });
        if (!this.warnings.includes(text)) this.warnings.push(text);
    }

    on_steered({ step, text, learning_rate: learningRate, total, prompts }) {
        Object.assign(this, { learningRate, total });
        if (prompts?.length) this.prompts = prompts;
        const note = words("after step {step}: {text}", { step, text });
        if (!this.notes.includes(note)) this.notes.push(note); // a run that goes back makes its changes again
    }

    on_saved(line) {
        this.saved = line.file;
    }

    on_ended({ status, why, total }) {
        Object.assign(this, { status, why, trains: false, phase: "", total: total ?? this.total });
    }

    get secondsPerStep() {
        const recent = this.seconds.slice(-RECENT).filter((value) => value > 0);
        return recent.length ? recent.reduce((a, b) => a + b) / recent.length : 0;
    }

    get secondsLeft() {
        return Math.max(0, this.total - this.step) * this.secondsPerStep;
    }

    // every prompt that was painted: number and label, the newest words for each
    get pictures() {
        const found = new Map();
        for (const pictures of this.previews.values()) for (const each of pictures) found.set(each.number, each);
        return [...found.values()].sort((a, b) => a.number - b.number);
    }
}
