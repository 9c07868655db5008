// Changes of many captions, and what a caption becomes with its trigger: as flux2_train/data/captions.py does it.
import { words } from "../words.js";

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const word = (text) => new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(text)}(?![\\p{L}\\p{N}_])`, "u");

// the caption that is trained on
export function withTrigger(caption, trigger, prepend = true) {
    const text = caption.replaceAll("[trigger]", trigger).split(/\s+/).filter(Boolean).join(" ");
    if (!trigger || !prepend || word(trigger).test(text)) return text;
    return text ? `${trigger}, ${text}` : trigger;
}

export const hasTrigger = (text, trigger) => Boolean(trigger) && word(trigger).test(text);

// where the trigger stands, in words
export function placeOf(caption, trigger, prepend = true) {
    if (!trigger) return words("no trigger is set");
    const own = caption.includes("[trigger]") || hasTrigger(caption, trigger);
    if (!own) return prepend ? words("the trigger is put in front") : words("the trigger is not in it");
    const text = withTrigger(caption, trigger, prepend);
    return text.search(word(trigger)) === 0 ? words("trigger at the start") : words("trigger in the caption");
}

// [picture, new text] for each caption that holds ``find``
export function replaced(pictures, find, put) {
    if (!find) return [];
    return pictures.filter(({ caption }) => caption?.includes(find)).map((each) => [each, each.caption.replaceAll(find, put)]);
}

const partsOf = (line) => line.split(",").map((part) => part.trim()).filter(Boolean);

const onLines = (text, change) => (text ?? "").split("\n").map(change).join("\n");

// every caption gets the tag once, at its start or its end
export function tagged(pictures, tag, atStart) {
    const add = (line) => {
        const parts = partsOf(line);
        if (parts.includes(tag)) return line;
        return (atStart ? [tag, ...parts] : [...parts, tag]).join(", ");
    };
    return tag ? pictures.map((each) => [each, onLines(each.caption, add)]) : [];
}

export function untagged(pictures, tag) {
    const remove = (line) => (partsOf(line).includes(tag) ? partsOf(line).filter((part) => part !== tag).join(", ") : line);
    return tag ? pictures.filter(({ caption }) => caption).map((each) => [each, onLines(each.caption, remove)]) : [];
}
