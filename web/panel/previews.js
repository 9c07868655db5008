// The previews of a run: base and LoRA under a slider, the same prompt through time, every prompt by arrows, full size.
import { api } from "../../../scripts/api.js";
import { words } from "../words.js";
import { button, make, openDialog } from "./style.js";

const MOST_STRIP = 40; // pictures in the strip; of more, evenly chosen ones and the last

function address(run, file, step) {
    const query = { filename: file, subfolder: `flux2_train/${run}/previews`, type: "output", at: step };
    return api.apiURL(`/view?${new URLSearchParams(query)}`);
}

const painted = (run, step, { number }) => address(run, `step_${String(step).padStart(6, "0")}_${number}.png`, step);
const base = (run, { number }) => address(run, `base_${number}.png`, 0);

function spread(values, most) {
    if (values.length <= most) return values;
    return [...new Set(Array.from({ length: most }, (_, i) => values[Math.round((i * (values.length - 1)) / (most - 1))]))];
}

export class Previews {
    constructor(run) {
        this.run = run;
        this.place = 0; // of the prompt among all that were painted
        this.step = null; // the one that was clicked; null follows the newest
        this.under = make("img", { alt: words("by the base model") });
        this.over = make("img", { alt: words("with the LoRA"), className: "over" });
        this.slide = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": words("base to LoRA") });
        this.line = make("div", { className: "line" });
        this.badges = [make("span", { className: "badge", style: "left: 6px", textContent: words("base") }), make("span", { className: "badge", style: "right: 6px" })];
        this.slider = make("div", { className: "slider" }, this.under, this.over, this.slide, this.line, ...this.badges);
        this.before = button("◀", () => this.turn(-1), { title: words("previous prompt"), "aria-label": words("previous prompt") });
        this.after = button("▶", () => this.turn(1), { title: words("next prompt"), "aria-label": words("next prompt") });
        this.label = make("span", { className: "label" });
        this.seed = make("span", { className: "dim" });
        this.full = button(words("full size"), () => this.open(), { className: "plain" });
        this.near = make("p", { className: "dim near" });
        this.strip = make("div", { className: "strip", role: "group", "aria-label": words("previews through time") });
        this.element = make("div", { className: "previews" }, this.slider,
            make("div", { className: "row" }, make("span", { className: "turn" }, this.before, this.label, this.after), make("span", {}, this.seed, this.full)),
            this.near, this.strip);
        this.slide.addEventListener("input", () => this.cut());
        this.slider.addEventListener("pointerdown", (event) => (this.pressed = [event.clientX, event.clientY]));
        this.slider.addEventListener("click", (event) => {
            const [x, y] = this.pressed ?? [0, 0];
            if (event.detail && Math.hypot(event.clientX - x, event.clientY - y) < 4) this.open();
        });
        this.cut();
    }

    get steps() {
        const number = this.picture?.number;
        return [...this.state.previews].filter(([, pictures]) => pictures.some((each) => each.number === number)).map(([step]) => step);
    }

    show(state) {
        this.state = state;
        const all = state.pictures;
        this.element.hidden = !all.length;
        if (!all.length) return;
        this.place = Math.min(this.place, all.length - 1);
        this.picture = all[this.place];
        const steps = this.steps, step = steps.includes(this.step) ? this.step : steps.at(-1);
        this.at = step;
        this.source(this.under, base(this.run, this.picture));
        this.source(this.over, painted(this.run, step, this.picture));
        this.badges[1].textContent = words("LoRA, step {step}", { step });
        const place = all.length > 1 ? [words("{number} of {count}", { number: this.place + 1, count: all.length })] : [];
        this.label.textContent = this.label.title = `“${this.picture.label}”`;
        this.seed.textContent = [...place, words("seed {seed}", { seed: this.picture.seed })].join(" · ");
        this.showNearest(state.previews.get(step)?.find(({ number }) => number === this.picture.number));
        this.before.disabled = this.after.disabled = all.length < 2;
        this.fill(spread(steps, MOST_STRIP), step);
    }

    // the training picture that this one is nearest to; 1 is the usual distance among the training pictures
    showNearest({ nearest, distance, copied } = {}) {
        const said = copied ? words("⚠ copies the training picture {nearest}, distance {distance}", { nearest, distance })
            : words("nearest training picture {nearest}, distance {distance}", { nearest, distance });
        this.near.textContent = nearest ? said : "";
    }

    source(image, address) {
        if (image.getAttribute("src") !== address) image.src = address;
    }

    fill(steps, chosen) {
        const due = this.state.trains && this.state.every ? (Math.floor(this.state.step / this.state.every) + 1) * this.state.every : 0;
        const key = [this.picture.number, ...steps, chosen, due].join();
        if (key === this.filled) return;
        this.filled = key;
        const children = steps.map((step) => {
            const image = make("img", { src: painted(this.run, step, this.picture), alt: "", loading: "lazy" });
            const seen = step ? String(step) : words("start"), name = words("preview after step {step}", { step });
            const made = button("", () => this.choose(step), { "aria-label": step ? name : `${seen}, ${name}` }); // says what is seen
            made.setAttribute("aria-current", String(step === chosen));
            made.append(image, seen);
            return made;
        });
        if (due) children.push(make("span", { className: "due", title: words("the next preview"), textContent: String(Math.min(due, this.state.total)) }));
        this.strip.replaceChildren(...children);
        if (this.step === null) this.strip.scrollLeft = this.strip.scrollWidth;
    }

    choose(step) {
        this.step = step === this.steps.at(-1) ? null : step;
        this.show(this.state);
    }

    turn(by) {
        const count = this.state.pictures.length;
        this.place = (this.place + by + count) % count;
        this.show(this.state);
    }

    cut() {
        const share = Number(this.slide.value);
        this.over.style.clipPath = `inset(0 0 0 ${share}%)`;
        this.line.style.left = `calc(${share}% - 1px)`;
    }

    open() {
        const figure = (image, caption) => make("figure", {}, make("img", { src: image.src, alt: image.alt }), make("figcaption", { textContent: caption }));
        openDialog(make("dialog", { className: "flux2-full", "aria-label": words("preview in full size") },
            make("div", { className: "pair" }, figure(this.under, words("base model")), figure(this.over, `${words("LoRA, step {step}", { step: this.at })}: ${this.picture.label}`))));
    }
}
