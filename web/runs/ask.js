// A question in a dialog that the keyboard closes: what is asked, fields, and a button that says what it does.
import { words } from "../words.js";
import { button, make } from "./words.js";

// Resolves to the form's values by the names of its fields, or to null.
export function ask(title, { text = "", fields = [], yes = "OK", danger = false } = {}) {
    return new Promise((resolve) => {
        const heading = make("h3", { id: "flux2-ask" }, title);
        const form = make("form", { method: "dialog" }, heading, ...(text ? [make("p", {}, text)] : []), ...fields);
        const dialog = make("dialog", { className: "flux2-ask", "aria-labelledby": "flux2-ask" }, form);
        const done = (values) => {
            dialog.close();
            dialog.remove();
            resolve(values);
        };
        form.append(make("div", { className: "actions" },
            make("button", { type: "submit", className: danger ? "danger" : "first" }, yes),
            button(words("Cancel"), () => done(null))));
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            done(Object.fromEntries(new FormData(form)));
        });
        dialog.addEventListener("cancel", (event) => {
            event.preventDefault();
            done(null);
        });
        dialog.addEventListener("keydown", (event) => event.stopPropagation()); // the graph behind it has keys too
        document.body.append(dialog);
        dialog.showModal();
    });
}

// A labelled field.
export function field(label, input, note = "") {
    return make("label", {}, make("span", {}, label), input, ...(note ? [make("small", {}, note)] : []));
}
