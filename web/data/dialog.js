// The browser of pictures: a grid beside an editor, chips that filter, tools for all captions, and what a run said.
import { counted, words } from "../words.js";
import { button, countedCaptions, countedPictures, el, inWords } from "./dom.js";
import { Editor } from "./editor.js";
import { Grid } from "./grid.js";
import { isNamed, Model } from "./model.js";
import { markInWords } from "./marks.js";
import { replaced, tagged, untagged } from "./captions.js";
import { read, send, settingsOf } from "./requests.js";
import { addStyle } from "./style.js";

const VERDICTS = ["not learnable", "mislabelled", "memorised"];
const FILTERS = {
    all: () => true,
    "no caption": (picture) => !picture.caption?.trim(),
    warnings: (picture) => picture.warnings.length > 0,
    ...Object.fromEntries(VERDICTS.map((verdict) => [verdict, (picture) => picture.verdict === verdict])),
    excluded: (picture) => picture.exclude,
    repeated: (picture) => picture.repeat > 1,
};
const ALWAYS = ["all", "no caption", "warnings", "excluded"];

class Dialog {
    // ``wanted`` is the name of the picture to begin with
    constructor(node, wanted) {
        Object.assign(this, { node, wanted });
        this.folder = node.widgets.find(({ name }) => name === "folder").value;
        this.model = new Model(settingsOf(node));
        this.filter = "all";
        this.grid = new Grid(this.model, this.folder, (picture, focus) => this.editor.open(picture ?? null, focus));
        this.editor = new Editor(this.model, this.folder, (step, focus) => this.go(step, focus));
        this.title = el("h2", { text: words("Pictures of {folder}", { folder: this.folder }) });
        this.counts = el("span", { className: "dim" });
        this.chips = el("div", { className: "chips", role: "group", "aria-label": words("Which pictures are shown") });
        this.search = el("input", { type: "search", placeholder: words("search captions and names"), "aria-label": words("Search"), on: { input: () => this.choose() } });
        this.verdicts = el("div", { className: "verdicts" });
        this.tools = el("div", { className: "tools" });
        this.status = el("span", { className: "dim", role: "status" });
        this.element = el("dialog", { className: "flux2-data", "aria-label": words("Pictures of {folder}", { folder: this.folder }) },
            this.head(), this.verdicts, this.tools, el("div", { className: "body" }, this.grid.element, this.editor.element));
        this.listen();
    }

    head() {
        return el("div", { className: "head" },
            el("div", { className: "row wide" }, this.title, this.counts, el("span", { className: "space" }), this.status,
                button(words("Undo"), () => this.model.undo()), button(words("Close"), () => this.close())),
            this.chips, this.search, el("span", { className: "space" }), button(words("Search and replace"), () => this.toolbar("replace")),
            button(words("Tags"), () => this.toolbar("tags")), button(words("Cache"), () => this.toolbar("cache")));
    }

    listen() {
        const { model, element } = this;
        model.addEventListener("changed", ({ detail }) => this.changed(detail));
        model.addEventListener("said", ({ detail }) => { this.status.textContent = detail.text; });
        model.addEventListener("saving", () => { this.status.textContent = words("saving ..."); });
        model.addEventListener("saved", ({ detail }) => { if (!detail.wrong) this.status.textContent = words("saved"); });
        model.addEventListener("undone", ({ detail }) => this.seek(detail.pictures[0]));
        element.addEventListener("keydown", (event) => this.key(event));
        for (const kind of ["keyup", "keypress", "paste", "copy", "cut", "drop", "dragover", "wheel", "contextmenu"]) {
            element.addEventListener(kind, (event) => event.stopPropagation());
        }
        element.addEventListener("cancel", (event) => { event.preventDefault(); this.close(); });
    }

    async open() {
        document.body.append(this.element);
        this.element.showModal();
        this.grid.element.focus();
        try {
            const { wanted } = this;
            await this.model.load();
            if (!wanted || this.wanted) this.grid.select(0, false);
        } catch (error) {
            this.status.textContent = error.message;
            this.editor.element.replaceChildren(el("p", { className: "note bad", text: error.message }));
        }
    }

