// The pictures of one folder in the browser: loaded page by page, changed here first, then saved by themselves.
import { words } from "../words.js";
import { afterwards } from "./dom.js";
import { send } from "./requests.js";

const FIRST = 80, PAGE = 400; // pictures of the first page and of the others
const WAIT = 500; // ms without another change before a caption is saved
const MOST_AT_ONCE = 500;

const sameMark = (a, b) => a.exclude === b.exclude && a.repeat === b.repeat;
const markOf = ({ exclude, repeat }) => ({ exclude, repeat });

// whether that is the picture's file, with or without its folder
export const isNamed = (picture, name) => picture.name === name || picture.name.endsWith(`/${name}`);

export class Model extends EventTarget {
    constructor(settings) {
        super();
        Object.assign(this, { settings, pictures: [], total: 0, complete: false, run: "", fixed: "", readonly: "" });
        this.undone = [];
        this.dirty = new Map(); // name -> the text to save
        this.save = afterwards(() => this.flush(), WAIT);
        this.saving = Promise.resolve();
        this.problem = "";
    }

    tell(kind, detail = {}) {
        this.dispatchEvent(new CustomEvent(kind, { detail }));
    }

    // the first page, then the others in the background
    async load() {
        await this.page(0, FIRST);
        (async () => {
            for (let start = FIRST; start < this.total && !this.closed; start += PAGE) await this.page(start, PAGE);
            this.complete = true;
            this.tell("changed", { all: true });
        })().catch((error) => this.say(error.message));
    }

    async page(start, count) {
        const found = await send("pictures", { settings: this.settings, start, count });
        Object.assign(this, { total: found.total, run: found.run, fixed: found.fixed, readonly: found.readonly, folder: found.folder });
        this.pictures.length = this.total;
        found.pictures.forEach((picture, place) => { this.pictures[start + place] = picture; });
        this.tell("changed", { all: true });
    }

    named(name) {
        return this.pictures.find((picture) => picture?.name === name);
    }

    say(text) {
        this.problem = text;
        this.tell("said", { text });
    }

    // ``changes`` are [picture, text or null]; one entry of undo, unless it goes on with the one before
    setCaptions(changes, goesOn = false) {
        const real = changes.filter(([picture, text]) => picture.caption !== text);
        if (!real.length) return 0;
        const last = this.undone.at(-1);
        if (!(goesOn && last?.goesOn && last.captions.length === 1 && last.captions[0][0] === real[0][0])) {
            this.undone.push({ goesOn, captions: real.map(([picture]) => [picture, picture.caption]) });
        }
        this.putCaptions(real);
        return real.length;
    }

    putCaptions(changes) {
        for (const [picture, text] of changes) {
            picture.caption = text;
            picture.warnings = picture.warnings.filter((warning) => !["no caption", "the caption is empty"].includes(warning));
            if (text === null) picture.warnings.unshift("no caption");
            else if (!text.trim()) picture.warnings.unshift("the caption is empty");
            this.dirty.set(picture.name, picture);
        }
        this.tell("changed", { pictures: changes.map(([picture]) => picture) });
        this.save();
    }

    // saves what waits; several calls follow each other
    flush() {
        this.saving = this.saving.then(() => this.saveAll()).catch((error) => this.say(words("Not saved: {why}", { why: error.message })));
        return this.saving;
    }

    async saveAll() {
        while (this.dirty.size) {
            const some = [...this.dirty.values()].slice(0, MOST_AT_ONCE);
            for (const picture of some) this.dirty.delete(picture.name);
            const captions = some.map(({ name, caption, etag }) => ({ name, text: caption, etag }));
            this.tell("saving");
            const answer = await send("captions", { settings: this.settings, captions }).catch((error) => {
                for (const picture of some) this.dirty.set(picture.name, picture); // the next change tries again
                throw error;
            });
            for (const [name, etag] of Object.entries(answer.written)) this.named(name).etag = etag;
            for (const [name, theirs] of Object.entries(answer.changed)) this.named(name).theirs = theirs;
            const wrong = Object.entries(answer.wrong).map(([name, sentence]) => `${name}: ${sentence}`);
            if (wrong.length) this.say(wrong.slice(0, 3).join(" "));
            const changed = Object.keys(answer.changed);
            if (changed.length) this.say(words("Somebody else changed the caption of {names}: it was not overwritten.", { names: changed.slice(0, 3).join(", ") }));
            this.tell("saved", { wrong: wrong.length + changed.length });
            this.tell("changed", { pictures: some });
        }
    }

    // what to do about a caption that somebody else changed
    settle(picture, mine) {
        const { caption, etag } = picture.theirs;
        const text = mine ? picture.caption : caption;
        Object.assign(picture, { etag, caption, theirs: undefined });
        if (text !== caption) this.putCaptions([[picture, text]]);
        this.tell("changed", { pictures: [picture] });
    }

    // ``changes`` are [picture, {exclude, repeat}]
    async setMarks(changes, keep = true) {
        const real = changes.filter(([picture, mark]) => !sameMark(picture, mark));
        if (!real.length) return 0;
        const before = real.map(([picture]) => [picture, markOf(picture)]);
        const marks = Object.fromEntries(real.map(([picture, mark]) => [picture.name, { was: markOf(picture), now: mark }]));
        for (const [picture, mark] of real) Object.assign(picture, mark);
        this.tell("changed", { pictures: real.map(([picture]) => picture), marks: true });
        try {
            await send("marks", { settings: this.settings, marks });
            if (keep) this.undone.push({ marks: before });
            this.tell("saved", {});
        } catch (error) {
            for (const [picture, mark] of before) Object.assign(picture, mark, error.now?.marks?.[picture.name]);
            this.say(error.message);
        }
        this.tell("changed", { pictures: real.map(([picture]) => picture), marks: true });
        return real.length;
    }

    async undo() {
        const last = this.undone.pop();
        if (!last) return this.say(words("There is nothing to undo."));
        if (last.captions) this.putCaptions(last.captions);
        else await this.setMarks(last.marks, false);
        this.tell("undone", { pictures: (last.captions ?? last.marks).map(([picture]) => picture) });
    }
}
