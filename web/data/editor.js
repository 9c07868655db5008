// One picture at a size at which it can be judged: its crop, caption, verdict, and what can be done with it.
import { counted, words } from "../words.js";
import { afterwards, button, el } from "./dom.js";
import { drawBoxes } from "./grid.js";
import { addressOf, flavourOf, send } from "./requests.js";
import { placeOf, withTrigger } from "./captions.js";
import { markInWords } from "./marks.js";
import { paintMask } from "./mask.js";

const MOST_REPEATS = 100;
const COUNT_WAIT = 250; // ms

export class Editor {
    constructor(model, folder, go) {
        Object.assign(this, { model, folder, go, picture: null, flavour: flavourOf() });
        this.image = el("div", { className: "im" });
        this.facts = el("div", { className: "dim" });
        this.text = el("textarea", {
            "aria-label": words("Caption"), spellcheck: true, maxLength: 60000,
            on: { input: () => this.typed(), keydown: (event) => this.key(event), blur: () => this.model.flush() },
        });
        this.trained = el("div", { className: "trained" });
        this.count = el("div", { className: "dim", role: "status" });
        this.notes = el("div", { className: "row" });
        this.exclude = button(words("Exclude"), () => this.toggle());
        this.repeat = el("input", {
            type: "number", className: "repeat", min: 1, max: MOST_REPEATS, "aria-label": words("How often it is seen"),
            on: { change: () => this.repeated() },
        });
        this.mask = button(words("Paint mask"), () => this.paint());
        this.element = el("section", { className: "editor", "aria-label": words("The picture") });
        this.countSoon = afterwards(() => this.counted(), COUNT_WAIT);
        new ResizeObserver(() => this.boxes()).observe(this.image);
        this.open(null);
    }

    get settings() { return this.model.settings; }

    get prepends() { return this.settings.caption_options?.prepend_trigger ?? true; }

    open(picture, focus = false) {
        const other = picture !== this.picture;
        if (other) { this.model.flush(); this.lent = ""; }
        this.picture = picture;
        if (!picture) return this.element.replaceChildren(el("p", { className: "dim", text: words("Choose a picture.") }));
        if (other || !this.text.isConnected) {
            this.element.replaceChildren(this.image, this.facts, this.text, this.trained, this.count, this.notes,
                el("div", { className: "row" }, this.exclude, el("label", {}, `${words("Repeat x")} `, this.repeat), this.mask),
                el("div", { className: "row" }, button(words("◀ Previous"), () => this.go(-1)), button(words("Next ▶"), () => this.go(1))));
            this.img = el("img", { alt: picture.name });
            if (picture.width) this.img.src = addressOf("thumbnail", { folder: this.folder, name: picture.name, side: 1024, v: picture.stamp });
            this.boxes();
        }
        this.fill();
        if (focus) this.text.focus();
        return undefined;
    }

    boxes() {
        const { picture, image } = this;
        if (!picture || !this.img) return;
        image.replaceChildren(this.img, ...(picture.width ? drawBoxes(picture, image.clientWidth, image.clientHeight) : []));
    }

    fill() {
        const { picture, model } = this;
        const fixed = Boolean(model.fixed);
        this.facts.textContent = `${picture.name} · ${picture.width} x ${picture.height} → ${picture.sizes.join(", ")}`;
        if (document.activeElement !== this.text || this.text.value !== (picture.caption ?? "")) {
            if (this.text.value !== (picture.caption ?? "")) this.text.value = picture.caption ?? "";
        }
        Object.assign(this.text, { readOnly: fixed, placeholder: fixed ? model.fixed : words("no caption") });
        for (const each of [this.exclude, this.repeat, this.mask]) each.disabled = Boolean(model.readonly);
        this.exclude.textContent = picture.exclude ? words("Put back") : words("Exclude");
        this.exclude.setAttribute("aria-pressed", String(picture.exclude));
        this.repeat.value = picture.repeat;
        this.mask.textContent = picture.mask ? words("Change mask") : words("Paint mask");
        this.showTrained();
        this.notes.replaceChildren(...this.notesOf());
    }

