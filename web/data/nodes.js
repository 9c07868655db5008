// All nodes of a kind in a graph and in its subgraphs.
export const nodesOf = (graph, kind) => (graph._nodes ?? []).flatMap((node) => [
    ...(node.comfyClass === kind ? [node] : []), ...(node.subgraph ? nodesOf(node.subgraph, kind) : [])]);
