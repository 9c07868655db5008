// Elements and texts. Nothing of a file's name, a caption or a prompt is ever put into HTML: text is text here.
import { counted, words } from "../words.js";

export function el(tag, given = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
        if (name === "on") for (const [kind, does] of Object.entries(value)) made.addEventListener(kind, does);
        else if (name === "text") made.textContent = value;
        else if (name in made && name !== "list") made[name] = value;
        else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
}

export const button = (text, does, given = {}) => el("button", { type: "button", text, on: { click: does }, ...given });

export const countedPictures = (number) => counted(number, words("{count} picture"), words("{count} pictures"));
export const countedCaptions = (number) => counted(number, words("{count} caption"), words("{count} captions"));

// more than one, as a word where it is a short one
export const inWords = (number) => ({
    2: words("two"), 3: words("three"), 4: words("four"), 5: words("five"), 6: words("six"), 7: words("seven"),
    8: words("eight"), 9: words("nine"), 10: words("ten"), 11: words("eleven"), 12: words("twelve"),
})[number] ?? String(number);

// calls ``work`` once the last call is ``wait`` ms old; ``now`` calls it at once if it waits
export function afterwards(work, wait) {
    let waiting = 0;
    const later = () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => { waiting = 0; work(); }, wait);
    };
    later.now = () => {
        if (!waiting) return undefined;
        clearTimeout(waiting);
        waiting = 0;
        return work();
    };
    return later;
}

// A question in a dialog of its own. Resolves to what ``read`` returns, or null if it is closed.
export function asked(title, body, yes, read) {
    return new Promise((resolve) => {
        const dialog = el("dialog", { className: "flux2-ask", "aria-label": title });
        const end = (value) => { dialog.close(); dialog.remove(); resolve(value); };
        const form = el("form", { method: "dialog", on: { submit: (event) => { event.preventDefault(); end(read()); } } },
            el("h2", { text: title }), ...body,
            el("div", { className: "row" }, el("button", { type: "submit", className: "main", text: yes }),
                button(words("Cancel"), () => end(null))));
        dialog.append(form);
        dialog.addEventListener("cancel", (event) => { event.preventDefault(); end(null); });
        for (const kind of ["keydown", "keyup", "paste", "copy"]) dialog.addEventListener(kind, (e) => e.stopPropagation());
        document.body.append(dialog);
        dialog.showModal();
    });
}