    // the caption with its trigger, which is marked
    showTrained() {
        const trigger = (this.settings.trigger ?? "").trim(), caption = this.picture.caption ?? "";
        const whole = this.settings.is_reg ? caption : withTrigger(caption, trigger, this.prepends);
        const parts = trigger && !this.settings.is_reg ? whole.split(trigger) : [whole];
        this.trained.replaceChildren(...parts.flatMap((part, number) => (number ? [el("mark", { text: trigger }), part] : [part])));
        this.trained.hidden = !whole;
        const number = whole.split(/\s+/).filter(Boolean).length;
        this.count.textContent = `${counted(number, words("{count} word"), words("{count} words"))} · ${placeOf(caption, trigger, this.prepends)}`;
        this.countSoon();
    }

    async counted() {
        const { picture } = this;
        const whole = this.trained.textContent;
        if (!picture) return;
        try {
            const { counts: [number], what } = await send("tokens", { flavour: this.flavour, texts: [whole] });
            if (picture !== this.picture || whole !== this.trained.textContent || what !== "tokens") return;
            const [spoken, place] = this.count.textContent.split(" · ");
            this.count.textContent = `${words("{words}, {number} of 512 tokens", { words: spoken, number })} · ${place}`;
        } catch { /* the words are counted already */ }
    }

    notesOf() {
        const { picture, model } = this;
        const notes = [];
        const note = (text, kind, ...buttons) => notes.push(el("div", { className: `note ${kind}` }, el("div", { text }), ...buttons));
        if (model.fixed) note(model.fixed, "");
        if (picture.theirs) {
            note(words("Somebody else changed this caption meanwhile:"), "bad", el("div", { className: "trained", text: picture.theirs.caption ?? words("no caption") }),
                button(words("Take theirs"), () => model.settle(picture, false)), button(words("Keep mine"), () => model.settle(picture, true)));
        }
        if (picture.verdict) note(`${markInWords(picture.verdict)}: ${picture.reason}`, "bad", ...this.verdictButtons());
        if (picture.warnings.length) note(picture.warnings.map(markInWords).join("; "), "");
        return notes;
    }

    verdictButtons() {
        const { picture, model } = this;
        const lender = picture.verdict === "mislabelled" && model.pictures.find((each) => each && (each.name === picture.better || each.name.endsWith(`/${picture.better}`)));
        if (!lender) return [];
        if (this.lent !== picture.name) {
            return [button(words("Show the caption that fits better"), () => { this.lent = picture.name; this.fill(); })];
        }
        const use = button(words("Use it"), () => { model.setCaptions([[picture, lender.caption ?? ""]]); this.fill(); });
        use.disabled = Boolean(model.fixed);
        return [el("div", { className: "trained", text: `${lender.name}: ${lender.caption ?? words("no caption")}` }), use];
    }

    typed() {
        const text = this.text.value;
        this.model.setCaptions([[this.picture, text === "" && !this.picture.etag ? null : text]], true);
        this.showTrained();
    }

    toggle() {
        const { picture } = this;
        return this.model.setMarks([[picture, { exclude: !picture.exclude, repeat: picture.repeat }]]);
    }

    repeated() {
        const number = Math.max(1, Math.min(MOST_REPEATS, Math.round(Number(this.repeat.value)) || 1));
        this.repeat.value = number;
        return this.model.setMarks([[this.picture, { exclude: this.picture.exclude, repeat: number }]]);
    }

    async paint() {
        const { picture } = this;
        const result = await paintMask(this.model, this.folder, picture);
        if (result !== null) picture.mask = result;
        this.model.tell("changed", { pictures: [picture] });
        this.mask.focus();
    }

    key(event) {
        if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
            event.preventDefault();
            this.go(event.key === "ArrowUp" ? -1 : 1, true);
        }
    }
}
