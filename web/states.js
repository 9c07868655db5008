// The state of a run or of a job as a person reads it. In classes, comparisons and answers of the server it stays English.
import { words } from "./words.js";

export const stateInWords = (state) => ({
    running: words("running"), finished: words("finished"), stopped: words("stopped"), failed: words("failed"),
    killed: words("killed"), paused: words("paused"), broken: words("broken"), waiting: words("waiting"), done: words("done"),
})[state] ?? state;
