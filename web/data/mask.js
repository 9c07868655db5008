// Paints a mask over a picture: what is painted counts in the loss. With the pointer, or with arrow keys and the space bar.
import { reach } from "../panel/reach.js";
import { words } from "../words.js";
import { button, el } from "./dom.js";
import { addressOf, send } from "./requests.js";

const MOST_SIDE = 1024; // pixels of the mask's longer side
const MOST_UNDO = 20;

class Painter {
    constructor(picture) {
        const scale = Math.min(1, MOST_SIDE / Math.max(picture.width, picture.height));
        this.canvas = el("canvas", {
            width: Math.max(16, Math.round(picture.width * scale)), height: Math.max(16, Math.round(picture.height * scale)),
            tabIndex: 0, role: "application",
            "aria-label": words("Mask. Arrow keys move the brush, the space bar paints, E changes to erasing."),
        });
        this.context = this.canvas.getContext("2d", { willReadFrequently: true });
        Object.assign(this, { size: Math.round(this.canvas.width / 12), erases: false, steps: [], at: [this.canvas.width / 2, this.canvas.height / 2] });
        this.canvas.addEventListener("pointerdown", (event) => this.down(event));
        this.canvas.addEventListener("pointermove", (event) => this.move(event));
        this.canvas.addEventListener("keydown", (event) => this.key(event));
    }

    place(event) {
        const page = this.canvas.getBoundingClientRect();
        return [(event.clientX - page.left) / page.width * this.canvas.width, (event.clientY - page.top) / page.height * this.canvas.height];
    }

    keep() {
        this.steps.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
        if (this.steps.length > MOST_UNDO) this.steps.shift();
    }

    undo() {
        const last = this.steps.pop();
        if (last) this.context.putImageData(last, 0, 0);
    }

    stroke(from, to) {
        const { context } = this;
        context.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
        Object.assign(context, { lineCap: "round", lineWidth: this.size, strokeStyle: "#fff" });
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(to[0] + 0.01, to[1]);
        context.stroke();
    }

    fill(all) {
        this.keep();
        this.context.globalCompositeOperation = "source-over";
        this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
        this.context.fillStyle = "#fff";
        if (all) this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    }

    invert() {
        this.keep();
        this.context.globalCompositeOperation = "xor";
        this.context.fillStyle = "#fff";
        this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    }

    down(event) {
        this.canvas.setPointerCapture(event.pointerId);
        this.keep();
        this.at = this.place(event);
        this.stroke(this.at, this.at);
    }

    move(event) {
        if (!event.buttons) return;
        const to = this.place(event);
        this.stroke(this.at, to);
        this.at = to;
    }

    key(event) {
        const step = this.size / 2;
        const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
        if (event.key in moves) this.at = this.at.map((value, axis) => Math.max(0, Math.min([this.canvas.width, this.canvas.height][axis], value + moves[event.key][axis])));
        else if (event.key === " ") { this.keep(); this.stroke(this.at, this.at); }
        else if (event.key === "e") this.erases = !this.erases;
        else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.undo();
        else return;
        event.preventDefault();
    }

    // takes the white of a mask's PNG as painted
    async take(address) {
        const answer = await reach(address);
        if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? words("The mask cannot be read."));
        const content = await answer.blob();
        if (content.size) {
            const picture = await createImageBitmap(content);
            const { width, height } = this.canvas;
            this.context.drawImage(picture, 0, 0, width, height);
            const data = this.context.getImageData(0, 0, width, height);
            for (let at = 0; at < data.data.length; at += 4) {
                data.data[at + 3] = data.data[at];
                data.data.fill(255, at, at + 3);
            }
            this.context.putImageData(data, 0, 0);
        }
        return answer.headers.get("X-Flux2-Etag") ?? "";
    }

    // the mask as PNG in base64, white on black; null if nothing is painted
    png() {
        const { width, height } = this.canvas;
        const pixels = this.context.getImageData(0, 0, width, height).data;
        if (!pixels.some((value, at) => at % 4 === 3 && value > 0)) return null;
        const flat = el("canvas", { width, height });
        const context = flat.getContext("2d");
        context.fillStyle = "#000";
        context.fillRect(0, 0, width, height);
        context.drawImage(this.canvas, 0, 0);
        return flat.toDataURL("image/png").split(",")[1];
    }
}

function toolsOf(painter) {
    const erase = button(words("Erase"), () => { painter.erases = !painter.erases; erase.setAttribute("aria-pressed", String(painter.erases)); }, { "aria-pressed": "false" });
    const size = el("input", { type: "range", min: 4, max: Math.round(painter.canvas.width / 2), value: painter.size, "aria-label": words("Size of the brush"), on: { input: () => { painter.size = Number(size.value); } } });
    return [el("label", {}, `${words("Brush")} `, size), erase, button(words("All"), () => painter.fill(true)), button(words("Nothing"), () => painter.fill(false)),
        button(words("Invert"), () => painter.invert()), button(words("Undo"), () => painter.undo())];
}

// Resolves to whether the picture has a mask afterwards, null if nothing was saved.
export function paintMask(model, folder, picture) {
    return new Promise((resolve) => {
        const painter = new Painter(picture);
        const said = el("span", { className: "dim", role: "status", text: words("Paint what counts. The rest is ignored, or counts as little as Mask Options says.") });
        const dialog = el("dialog", { className: "flux2-mask", "aria-label": words("Mask of {name}", picture) });
        let mark = "", end = (value) => { dialog.close(); dialog.remove(); resolve(value); };
        const save = async () => {
            const png = painter.png();
            try {
                await send("mask", { settings: model.settings, name: picture.name, png, etag: mark });
                end(png !== null);
            } catch (error) { said.textContent = error.message; }
        };
        const scale = Math.min(innerWidth * 0.8 / picture.width, innerHeight * 0.66 / picture.height);
        const paint = el("div", { className: "paint" },
            el("img", { alt: "", src: addressOf("thumbnail", { folder, name: picture.name, side: 1024, v: picture.stamp }) }), painter.canvas);
        paint.style.cssText = `width:${picture.width * scale}px;height:${picture.height * scale}px`;
        dialog.append(el("h2", { text: words("Mask of {name}", picture) }), el("div", { className: "row" }, ...toolsOf(painter)), paint,
            el("div", { className: "row" }, button(words("Save"), save, { className: "main" }), button(words("Cancel"), () => end(null)), said));
        dialog.addEventListener("cancel", (event) => { event.preventDefault(); end(null); });
        for (const kind of ["keydown", "keyup"]) dialog.addEventListener(kind, (event) => event.stopPropagation());
        document.body.append(dialog);
        dialog.showModal();
        painter.canvas.focus();
        const masks = model.settings.mask_options?.folder ?? "";
        painter.take(`/flux2_train/data/mask?${new URLSearchParams({ folder, name: picture.name, masks })}`)
            .then((found) => { mark = found; }).catch((error) => { said.textContent = error.message; });
    });
}
