// The panel of one run: how far it is, its losses, its previews, what to know and what can be done. For any run, training or
// ended: ``runPanel(name)`` returns an element, whose ``close`` ends it and whose ``feed.state`` is the run.
import { stateInWords, whyInWords, words } from "../words.js";
import { Chart } from "./chart.js";
import { Feed } from "./feed.js";
import { Previews } from "./previews.js";
import { Steering } from "./steer.js";
import { addStyle, button, make, openDialog } from "./style.js";
import { Warnings } from "./warnings.js";

const GB = 1e9;
const BAD = ["failed", "killed", "stopped"];

// a state as the panel says it, which says of two more than the list of runs
const inPanel = (status) => ({ running: words("training"), killed: words("was cut off") })[status] ?? stateInWords(status);

export function clock(seconds) {
    const whole = Math.round(seconds), minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
    const two = (value) => String(value).padStart(2, "0");
    return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

const gigabytes = (bytes) => `${(bytes / GB).toFixed(bytes < GB / 10 ? 2 : 1)} GB`;

// what was measured of the trigger, and which step is the best one
function learnedIn({ change, best, bestFile }) {
    const times = change && (change.selectivity ?? words("endless"));
    const parts = change ? [words("selectivity {times} (change {taught} with the trigger, {leaked} without)", { ...change, times })] : [];
    if (best) parts.push(bestFile ? words("best: step {step}, {file}", { step: best, file: bestFile }) : words("best so far: step {step}", { step: best }));
    return parts.join(" · ");
}

// why a run has ended; one that was cut off could not say it
function whyOf({ status, why, checkpoints }) {
    if (status !== "killed") return whyInWords(why);
    return checkpoints.size ? words("the process that trained it has ended; Go on continues from its last checkpoint")
        : words("the process that trained it has ended before the first checkpoint; Go on begins anew");
}

class Panel {
    constructor(run, options) {
        addStyle();
        this.run = run;
        this.title = make("h4", {}, make("span", { textContent: run }));
        this.chip = make("span", { className: "chip" });
        this.title.append(this.chip);
        this.pace = make("span");
        this.lost = make("p", { className: "note lost", role: "status" });
        this.where = make("p", { className: "dim where" });
        this.learned = make("p", { className: "dim learned" });
        this.fillBar = make("i");
        this.bar = make("div", { className: "bar", role: "progressbar", "aria-label": words("steps of {run}", { run }), "aria-valuemin": "0" }, this.fillBar);
        this.chart = new Chart();
        this.previews = new Previews(run);
        this.memory = make("details", {}, make("summary"), make("pre"));
        this.steering = new Steering(run, options.goOn);
        this.warnings = new Warnings(this.steering, options.showPicture);
        this.columns = make("div", { className: "columns" }, make("div", {}, this.chart.element, this.memory, this.warnings.element), this.previews.element);
        this.element = make("section", { className: "flux2-run", "aria-label": words("training run {run}", { run }) },
            make("div", { className: "row" }, this.title, this.pace), this.lost, this.where, this.learned, this.bar, this.columns, this.steering.element);
        if (options.enlarge) this.title.append(button(words("enlarge"), () => enlarge(run, options), { className: "plain" }));
        for (const kind of ["pointerdown", "wheel", "dblclick"]) {
            // the graph behind must not move; a scroll that this panel does not take belongs to the graph
            this.element.addEventListener(kind, (event) => {
                if (kind !== "wheel" || event.target.closest(".scroll, .strip, textarea")) event.stopPropagation();
            });
        }
        this.element.addEventListener("keydown", (event) => event.stopPropagation());
        this.feed = new Feed(run, (state) => this.show(state));
        this.feed.start();
    }

    show(state) {
        const { step, total, status, phase } = state, trains = state.trains, { away } = this.feed;
        this.chip.textContent = away ? words("no connection") : inPanel(trains ? "running" : status);
        this.chip.className = `chip ${away ? "" : trains ? "training" : BAD.includes(status) ? "bad" : status}`;
        this.lost.textContent = away ? words("⚠ The server cannot be reached. The panel shows what it knew last and asks again every few seconds.") : "";
        this.where.textContent = [words("step {step} of {total}", { step, total }), phase || (trains ? "" : whyOf(state))].filter(Boolean).join(" · ");
        this.pace.textContent = this.paceOf(state, trains && !away);
        this.learned.textContent = learnedIn(state);
        this.fillBar.style.width = `${total ? (100 * step) / total : 0}%`;
        this.bar.setAttribute("aria-valuemax", total);
        this.bar.setAttribute("aria-valuenow", step);
        this.chart.show(state);
        this.previews.show(state);
        this.columns.classList.toggle("both", state.previews.size > 0);
        this.showMemory(state);
        this.steering.show(state, away);
        this.warnings.show(state);
        this.element.dispatchEvent(new CustomEvent("flux2shown"));
    }

    paceOf(state, trains) {
        const each = state.secondsPerStep;
        if (!each) return "";
        const pace = words("{seconds} s a step", { seconds: each < 0.095 ? each.toFixed(3) : each.toFixed(2) });
        if (!trains) return state.saved ? `${pace} · ${state.saved}` : pace;
        const ends = new Date(Date.now() + state.secondsLeft * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
        return [pace, words("{time} left", { time: clock(state.secondsLeft) }), words("ends {time}", { time: ends })].join(" · ");
    }

    showMemory({ plan, used, whole }) {
        this.memory.hidden = !plan;
        if (!plan) return;
        const parts = Object.entries(plan.parts).sort((a, b) => b[1] - a[1]).map(([name, size]) => `${name.padEnd(22)} ${gigabytes(size)}`);
        const measured = !used ? "" : whole ? words(", the whole program {size} at most", { size: gigabytes(used) }) : words(", used {size} at most", { size: gigabytes(used) });
        this.memory.firstChild.textContent = words("Memory: plan {size}", { size: gigabytes(plan.peak) }) + measured;
        this.memory.lastChild.textContent = [...parts, "", plan.text].join("\n");
    }

    close() {
        this.feed.stop();
        this.chart.close();
    }
}

// ``goOn`` queues the run's graph; ``enlarge`` adds a button that opens the panel large; ``showPicture`` opens a picture of
// the data set.
export function runPanel(run, options = {}) {
    const panel = new Panel(run, options);
    return Object.assign(panel.element, { close: () => panel.close(), feed: panel.feed, panel });
}

function enlarge(run, options) {
    const inner = runPanel(run, { ...options, enlarge: false });
    openDialog(make("dialog", { className: "flux2-full large", "aria-label": words("training run {run}", { run }) }, inner), () => inner.close());
}
