// A grid of cards of which only those that are seen exist, so that 5,000 pictures scroll as 50 do.
import { words } from "../words.js";
import { el } from "./dom.js";
import { markInWords } from "./marks.js";
import { addressOf } from "./requests.js";

const WIDTH = 190, GAP = 12, TEXT = 64; // pixels: the least width of a card, between cards, below the picture
const AROUND = 2; // rows above and below those that are seen
const STILL = 60; // ms without scrolling before small pictures are fetched

// draws crop boxes over a picture that is shown whole inside width x height
export function drawBoxes(picture, width, height) {
    const scale = Math.min(width / picture.width, height / picture.height);
    const [w, h] = [picture.width * scale, picture.height * scale];
    return picture.boxes.slice(0, 16).map(([left, top, right, bottom]) => {
        const box = el("div", { className: "crop" });
        box.style.cssText = `left:${(width - w) / 2 + left * w}px;top:${(height - h) / 2 + top * h}px;` +
            `width:${(right - left) * w}px;height:${(bottom - top) * h}px`;
        return box;
    });
}

export function badgesOf(picture) {
    const badges = [];
    if (picture.verdict) badges.push([markInWords(picture.verdict), "bad"]);
    if (picture.exclude) badges.push([words("excluded"), ""]);
    if (picture.repeat > 1) badges.push([`x ${picture.repeat}`, ""]);
    if (picture.mask) badges.push([words("mask"), ""]);
    if (picture.theirs) badges.push([words("changed by somebody else"), "bad"]);
    badges.push(...picture.warnings.map((warning) => [markInWords(warning), "warn"]));
    return badges.slice(0, 4).map(([text, kind]) => el("span", { className: `badge ${kind}`, text }));
}

export class Grid {
    constructor(model, folder, onOpen) {
        Object.assign(this, { model, folder, onOpen, shown: [], at: 0, cards: new Map() });
        this.inner = el("div", { role: "presentation" });
        this.element = el("div", {
            className: "grid", role: "listbox", tabIndex: 0, "aria-label": words("Pictures"),
            on: { scroll: () => this.later(), keydown: (event) => this.key(event), click: (event) => this.click(event) },
        }, this.inner);
        new ResizeObserver(() => this.layout()).observe(this.element);
    }

    // shows the pictures with these numbers
    show(numbers) {
        const name = this.model.pictures[this.shown[this.at]]?.name;
        this.shown = numbers;
        const same = numbers.findIndex((number) => name && this.model.pictures[number]?.name === name);
        this.at = same >= 0 ? same : Math.min(this.at, Math.max(0, numbers.length - 1));
        this.forget();
        this.layout();
    }

    forget() {
        for (const card of this.cards.values()) card.remove();
        this.cards.clear();
    }

    layout() {
        const width = this.element.clientWidth - GAP;
        if (width <= 0) return;
        this.columns = Math.max(1, Math.floor(width / (WIDTH + GAP)));
        const card = Math.floor(width / this.columns) - GAP;
        if (card !== this.card) this.forget();
        this.card = card;
        this.image = Math.round(card * 0.72);
        this.row = this.image + TEXT + GAP;
        this.inner.style.height = `${Math.ceil(this.shown.length / this.columns) * this.row + GAP}px`;
        this.draw();
    }

