// Sizes, times and states as a person reads them, and elements made without HTML.
import { stateInWords, words } from "../words.js";

export function bytes(count) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let place = 0;
    while (count >= 1000 && place < units.length - 1) {
        count /= 1000;
        place += 1;
    }
    return `${count < 10 && place ? count.toFixed(1) : Math.round(count)} ${units[place]}`;
}

const DAY = 86_400_000;

// "today 14:05", "yesterday", "Tuesday", "12 Nov", "12 Nov 2024"
export function when(milliseconds, now = Date.now()) {
    const date = new Date(milliseconds), midnight = new Date(now).setHours(0, 0, 0, 0);
    if (milliseconds >= midnight) return words("today {time}", { time: date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) });
    if (milliseconds >= midnight - DAY) return words("yesterday");
    if (milliseconds >= midnight - 6 * DAY) return date.toLocaleDateString([], { weekday: "long" });
    const sameYear = date.getFullYear() === new Date(now).getFullYear();
    return date.toLocaleDateString([], { day: "numeric", month: "short", ...(sameYear ? {} : { year: "numeric" }) });
}

export function duration(from, to) {
    const minutes = Math.round((Date.parse(to) - Date.parse(from)) / 60_000);
    if (!Number.isFinite(minutes) || minutes < 0) return "";
    if (minutes < 60) return words("{minutes} min", { minutes });
    return words("{hours} h {minutes} min", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

export function stepsOf(run) {
    if (run.state === "finished") return words("{count} steps", { count: run.step });
    return run.total ? words("step {step} of {total}", run) : words("step {step}", run);
}

// An element with its properties and children. Texts become text nodes, never HTML.
export function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        if (name in element && !name.includes("-")) element[name] = value;
        else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

export const button = (text, press, properties = {}) => make("button", { type: "button", onclick: press, ...properties }, text);

export const chip = (state) => make("span", { className: `chip ${state}` }, stateInWords(state));
