// Makes elements the children of another one, in that order. Those that are there already stay where they are: one that is
// taken out and put back loses the focus, and the press of a mouse button over it is no click.
export function arrange(parent, elements) {
    const { children } = parent, wanted = new Set(elements);
    for (const child of [...children]) if (!wanted.has(child)) child.remove();
    elements.forEach((element, place) => {
        if (children[place] !== element) parent.insertBefore(element, children[place] ?? null);
    });
}
