// The list of runs. Only the rows in sight are elements, and only the pages in sight are asked for.
import { words } from "../words.js";
import { arrange } from "../panel/arrange.js";
import { get, pictureOf, trying } from "./server.js";
import { spark } from "./spark.js";
import { varyOpenGraph } from "./variations.js";
import { bytes, button, chip, make, stepsOf, when } from "./words.js";

const ROW = 70; // pixels
const PAGE = 100; // rows that are asked for at once
const BEYOND = 4; // rows above and below those in sight
const EVERY = 3000; // ms between two looks at what has changed
const TYPING = 200; // ms after the last key of a search

export class List {
    // ``chose`` gets one or two runs
    constructor(chose) {
        this.chose = chose;
        this.pages = new Map();
        this.found = 0;
        this.typing = 0;
        this.active = 0;
        this.chosen = [];
        this.facts = make("span", { className: "dim" });
        this.search = make("input", {
            type: "search", placeholder: words("Search names and settings"), "aria-label": words("Search runs"),
            oninput: () => this.later(), onblur: () => this.find(),
        });
        this.head = make(
            "div", { className: "head" },
            make("div", { className: "line" }, make("h2", {}, words("FLUX.2 runs")), this.facts), this.search,
            button(words("Vary the open graph …"), () => trying(varyOpenGraph),
                { className: "small", title: words("Queue the training of the open graph with other values: ranks, learning rates, seeds, data sets") }),
        );
        this.space = make("div", { className: "space", role: "presentation" });
        this.empty = make("p", { className: "dim empty" });
        this.element = make("div", {
            className: "list", role: "listbox", tabIndex: 0, "aria-label": words("Runs"), "aria-multiselectable": "true",
            onscroll: () => this.draw(), onkeydown: (event) => this.key(event),
        }, this.space);
        this.rows = new Map(); // drawn ones, by their number
        this.asked = 0; // questions; their numbers, by page, say which answer is shown: an older one does not replace it
        this.answered = new Map();
    }

    begin() {
        this.element.before(this.empty);
        this.sizes = new ResizeObserver(() => this.draw());
        this.sizes.observe(this.element);
        this.refresh();
        this.timer = setInterval(() => document.hidden || this.refresh(), EVERY);
    }

    end() {
        clearInterval(this.timer);
        clearTimeout(this.typing);
        this.typing = 0; // the field loses the focus with the tab
        this.sizes?.disconnect();
    }

    later() {
        clearTimeout(this.typing);
        this.typing = setTimeout(() => this.find(), TYPING);
    }

    // looks for what is typed, also when the field is left: who moves in the list then is not moved back to its top
    find() {
        if (!this.typing) return;
        clearTimeout(this.typing);
        this.typing = 0;
        this.element.scrollTop = 0;
        this.active = 0;
        this.refresh();
    }

    // asks anew for the pages in sight; the others are asked for when they come into sight
    async refresh() {
        const [first, last] = this.inSight();
        const wanted = new Set([Math.floor(first / PAGE), Math.floor(Math.max(first, last) / PAGE)]);
        for (const page of this.pages.keys()) if (!wanted.has(page)) this.pages.delete(page);
        await Promise.all([...wanted].map((page) => this.load(page)));
    }

    async load(page) {
        const word = this.search.value, asked = ++this.asked;
        let answer;
        try {
            answer = await get("runs", { offset: page * PAGE, count: PAGE, word });
        } catch (error) {
            this.facts.textContent = error.message;
            return;
        }
        if (word !== this.search.value || asked < (this.answered.get(page) ?? 0)) return;
        this.answered.set(page, asked);
        this.pages.set(page, answer.runs);
        this.found = answer.found;
        this.active = Math.max(0, Math.min(this.active, this.found - 1));
        this.facts.textContent = `${answer.total} · ${bytes(answer.size)}`;
        this.empty.textContent = this.found ? "" : word ? words("No run has this in its name or settings.")
            : words("Nothing has been trained yet. Every run of LoRA Trainer is listed here, also those of a terminal.");
        this.space.style.height = `${this.found * ROW}px`;
        this.draw();
    }

