// One run, or two laid over each other, beside the sidebar.
import { whyInWords, words } from "../words.js";
import { actionsOf, goOnFrom } from "./actions.js";
import { chart, COLOURS } from "./chart.js";
import { pictures } from "./pictures.js";
import { get, getText, trying } from "./server.js";
import { bytes, button, chip, duration, make, stepsOf, when } from "./words.js";

const WIDEST = 900, EDGE = 8, BARS = 54; // pixels; ComfyUI's own bars lie on the graph's upper edge
const EVERY = 4000; // ms between two looks at a run that trains
const LIVE = ["running"];

// The panel of LoRA Trainer shows a run better than a curve and a strip of pictures, where the pack has it.
let panel;
function runPanel() {
    panel ??= import("../panel/run_panel.js").then((module) => module.runPanel, () => undefined);
    return panel;
}

export class Detail {
    // ``beside`` is the element of the tab; ``changed`` is called after something was done to a run
    constructor(beside, changed) {
        this.beside = beside;
        this.changed = changed;
        this.element = make("section", { className: "flux2-runs flux2-run-detail", tabIndex: -1, "aria-label": words("Run"),
            onkeydown: (event) => this.key(event) });
        this.clean = [];
        this.runs = [];
        this.asked = 0;
        this.onClose = this.onQueued = this.onCompare = () => {};
        this.place = () => this.put();
        window.addEventListener("resize", this.place);
    }

    end() {
        window.removeEventListener("resize", this.place);
        this.empty();
        this.element.remove();
    }

    key(event) {
        event.stopPropagation();
        if (event.key !== "Escape") return;
        this.onClose();
        this.beside.querySelector(".list")?.focus();
    }

    empty() {
        clearTimeout(this.timer);
        for (const each of this.clean.splice(0)) each();
    }

    put() {
        const { right, top, bottom } = this.beside.getBoundingClientRect();
        const style = { left: `${right + EDGE}px`, top: `${top + BARS}px`,
            height: `${bottom - top - BARS - EDGE}px`,
            width: `${Math.max(280, Math.min(WIDEST, innerWidth - right - 3 * EDGE))}px` };
        Object.assign(this.element.style, style);
    }

    async show(runs) {
        this.runs = runs;
        this.asked += 1;
        if (!runs.length) {
            this.empty();
            this.element.replaceChildren(); // the next run comes into an empty panel, not into that of this one
            this.element.remove();
            return;
        }
        document.body.append(this.element);
        this.put();
        await trying(() => (runs.length === 1 ? this.showOne(runs[0].name) : this.showTwo(...runs)));
    }

    // whether nothing else was chosen since ``asked``
    current(asked) {
        return asked === this.asked && this.element.isConnected;
    }

    fill(label, ...parts) {
        this.empty();
        this.element.setAttribute("aria-label", label);
        this.element.replaceChildren(...parts);
        this.element.scrollTop = 0;
    }

    async showOne(name) {
        const asked = this.asked;
        const [run, { rows }] = await Promise.all([get("runs/details", { run: name }), get("runs/curve", { run: name })]);
        if (!this.current(asked)) return;
        const holder = make("div", { className: "holder" });
        this.fill(words("Run {run}", { run: name }), this.head(make("h3", { title: run.name }, run.name), chip(run.state)), facts(run),
            actionsOf(run, this), holder, log(run));
        await this.drawOne(holder, run, rows, asked);
        if (this.current(asked) && LIVE.includes(run.state)) this.timer = setTimeout(() => this.again(run, asked), EVERY);
    }

    async drawOne(holder, run, rows, asked) {
        const panelOf = run.record ? await runPanel() : undefined;
        if (!this.current(asked)) return;
        if (panelOf) {
            const made = panelOf(run.name, { goOn: () => goOnFrom(run, this) });
            holder.append(made);
            this.clean.push(() => made.close?.());
            return;
        }
        const plot = make("div", { className: "curves", role: "img", "aria-label": inWords(rows) });
        holder.append(plot);
        if (rows.length) this.clean.push(chart(plot, [{ name: run.name, rows }]));
        else plot.append(make("p", { className: "dim" }, words("No losses are on disk yet.")));
        holder.append(...pictures(run));
    }