    // what is not saved keeps the dialog open once
    async close() {
        await this.model.flush();
        const open = this.known().filter((picture) => picture.theirs || this.model.dirty.has(picture.name));
        if (open.length && !this.warned) {
            this.warned = true;
            this.seek(open[0]);
            return this.model.say(counted(open.length, words("{count} caption not saved yet. Close again to leave them."),
                words("{count} captions not saved yet. Close again to leave them.")));
        }
        this.model.closed = true;
        this.element.close();
        this.element.remove();
        return this.node.flux2Pictures?.focus();
    }

    changed({ all, pictures, marks }) {
        this.shownChips();
        if (all || marks) this.showVerdicts();
        if (all) this.choose();
        else this.grid.refresh(pictures);
        if (all && !this.editor.picture) this.editor.open(this.model.pictures[this.grid.shown[this.grid.at]] ?? null);
        if (all) this.seekWanted();
        if (this.editor.picture && (all || pictures?.includes(this.editor.picture))) this.editor.fill();
    }

    known() { return this.model.pictures.filter(Boolean); }

    shownChips() {
        const { model } = this, known = this.known();
        this.counts.textContent = `${countedPictures(model.total)} · ${model.settings.resolution} px`;
        const focused = document.activeElement?.dataset?.filter;
        this.chips.replaceChildren(...Object.entries(FILTERS).map(([name, holds]) => {
            const number = name === "all" ? model.total : known.filter(holds).length;
            if (!number && !ALWAYS.includes(name)) return null;
            const more = model.complete || name === "all" ? "" : "+";
            const chip = button(`${markInWords(name)} ${number}${more}`, () => { this.filter = name; this.shownChips(); this.choose(); }, { "aria-pressed": String(this.filter === name) });
            chip.dataset.filter = name;
            return chip;
        }).filter(Boolean));
        if (focused) [...this.chips.children].find((chip) => chip.dataset.filter === focused)?.focus();
    }

    // which pictures the grid shows
    choose() {
        const { model } = this, holds = FILTERS[this.filter], wanted = this.search.value.toLowerCase();
        const fits = (picture) => !wanted || picture.name.toLowerCase().includes(wanted) || picture.caption?.toLowerCase().includes(wanted);
        const numbers = [];
        for (let number = 0; number < model.total; number += 1) {
            const picture = model.pictures[number];
            if (picture ? holds(picture) && fits(picture) : this.filter === "all" && !wanted) numbers.push(number);
        }
        this.grid.show(numbers);
    }

    showVerdicts() {
        const { model } = this;
        if (!model.run) return this.verdicts.replaceChildren();
        const parts = [el("span", { text: words("The run {run}:", { run: model.run }) })];
        const of = (verdict) => this.known().filter((picture) => picture.verdict === verdict);
        const bad = of("not learnable"), left = bad.filter((picture) => !picture.exclude), wrong = of("mislabelled"), known = of("memorised");
        if (bad.length) parts.push(el("span", { text: counted(bad.length, words("{count} picture cannot be learned"), words("{count} pictures cannot be learned")) }));
        if (left.length) {
            const text = left.length === 1 ? words("Exclude the one that cannot be learned")
                : words("Exclude the {count} that cannot be learned", { count: inWords(left.length) });
            const act = button(text, () => model.setMarks(left.map((each) => [each, { exclude: true, repeat: each.repeat }])), { className: "main" });
            act.disabled = Boolean(model.readonly);
            parts.push(act);
        } else if (bad.length) parts.push(el("span", { className: "dim", text: words("(excluded: the next run says so)") }));
        if (wrong.length) parts.push(button(words("Show the caption that fits better ({count} mislabelled)", { count: wrong.length }), () => this.showBetter(wrong)));
        if (known.length) parts.push(el("span", { text: words("{count} memorised", { count: known.length }) }));
        if (parts.length === 1) parts.push(el("span", { text: words("no picture stands out.") }));
        return this.verdicts.replaceChildren(...parts);
    }

    // goes to the next mislabelled picture and shows the other caption
    showBetter(wrong) {
        const next = wrong[(wrong.indexOf(this.editor.picture) + 1) % wrong.length];
        this.seek(next);
        this.editor.lent = next.name;
        this.editor.fill();
    }

    seek(picture) {
        const find = () => this.grid.shown.findIndex((number) => this.model.pictures[number] === picture);
        if (find() < 0) { this.filter = "all"; this.search.value = ""; this.shownChips(); this.choose(); }
        this.grid.select(find());
    }