    inSight() {
        const first = Math.max(0, Math.floor(this.element.scrollTop / ROW) - BEYOND);
        return [first, Math.ceil((this.element.scrollTop + this.element.clientHeight) / ROW) + BEYOND];
    }

    at(number) {
        const page = Math.floor(number / PAGE);
        if (!this.pages.has(page)) {
            this.pages.set(page, []);
            this.load(page);
        }
        return this.pages.get(page)[number % PAGE];
    }

    draw() {
        const [first, last] = this.inSight(), drawn = new Map();
        const known = new Map([...this.rows.values()].map((row) => [row.name, row]));
        for (let number = first; number < Math.min(last, this.found); number += 1) {
            const run = this.at(number), before = run && known.get(run.name); // the row of a run stays while it changes
            const key = JSON.stringify([number, run ?? null]);
            const row = before?.key === key ? before : { key, name: run?.name, element: this.row(run, number, before?.element) };
            this.mark(row.element, run, number);
            drawn.set(number, row);
        }
        this.rows = drawn;
        arrange(this.space, [...drawn.values()].map(({ element }) => element));
        if (drawn.has(this.active)) this.element.setAttribute("aria-activedescendant", `flux2-run-${this.active}`);
        else this.element.removeAttribute("aria-activedescendant");
    }

    mark(element, run, number) {
        const chosen = run && this.chosen.some(({ name }) => name === run.name);
        element.classList.toggle("chosen", Boolean(chosen));
        element.classList.toggle("active", number === this.active);
        element.setAttribute("aria-selected", String(Boolean(chosen)));
        element.setAttribute("aria-setsize", this.found);
    }

    // the row of a run; ``element`` is the one that it has already
    row(run, number, element = make("div", { className: "run", role: "option" })) {
        element.id = `flux2-run-${number}`;
        element.setAttribute("aria-posinset", number + 1);
        element.style.top = `${number * ROW}px`;
        if (!run) {
            element.setAttribute("aria-label", words("loading"));
            return element;
        }
        const picture = run.preview
            ? make("img", { src: pictureOf(run, run.preview, 96), alt: "", loading: "lazy", decoding: "async" })
            : make("div", { className: "none" });
        const facts = [stepsOf(run), when(run.changed * 1000)].join(" · ");
        element.title = run.name;
        element.replaceChildren(
            picture,
            make("div", { className: "what" },
                make("div", { className: "name" }, make("b", {}, run.name), chip(run.state)),
                make("div", { className: "dim" }, facts), make("div", { className: "dim" }, settingsOf(run))),
            make("div", { className: "right dim" }, spark(run.curve), bytes(run.size)),
        );
        element.onclick = (event) => {
            this.active = number;
            this.press(run, event.ctrlKey || event.metaKey || event.shiftKey);
        };
        return element;
    }

    press(run, second) {
        const [first] = this.chosen;
        this.choose(second && first && first.name !== run.name ? [first, run] : [run]);
    }

    choose(runs) {
        this.chosen = runs;
        this.draw();
        this.chose(runs);
    }

    key(event) {
        const page = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 1), run = this.at(this.active);
        const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.found, End: this.found };
        if (event.key in moves) this.go(this.active + moves[event.key]);
        else if (event.key === "Enter" && run) this.press(run, false);
        else if (event.key === " " && run) this.press(run, true);
        else return;
        event.preventDefault();
        event.stopPropagation(); // keys of the graph behind it
    }

    go(number) {
        this.active = Math.max(0, Math.min(this.found - 1, number));
        const top = this.active * ROW, seen = this.element;
        if (top < seen.scrollTop) seen.scrollTop = top;
        if (top + ROW > seen.scrollTop + seen.clientHeight) seen.scrollTop = top + ROW - seen.clientHeight;
        this.draw();
    }
}

// what a person tells runs apart by, in one line
export function settingsOf({ settings }) {
    const { flavour, rank, learning_rate: rate, folder } = settings ?? {};
    const parts = [flavour, rank && words("rank {rank}", { rank }), rate && words("rate {rate}", { rate }), folder];
    return parts.filter(Boolean).join(" · ");
}
