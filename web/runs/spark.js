// The small curve of a run in the list.
const WIDTH = 90, HEIGHT = 28, SVG = "http://www.w3.org/2000/svg";

export function spark(values) {
    const picture = document.createElementNS(SVG, "svg");
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    picture.setAttribute("class", "spark");
    picture.setAttribute("aria-hidden", "true");
    if (values.length < 2) return picture;
    const least = Math.min(...values), span = Math.max(...values) - least || 1;
    const place = (value, number) => {
        const x = 1 + (number * (WIDTH - 2)) / (values.length - 1), y = 2 + (HEIGHT - 4) * (1 - (value - least) / span);
        return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", values.map(place).join(" "));
    picture.append(line);
    return picture;
}
