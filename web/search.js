// Where the search for nodes shows the pack's. ComfyUI finds a node by its aliases but ranks it by its names alone, and then
// by how often a list of shared workflows has it; that list is older than the pack. Here an alias counts like the beginning
// of a name, and the pack's nodes have a modest place in the list: after the few nodes that everybody uses.
import { app } from "../../scripts/app.js";

const OFTEN = 100; // ComfyUI's list gives 4314 to Preview Image, 447 to Load LoRA, 84 to Load LoRA Model
const AFTER_NAMES = 100; // longer than any name
const BEGINS = 1; // ComfyUI's ranks: 0 is the whole name, 1 its beginning, 2 a word, 3 a part of it,
const IN_ANY_ORDER = [4, 5]; // 4 and 5 all words of the query in another order,
const ALIAS = 9; // and 9 everything else that Fuse finds: aliases, and words with other letters

// What ComfyUI adds to Fuse's own score, which is 0 where the query is an alias letter by letter.
const penalty = (name, query) => 0.2 * (1 - Math.min(name.length, query.length) / Math.max(name.length, query.length));

function ranked({ name, display_name, search_aliases }) {
    const exact = (search_aliases ?? []).flatMap((alias) => [penalty(name, alias), penalty(display_name, alias)]);
    return ([rank, ...rest]) => {
        const isAlias = rank === ALIAS && exact.some((score) => Math.abs(score - rest.at(-1)) < 1e-3);
        if (isAlias) return [BEGINS, -OFTEN, AFTER_NAMES, ...rest.slice(1)];
        // all words of the query are in the trainer's name, such as "train lora" or "flux2 train"
        if (name === "Flux2LoraTrainer" && IN_ANY_ORDER.includes(rank)) return [-1, -OFTEN, ...rest];
        return [rank, -OFTEN, ...rest];
    };
}

app.registerExtension({
    name: "flux2_train.search",
    beforeRegisterVueAppNodeDefs(definitions) {
        for (const [index, definition] of definitions.entries()) {
            if (!definition.category?.startsWith("FLUX.2/")) continue;
            const Definition = LiteGraph.registered_node_types[definition.name]?.nodeData?.constructor;
            if (!Definition?.prototype?.postProcessSearchScores) continue; // a frontend that ranks in another way
            definitions[index] = new Definition(definition);
            definitions[index].postProcessSearchScores = ranked(definition);
        }
    },
});
