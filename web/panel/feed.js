// Keeps the state of runs up to date: from ComfyUI's websocket while this server trains them, else by asking the server.
import { api } from "../../../scripts/api.js";
import { words } from "../words.js";
import { reach } from "./reach.js";
import { RunState } from "./run_state.js";

const EVENT = "flux2_train.run";
const ASK_EVERY = 2000; // ms, for a run that another process trains, or whose messages do not come
const followers = new Map(); // by run: Set of Feed

export async function ask(query) {
    const answer = await reach(`/flux2_train/run?${new URLSearchParams(query)}`);
    return answer.ok ? await answer.json() : {};
}

// asks something of a run; returns what is wrong, in words, or an empty text
export async function steer(run, what, change = undefined) {
    const body = JSON.stringify({ run, ask: what, ...(change ? { change } : {}) });
    const answer = await reach("/flux2_train/steer", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (answer.ok) return "";
    return (await answer.json().catch(() => ({}))).error ?? words("The server answered {status}.", { status: answer.status });
}

export class Feed {
    // changed(state) is called at most once a frame
    constructor(run, changed) {
        this.run = run;
        this.changed = changed;
        this.state = new RunState();
        this.away = false; // whether the server cannot be reached; the panel then shows what was known last
        this.heard = 0;
        this.load();
    }

    start() {
        if (!followers.has(this.run)) followers.set(this.run, new Set());
        followers.get(this.run).add(this);
        this.timer ??= setInterval(() => this.look(), ASK_EVERY);
        this.look(true);
    }

    stop() {
        this.stopped = true;
        followers.get(this.run)?.delete(this);
        clearInterval(this.timer);
        this.timer = null;
    }

    load() {
        return this.refresh(0);
    }

    async refresh(after) {
        if (this.asking || this.stopped) return;
        this.asking = true;
        try {
            const answer = await ask({ run: this.run, after }).catch(() => null);
            this.reached(Boolean(answer)); // if it is away, the next look asks again
            if (!answer?.run) return;
            // A record only grows. One shorter than it was when we asked is another run's that has this name now; the
            // websocket may have brought lines since then.
            if (answer.next < after) {
                this.state = new RunState();
                setTimeout(() => this.refresh(0));
                return;
            }
            if (this.state.next === after) {
                this.state.add(answer.lines);
                this.state.next = answer.next;
            }
            this.state.take(answer);
            this.draw();
        } finally {
            this.asking = false;
        }
    }

    reached(answers) {
        if (this.away === !answers) return;
        this.away = !answers;
        this.draw();
    }

    // lines from the websocket: those that follow what is known are added, after a gap the server is asked
    hear({ first, lines }) {
        this.heard = Date.now();
        this.reached(true);
        if (first > this.state.next || !lines.length) return void this.refresh(this.state.next);
        const fresh = lines.slice(this.state.next - first);
        this.state.add(fresh);
        if (fresh.some(({ kind }) => kind === "ended")) this.refresh(this.state.next);
        this.draw();
    }

    look(now = false) {
        const quiet = Date.now() - this.heard > 1.5 * ASK_EVERY;
        const goesOn = this.state.trains || this.state.status === "running";
        if (now || this.away || (quiet && goesOn)) this.refresh(this.state.next);
    }

    draw() {
        this.frame ??= requestAnimationFrame(() => {
            this.frame = null;
            if (!this.stopped) this.changed(this.state); // an answer may come after the panel was closed
        });
    }
}

api.addEventListener(EVENT, ({ detail }) => {
    for (const feed of followers.get(detail.run) ?? []) feed.hear(detail);
});
const each = (act) => [...followers.values()].forEach((feeds) => feeds.forEach(act));
api.addEventListener("reconnecting", () => each((feed) => feed.reached(false)));
api.addEventListener("reconnected", () => each((feed) => feed.look(true)));
