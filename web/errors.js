// Says what went wrong in the toast itself: ComfyUI's own says only that a node threw an error or rejected an input.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf, titleOf } from "./shown.js";
import { words } from "./words.js";

const LIFE = 20_000; // ms

function say(severity, summary, detail) {
    app.extensionManager?.toast?.add({ severity, summary, detail, life: LIFE });
}

// the answer of the server for a graph that it does not queue
function sayRefusals(refusal) {
    for (const [id, { errors }] of Object.entries(refusal?.node_errors ?? {})) {
        const node = nodeOf(id), ours = errors.filter(({ extra_info: about }) => about?.flux2_train);
        if (node && ours.length) say("error", titleOf(node), [...new Set(ours.map(({ message }) => message))].join("\n"));
    }
}

app.registerExtension({
    name: "flux2_train.errors",
    setup() {
        const queue = api.queuePrompt;
        api.queuePrompt = async function (...given) {
            try {
                return await queue.apply(this, given);
            } catch (error) {
                sayRefusals(error?.response);
                throw error;
            }
        };
        api.addEventListener("execution_error", ({ detail }) => {
            const node = nodeOf(detail?.node_id);
            if (node) say("error", titleOf(node), String(detail.exception_message).trim());
        });
        api.addEventListener("execution_interrupted", ({ detail }) => {
            const node = nodeOf(detail?.node_id);
            if (node?.comfyClass !== "Flux2LoraTrainer") return;
            // what the node says has come a moment before
            const text = node.widgets?.find(({ name }) => name === "flux2_shown")?.value ?? "";
            const line = text.split("\n").find((each) => /^(Stopped|Paused)/.test(each));
            say("info", titleOf(node), line ?? words("Stopped."));
        });
    },
});
