// The previews of a run through time: a row for each prompt, a click shows one large.
import { words } from "../words.js";
import { pictureOf } from "./server.js";
import { button, make } from "./words.js";

const SMALL = 512, LARGE = 2048;

const labelOf = ({ step }) => (step === null ? words("base") : words("step {step}", { step }));

// One row of pictures for each prompt; ``newest`` shows the newest alone.
export function pictures(run, newest = false) {
    const prompts = [...new Set(run.pictures.map(({ prompt }) => prompt))];
    return prompts.map((prompt) => {
        const all = run.pictures.filter((each) => each.prompt === prompt);
        const shown = newest ? all.slice(-1) : all;
        const row = make("div", { className: "through", role: "group", "aria-label": words("Previews of prompt {number}", { number: prompt }) },
            ...shown.map((each) => thumbnail(run, each, all)));
        queueMicrotask(() => { row.scrollLeft = row.scrollWidth; });
        return row;
    });
}

function thumbnail(run, each, all) {
    const label = labelOf(each);
    return make("button", { type: "button", className: "thumb", "aria-label": words("{picture}: show large", { picture: `${run.name}, ${label}` }),
        onclick: () => enlarge(run, each, all) },
        make("img", { src: pictureOf(run, each.file, SMALL), alt: "", loading: "lazy", decoding: "async" }),
        make("span", {}, label));
}

// A picture as large as the window; arrow keys go through time.
function enlarge(run, each, all) {
    let place = all.indexOf(each);
    const image = make("img", { alt: "" }), label = make("p", { "aria-live": "polite" });
    const go = (by) => {
        place = (place + by + all.length) % all.length;
        image.src = pictureOf(run, all[place].file, LARGE);
        image.alt = `${run.name}, ${labelOf(all[place])}`;
        label.textContent = `${image.alt} · ${words("{number} of {count}", { number: place + 1, count: all.length })}`;
    };
    const dialog = make("dialog", { className: "flux2-ask large", "aria-label": words("Previews of {run}", { run: run.name }) });
    const close = () => {
        dialog.close();
        dialog.remove();
    };
    dialog.append(image, make("div", { className: "actions" },
        button("◀", () => go(-1), { "aria-label": words("Earlier") }), label, button("▶", () => go(1), { "aria-label": words("Later") }),
        button(words("Close"), close)));
    dialog.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "ArrowLeft") go(-1);
        if (event.key === "ArrowRight") go(1);
    });
    dialog.addEventListener("cancel", close);
    document.body.append(dialog);
    go(0);
    dialog.showModal();
}