    later() {
        if (this.waiting) return;
        this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.draw(); });
    }

    draw() {
        if (!this.row) return;
        const first = Math.max(0, Math.floor(this.element.scrollTop / this.row) - AROUND) * this.columns;
        const rows = Math.ceil(this.element.clientHeight / this.row) + 2 * AROUND + 1;
        const last = Math.min(this.shown.length, first + rows * this.columns);
        for (const [place, card] of this.cards) {
            if (place < first || place >= last) { card.remove(); this.cards.delete(place); }
        }
        for (let place = first; place < last; place += 1) if (!this.cards.has(place)) this.add(place);
        clearTimeout(this.fetching);
        this.fetching = setTimeout(() => this.fetch(), STILL);
    }

    add(place) {
        const card = el("div", { className: "card", role: "option", id: `flux2-card-${place}` });
        card.dataset.place = place;
        const [row, column] = [Math.floor(place / this.columns), place % this.columns];
        card.style.cssText = `width:${this.card}px;height:${this.row - GAP}px;` +
            `transform:translate(${GAP + column * (this.card + GAP)}px,${GAP + row * this.row}px)`;
        this.fill(card, place);
        this.cards.set(place, card);
        this.inner.append(card);
    }

    fill(card, place) {
        const picture = this.model.pictures[this.shown[place]];
        card.setAttribute("aria-setsize", this.shown.length);
        card.setAttribute("aria-posinset", place + 1);
        card.setAttribute("aria-selected", String(place === this.at));
        card.classList.toggle("out", Boolean(picture?.exclude));
        const image = el("div", { className: "im" });
        image.style.height = `${this.image}px`;
        if (!picture) return card.replaceChildren(image, el("small", { text: "..." }));
        const old = card.querySelector("img");
        const img = old?.dataset.name === picture.name ? old : el("img", { alt: "", decoding: "async" });
        img.dataset.name = picture.name;
        image.append(img, ...(picture.width ? drawBoxes(picture, this.card - 2, this.image) : []),
            el("div", { className: "badges" }, ...badgesOf(picture)));
        const text = picture.caption ? el("p", { text: picture.caption }) : el("p", {}, el("span", { className: "none", text: words("no caption") }));
        const size = `${picture.name} · ${picture.width} x ${picture.height} → ${picture.sizes.join(", ")}`;
        return card.replaceChildren(image, text, el("small", { text: size }));
    }

    fetch() {
        for (const card of this.cards.values()) {
            const picture = this.model.pictures[this.shown[card.dataset.place]];
            const img = card.querySelector("img");
            if (!picture?.width || !img || img.getAttribute("src")) continue;
            img.src = addressOf("thumbnail", { folder: this.folder, name: picture.name, side: 256, v: picture.stamp });
        }
    }

    // draws the cards of these pictures anew
    refresh(pictures) {
        const some = pictures && new Set(pictures);
        for (const [place, card] of this.cards) {
            if (!some || some.has(this.model.pictures[this.shown[place]])) this.fill(card, place);
        }
        this.fetch();
    }

    select(place, scroll = true) {
        if (!this.shown.length) return;
        const before = this.cards.get(this.at);
        this.at = Math.max(0, Math.min(this.shown.length - 1, place));
        before?.setAttribute("aria-selected", "false");
        if (scroll) this.reveal();
        this.cards.get(this.at)?.setAttribute("aria-selected", "true");
        this.element.setAttribute("aria-activedescendant", `flux2-card-${this.at}`);
        this.onOpen(this.model.pictures[this.shown[this.at]], false);
    }

    reveal() {
        const top = Math.floor(this.at / this.columns) * this.row, view = this.element;
        if (top < view.scrollTop) view.scrollTop = top;
        else if (top + this.row + GAP > view.scrollTop + view.clientHeight) view.scrollTop = top + this.row + GAP - view.clientHeight;
        this.draw();
    }

    click(event) {
        const card = event.target.closest(".card");
        if (card) this.select(Number(card.dataset.place), false);
    }

    key(event) {
        const page = Math.max(1, Math.floor(this.element.clientHeight / this.row)) * this.columns;
        const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page,
            PageUp: -page, Home: -Infinity, End: Infinity };
        if (event.key in steps && !event.ctrlKey && !event.altKey) {
            event.preventDefault();
            this.select(Math.max(0, Math.min(this.shown.length - 1, this.at + steps[event.key])));
        } else if (event.key === "Enter") {
            event.preventDefault();
            this.onOpen(this.model.pictures[this.shown[this.at]], true);
        }
    }
}