    // a run that trains is looked at again, unless somebody is at work in the panel
    async again(run, asked) {
        if (!this.current(asked)) return;
        const busy = this.element.contains(document.activeElement) && document.activeElement !== this.element;
        const now = busy ? run : await get("runs/details", { run: run.name }).catch(() => run);
        if (!this.current(asked)) return;
        const drawnAnew = now.state !== run.state || (!busy && !run.record); // a panel draws itself
        if (drawnAnew) await trying(() => this.showOne(run.name));
        else this.timer = setTimeout(() => this.again(run, asked), EVERY);
    }

    async showTwo(one, other) {
        const asked = this.asked;
        const [said, ...curves] = await Promise.all([get("runs/compare", { one: one.name, other: other.name }),
            ...[one, other].map(({ name }) => get("runs/curve", { run: name }))]);
        const both = await Promise.all([one, other].map(({ name }) => get("runs/details", { run: name })));
        if (!this.current(asked)) return;
        const plot = make("div", { className: "curves", role: "img",
            "aria-label": words("Losses of {one} and of {other}", { one: one.name, other: other.name }) });
        this.fill(words("{one} against {other}", { one: one.name, other: other.name }),
            this.head(make("h3", {}, named(one, 0), ` ${words("against")} `, named(other, 1))),
            make("p", { className: "dim differs" }, words("what differs: {sentence}", said)), plot,
            table(said.differences, one.name, other.name),
            make("div", { className: "beside" }, ...both.map((run) => make("div", {}, make("b", {}, run.name),
                ...pictures(run, true)))));
        const drawn = [one, other].map(({ name }, number) => ({ name, rows: curves[number].rows }));
        this.clean.push(chart(plot, drawn));
    }

    head(...parts) {
        return make("div", { className: "line" }, ...parts, make("span", { className: "grow" }),
            button("×", () => this.onClose(), { "aria-label": words("Close"), className: "close" }));
    }

    async copyJob(name) {
        await trying(async () => navigator.clipboard.writeText(await getText("runs/job", { run: name })));
    }
}

function named({ name }, number) {
    const colour = make("i", { className: "swatch" });
    colour.style.background = COLOURS[number];
    return make("span", {}, colour, name);
}

function facts(run) {
    const parts = [run.began && when(Date.parse(run.began)), stepsOf(run), duration(run.began, run.ended),
        bytes(run.size), run.lora];
    const lines = [make("p", { className: "dim" }, parts.filter(Boolean).join(" · "))];
    const settings = Object.entries(run.settings ?? {}).map(([name, value]) => `${name} ${value}`).join(" · ");
    if (settings) lines.push(make("p", { className: "dim" }, settings));
    if (run.why) lines.push(make("p", { className: "why" }, whyInWords(run.why)));
    return make("div", {}, ...lines);
}

function inWords(rows) {
    if (!rows.length) return words("No losses yet");
    const [first, last] = [rows[0], rows[rows.length - 1]];
    const values = { start: first[2].toPrecision(3), first: first[0], end: last[2].toPrecision(3), last: last[0] };
    return words("Loss, smoothed: {start} at step {first}, {end} at step {last}", values);
}

function log({ log: text }) {
    if (!text) return make("div");
    const pre = make("pre", { tabIndex: 0, "aria-label": words("Log") }, text);
    return make("details", { ontoggle: () => { pre.scrollTop = pre.scrollHeight; } }, make("summary", {}, words("Log")), pre);
}

function table(differences, one, other) {
    const row = (kind, cells) => make("tr", {}, ...cells.map((cell) => make(kind, {}, cell)));
    const rows = differences.map((cells) => row("td", cells));
    return make("table", { className: "settings" }, make("thead", {}, row("th", [words("setting"), one, other])), make("tbody", {}, ...rows));
}
