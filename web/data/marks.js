// What is said of a picture, as a person reads it: filters, verdicts of a run, and the two warnings that the page gives
// itself. Inside they stay English, as the server has them; its other warnings are shown as it says them.
import { words } from "../words.js";

export const markInWords = (mark) => ({
    all: words("all"), "no caption": words("no caption"), "the caption is empty": words("the caption is empty"),
    warnings: words("warnings"), "not learnable": words("not learnable"), mislabelled: words("mislabelled"),
    memorised: words("memorised"), excluded: words("excluded"), repeated: words("repeated"),
})[mark] ?? mark;