    // goes to the wanted picture once its page is there
    seekWanted() {
        const found = this.wanted && this.known().find((picture) => isNamed(picture, this.wanted));
        if (!found) return;
        this.wanted = "";
        this.seek(found);
    }

    go(step, focus = false) {
        this.grid.select(this.grid.at + step);
        if (focus) this.editor.text.focus();
    }

    toolbar(name) {
        const same = this.tools.dataset.name === name;
        this.tools.dataset.name = same ? "" : name;
        this.tools.replaceChildren(...(same ? [] : this[`${name}Tools`]()));
        this.tools.querySelector("input")?.focus();
    }

    // what tools act on: the pictures that the grid shows
    chosen() { return this.grid.shown.map((number) => this.model.pictures[number]).filter(Boolean); }

    acted(changes) {
        if (this.model.fixed) return this.model.say(this.model.fixed);
        const number = this.model.setCaptions(changes);
        this.status.textContent = counted(number, words("{count} caption changed"), words("{count} captions changed"));
        return number;
    }

    replaceTools() {
        const find = el("input", { "aria-label": words("Find"), placeholder: words("find") }), put = el("input", { "aria-label": words("Replace with"), placeholder: words("replace with") });
        const found = el("span", { className: "dim", role: "status" });
        const hits = () => words("in {captions} of {count}", { captions: countedCaptions(replaced(this.chosen(), find.value, "").length), count: this.chosen().length });
        const look = () => { found.textContent = find.value ? hits() : ""; };
        find.addEventListener("input", look);
        const act = () => { this.acted(replaced(this.chosen(), find.value, put.value)); look(); };
        put.addEventListener("keydown", (event) => { if (event.key === "Enter") act(); });
        return [find, put, button(words("Replace all"), act), found];
    }

    tagsTools() {
        const tag = el("input", { "aria-label": words("Tag"), placeholder: words("tag") });
        const word = () => tag.value.trim();
        return [tag, button(words("Add at the start"), () => this.acted(tagged(this.chosen(), word(), true))),
            button(words("Add at the end"), () => this.acted(tagged(this.chosen(), word(), false))),
            button(words("Remove"), () => this.acted(untagged(this.chosen(), word()))),
            el("span", { className: "dim", text: words("Acts on the pictures that are shown; tags stand between commas.") })];
    }

    cacheTools() {
        const sizes = el("span", { role: "status", text: "..." });
        const clear = button(words("Clear what no data set uses"), () => send("cache", { clear: "unused" }).then(show, fail));
        const fail = (error) => { sizes.textContent = error.message; };
        const show = ({ caches }) => {
            const sum = (name) => caches.reduce((total, each) => total + each[name], 0);
            sizes.textContent = words("Cached latents and embeds: {size}, of which {unused} ({count} entries) are of no data set",
                { size: megabytes(sum("bytes")), unused: megabytes(sum("unused_bytes")), count: sum("unused") });
            clear.disabled = !sum("unused");
        };
        read("cache").then(show, fail);
        return [sizes, clear];
    }

    key(event) {
        event.stopPropagation();
        const writing = event.target.matches("textarea, input");
        if (event.key === "Escape") {
            event.preventDefault();
            if (writing) this.grid.element.focus();
            else this.close();
        } else if (event.key === "z" && (event.ctrlKey || event.metaKey) && !writing) {
            event.preventDefault();
            this.model.undo();
        } else if (event.key === "f" && (event.ctrlKey || event.metaKey)) {
            event.preventDefault();
            this.search.focus();
        } else if (!writing && !event.ctrlKey && !event.metaKey && !event.altKey && this.editor.picture && !this.model.readonly) this.shortcut(event);
    }

    shortcut(event) {
        if (event.key === "x") this.editor.toggle();
        else if (event.key === "m") this.editor.paint();
        else if (/^[1-9]$/.test(event.key)) { this.editor.repeat.value = event.key; this.editor.repeated(); }
        else return;
        event.preventDefault();
    }
}

const megabytes = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);

export function openPictures(node, wanted = "") {
    addStyle();
    const dialog = new Dialog(node, wanted);
    dialog.open();
    return dialog;
}
