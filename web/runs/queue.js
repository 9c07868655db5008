// The queue of jobs above the list of runs: what trains, what waits, what has ended and why.
import { stateInWords, words } from "../words.js";
import { arrange } from "../panel/arrange.js";
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
        this.rows = new Map(); // by what they show
        this.asked = this.answered = 0; // numbers of the last question, and of the one whose answer is shown
        this.changing = 0;
    }

    begin() {
        this.refresh();
        this.timer = setInterval(() => document.hidden || this.refresh(), EVERY);
    }

    end() {
        clearInterval(this.timer);
    }

    async refresh(open = false) {
        if (this.changing) return; // the answer to the change says how the queue is then
        const asked = ++this.asked;
        let answer;
        try {
            answer = await get("queue");
        } catch {
            return; // the list of runs says what is wrong with the server
        }
        if (open) this.element.open = true;
        this.take(asked, answer);
    }

    // an answer that a newer one has overtaken is left out
    take(asked, answer) {
        if (asked < this.answered) return;
        this.answered = asked;
        this.show(answer);
    }

    async change(path, body) {
        const asked = ++this.asked;
        this.changing += 1;
        const answer = await trying(() => post(path, body));
        this.changing -= 1;
        if (answer) this.take(asked, answer);
        else this.refresh();
    }

    show({ paused, jobs }) {
        this.paused = paused;
        const count = (state) => jobs.filter((job) => job.state === state).length;
        const counts = Object.keys(STATES).filter(count).map((state) => `${count(state)} ${stateInWords(state)}`);
        const texts = [words("Queue: {jobs}", { jobs: counts.join(", ") || words("empty") }), ...(paused ? [`(${words("paused")})`] : [])];
        this.title.textContent = texts.join(" ");
        this.pause.textContent = paused ? words("Go on") : words("Pause");
        this.element.hidden = !jobs.length && !paused;
        const waiting = jobs.filter((job) => job.state === "waiting");
        const held = document.activeElement?.dataset?.key; // the focus stays on the button that was pressed
        this.rows = new Map(jobs.map((job) => {
            const place = waiting.indexOf(job), given = [job, place, place >= 0 && place < waiting.length - 1], shown = JSON.stringify(given);
            return [shown, this.rows.get(shown) ?? this.row(...given)];
        }));
        arrange(this.jobs, [...this.rows.values()]);
        if (held && !this.jobs.contains(document.activeElement)) this.jobs.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
    }

    // ``place`` is that among the jobs that wait, -1 for another one; ``others``: some wait behind it
    row(job, place, others) {
        const does = (text, label, body) => {
            const made = button(text, () => this.change("queue/change", { job: job.name, ...body }), {
                "aria-label": `${label}: ${job.title}`, title: label, className: "small" });
            made.dataset.key = `${label} ${job.title}`;
            return made;
        };
        const all = [
            place > 0 && does("↑", words("Earlier"), { do: "move", place: place - 1 }),
            others && does("↓", words("Later"), { do: "move", place: place + 1 }),
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
