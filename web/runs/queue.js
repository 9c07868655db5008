// The queue of jobs above the list of runs: what trains, what waits, what has ended and why.
import { stateInWords, words } from "../words.js";
import { get, post, trying } from "./server.js";
import { button, chip, make } from "./words.js";

const EVERY = 4000; // ms
const STATES = { running: "running", waiting: "waiting", paused: "paused", stopped: "stopped", failed: "failed", done: "finished" }; // colours of the runs

const ENDED = ["paused", "stopped", "failed", "done"];

export class QueueBox {
    constructor() {
        this.title = make("summary", {}, words("Queue"));
        this.jobs = make("ol", {});
        this.pause = button(words("Pause"), () => this.change("queue/pause", { paused: !this.paused }));
        this.element = make("details", { className: "queue", hidden: true }, this.title,
            make("div", { className: "line" }, this.pause, make("small", { className: "dim" },
                words("Trained one after the other when ComfyUI has nothing else to do."))), this.jobs);
        this.paused = false;
        this.written = "";
    }

    begin() {
        this.refresh();
        this.timer = setInterval(() => document.hidden || this.refresh(), EVERY);
    }

    end() {
        clearInterval(this.timer);
    }

    async refresh(open = false) {
        let answer;
        try {
            answer = await get("queue");
        } catch {
            return; // the list of runs says what is wrong with the server
        }
        if (open) this.element.open = true;
        this.show(answer);
    }

    async change(path, body) {
        const answer = await trying(() => post(path, body));
        if (answer) this.show(answer);
        else this.refresh();
    }

    show({ paused, jobs }) {
        const text = JSON.stringify([paused, jobs]);
        if (text === this.written) return;
        this.written = text;
        this.paused = paused;
        const count = (state) => jobs.filter((job) => job.state === state).length;
        const counts = Object.keys(STATES).filter(count).map((state) => `${count(state)} ${stateInWords(state)}`);
        const texts = [words("Queue: {jobs}", { jobs: counts.join(", ") || words("empty") }), ...(paused ? [`(${words("paused")})`] : [])];
        this.title.textContent = texts.join(" ");
        this.pause.textContent = paused ? words("Go on") : words("Pause");
        this.element.hidden = !jobs.length && !paused;
        const waiting = jobs.filter((job) => job.state === "waiting");
        const held = document.activeElement?.dataset?.key; // the focus stays on the button that was pressed
        this.jobs.replaceChildren(...jobs.map((job) => this.row(job, waiting.indexOf(job), waiting.length)));
        if (held) this.jobs.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
    }

    row(job, place, count) {
        const does = (text, label, body) => {
            const made = button(text, () => this.change("queue/change", { job: job.name, ...body }), {
                "aria-label": `${label}: ${job.title}`, title: label, className: "small" });
            made.dataset.key = `${label} ${job.title}`;
            return made;
        };
        const all = [
            place > 0 && does("↑", words("Earlier"), { do: "move", place: place - 1 }),
            place >= 0 && place < count - 1 && does("↓", words("Later"), { do: "move", place: place + 1 }),
            ENDED.includes(job.state) && does("↻", words("Again"), { do: "again" }),
            job.state !== "running" && does("×", words("Remove"), { do: "remove" }),
        ];
        const state = chip(job.state);
        state.className = `chip ${STATES[job.state]}`;
        return make("li", {}, make("div", { className: "line" }, state,
            make("span", { className: "grow" }, job.title), ...all.filter(Boolean)),
        ...(job.why ? [make("div", { className: "why" }, job.why)] : []));
    }
}
