// The buttons of a run. Each says in words what came of it.
import { words } from "../words.js";
import { steer } from "./feed.js";
import { button, make } from "./style.js";

const done = (what) => ({
    stop: words("It ends after the step in progress and keeps its LoRA."),
    pause: words("It saves a checkpoint after the step in progress and ends; Go on continues from there."),
    save: words("A checkpoint is saved after the step in progress."),
    preview: words("Previews are painted after the step in progress."),
    change: words("Changed from the next step on."),
})[what];

export class Steering {
    constructor(run, goOn) {
        this.run = run;
        const act = (name, text, title, properties = {}) => button(text, () => this.ask(name), { title, ...properties });
        this.buttons = [
            act("stop", words("Stop and keep"), words("End after the step in progress, as if it were the last; the rest of the graph runs"), { className: "main" }),
            act("pause", words("Pause"), words("Save a checkpoint and end the job, so that the card is free")),
            act("save", words("Save now"), words("Write a checkpoint")),
            act("preview", words("Preview now"), words("Paint the previews")),
            button(words("Change …"), () => this.toggle(), { title: words("Learning rate, steps and preview prompts"), "aria-expanded": "false" }),
        ];
        this.goOn = goOn && button(words("Go on"), () => this.continue(goOn), { className: "main", title: words("Queue the same graph: the run goes on where it ended") });
        this.said = make("p", { className: "said", role: "status" });
        this.form = this.makeForm();
        this.row = make("div", { className: "buttons" }, ...this.buttons, ...(this.goOn ? [this.goOn] : []));
        this.element = make("div", {}, this.row, this.form, this.said);
    }

    makeForm() {
        const field = (name, properties) => make("input", { id: `flux2-${name}-${this.run}`, ...properties });
        this.rate = field("rate", { type: "number", step: "any", min: 0, max: 1 });
        this.steps = field("steps", { type: "number", step: 1, min: 1 });
        this.prompts = make("textarea", { rows: 4, "aria-label": words("preview prompts, one per line") });
        const label = (text, input) => make("label", { htmlFor: input.id, textContent: text });
        const form = make("form", { hidden: true, "aria-label": words("change the run") }, label(words("learning rate"), this.rate), this.rate,
            label(words("steps"), this.steps), this.steps, this.prompts,
            make("div", { className: "row" }, make("span", { className: "dim", textContent: words("preview prompts, one per line") }), make("button", { type: "submit", className: "main", textContent: words("Apply") })));
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            this.apply();
        });
        return form;
    }

    // ``away``: the server cannot be reached
    show(state, away) {
        if (this.state && (this.trained !== state.trains || this.away !== away)) this.say("", false);
        Object.assign(this, { state, away, trained: state.trains });
        for (const each of this.buttons) each.hidden = !state.trains;
        this.buttons[3].hidden ||= !state.prompts.length;
        this.prompts.hidden = !state.prompts.length;
        if (this.goOn) this.goOn.hidden = state.trains || state.status === "finished" || !state.status;
        if (!state.trains && !this.form.hidden) this.toggle();
        this.row.hidden = [...this.row.children].every((each) => each.hidden);
    }

    toggle() {
        this.form.hidden = !this.form.hidden;
        this.buttons[4].setAttribute("aria-expanded", String(!this.form.hidden));
        if (this.form.hidden) return;
        this.rate.value = this.state.learningRate ?? "";
        this.steps.value = this.state.total;
        this.prompts.value = this.state.prompts.join("\n");
        this.rate.focus();
    }

    async apply() {
        const change = {}, { state } = this, rate = Number(this.rate.value), steps = Number(this.steps.value);
        const prompts = this.prompts.value.split("\n").map((line) => line.trim()).filter(Boolean);
        if (this.rate.value && rate !== state.learningRate) change.learning_rate = rate;
        if (this.steps.value && steps !== state.total) change.steps = steps;
        if (state.prompts.length && prompts.join("\n") !== state.prompts.join("\n")) change.prompts = prompts;
        if (!Object.keys(change).length) return this.say(words("Nothing is different."), false);
        if (await this.ask("change", change)) this.toggle();
    }

    async ask(what, change) {
        const wrong = await steer(this.run, what, change).catch((error) => error.message);
        this.say(wrong || done(what), Boolean(wrong));
        return !wrong;
    }

    async continue(goOn) {
        if (this.away) return this.say(words("The server cannot be reached."), true);
        this.say(words("Queued: it goes on when its turn comes."), false);
        await goOn();
    }

    say(text, wrong) {
        this.said.textContent = text;
        this.said.classList.toggle("wrong", wrong);
    }
}
