// The warnings of a run as rows, each with buttons for what the panel itself can do about it; below them the notes.
import { words } from "../words.js";
import { arrange } from "./arrange.js";
import { button, make } from "./style.js";

const half = (rate) => Number((rate / 2).toPrecision(3));

// by the remedy that the engine names: the button's text, and what it does
const REMEDIES = {
    lower_rate: {
        text: ({ learningRate }) => words("Halve the learning rate to {rate}", { rate: half(learningRate) }),
        act: (steering, { learningRate }) => steering.ask("change", { learning_rate: half(learningRate) }),
        can: ({ learningRate }) => learningRate > 0,
    },
    save: { text: () => words("Save now"), act: (steering) => steering.ask("save") },
    pause: { text: () => words("Pause"), act: (steering) => steering.ask("pause") },
    change: { text: () => words("Change …"), act: (steering) => steering.form.hidden && steering.toggle() },
};

export class Warnings {
    // ``showPicture(name)`` opens a picture of the data set; without it there is no button for that
    constructor(steering, showPicture) {
        Object.assign(this, { steering, showPicture, rows: new Map() });
        this.element = make("div", { className: "scroll", role: "log", "aria-label": words("warnings") });
    }

    // Rows stay where they are, and only new ones are added: a button must not be replaced while it is pressed.
    show(state) {
        this.state = state;
        const rows = [...state.warnings.map((text) => this.row(text, true)), ...[...new Set(state.notes)].map((text) => this.row(text, false))];
        arrange(this.element, rows.map(({ element }) => element));
        for (const { update } of rows) update();
    }

    row(text, warns) {
        const key = `${warns}${text}`;
        if (!this.rows.has(key)) this.rows.set(key, warns ? this.warning(text) : { element: make("p", { className: "note", textContent: text }), update: () => {} });
        return this.rows.get(key);
    }

    warning(text) {
        const { remedies, pictures } = this.state.helps.get(text);
        const acts = remedies.filter((name) => name in REMEDIES).map((name) => this.remedy(REMEDIES[name]));
        const looks = this.showPicture ? pictures.map((name) => button(words("Show {picture}", { picture: name }), () => this.showPicture(name))) : [];
        const buttons = make("span", { className: "helps" }, ...acts.map(({ made }) => made), ...looks);
        const element = make("p", { className: "note warning", textContent: `⚠ ${text}` });
        if (buttons.children.length) element.append(buttons);
        return { element, update: () => acts.forEach(({ update }) => update()) };
    }

    // a button that is there while the run trains and could obey it
    remedy({ text, act, can = () => true }) {
        const made = button("", () => act(this.steering, this.state));
        const update = () => {
            made.hidden = !this.state.trains || !can(this.state);
            if (!made.hidden && made.textContent !== text(this.state)) made.textContent = text(this.state);
        };
        return { made, update };
    }
}
