// A chart of a metric against a parameter, of the experiments that the filter leaves: mean and range over seeds.

// Okabe and Ito's colours without the yellow, which is too light for print. Markers and dashes tell lines apart without colour.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9"];
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "12 5", "1 5", "5 2"];
const MARKERS = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "M-3.6-3.6h7.2v7.2h-7.2Z", "M0-4.8L4.8 3.6H-4.8Z", "M0-5.2L5.2 0L0 5.2L-5.2 0Z",
  "M0 4.8L4.8-3.6H-4.8Z", "M-4-4L4 4M-4 4L4-4", "M-5 0H5M0-5V5",
];
const [WIDTH, HEIGHT] = [760, 380];
const FRAME = { left: 70, right: WIDTH - 20, top: 16, bottom: HEIGHT - 56 };
const APART = 7; // units between the points of two lines at one place
const MOST_TICKS = 8;
const LOGARITHMIC_FROM = 30; // the largest value over the smallest
const NONE = "";

const metrics = [...columns.keys()].filter((column) => columns[column].metric && experiments.some(({ cells }) => typeof cells[column] === "number"));
const parameters = [...columns.keys()].filter((column) => column > FROM && !columns[column].metric);
const SEED = parameters.find((column) => columns[column].key === "seed");

function differs(column) {
  return new Set(experiments.map(({ cells }) => cells[column]).filter((value) => value !== null)).size > 1;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(at("drawn").namespaceURI, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// ---- the numbers

// The other parameters that are needed to tell apart what stands at one place of one series.
function separating(list, x, series) {
  const others = parameters.filter((column) => ![x, series, SEED].includes(column));
  let parts = [...Map.groupBy(list, ({ cells }) => JSON.stringify([cells[x], cells[series]])).values()];
  return others.filter((column) => {
    const finer = parts.flatMap((part) => [...Map.groupBy(part, ({ cells }) => cells[column]).values()]);
    const tells = finer.length > parts.length;
    parts = finer;
    return tells;
  });
}

function point(list, y) {
  // an experiment may be there twice, as one of DVC and as the last commit
  const runs = [...new Map(list.map(({ cells }) => [JSON.stringify([cells[SEED], cells[y]]), cells])).values()];
  const values = runs.map((cells) => cells[y]);
  return {
    mean: values.reduce((sum, value) => sum + value, 0) / values.length,
    lowest: Math.min(...values),
    highest: Math.max(...values),
    seeds: new Set(runs.map((cells) => cells[SEED])).size,
    runs: runs.length,
    names: list.map(({ cells }) => cells[NAME]),
  };
}

// The lines of the chart: each with its label and its points, in the order of x. Without x or metric an experiment has no point.
function chartLines(x, y, series) {
  const list = experiments.filter(({ cells }, experiment) => !rows[experiment].hidden && cells[x] !== null && typeof cells[y] === "number");
  const keys = [...(series === null ? [] : [series]), ...separating(list, x, series)];
  const by = Map.groupBy(list, ({ cells }) => JSON.stringify(keys.map((column) => cells[column])));
  const lines = [...by.values()].map((members) => {
    const values = keys.map((column) => members[0].cells[column]);
    const points = [...Map.groupBy(members, ({ cells }) => cells[x])].map(([place, found]) => ({ x: place, ...point(found, y) }));
    const label = keys.map((column, at) => `${columns[column].key} ${text(values[at], column)}`).join(", ");
    return { values, label, points: points.sort((one, other) => order(one.x, other.x)) };
  });
  const compare = (one, other) => (one === null) - (other === null) || (one === null ? 0 : order(one, other));
  lines.sort((one, other) => one.values.map((value, at) => compare(value, other.values[at])).find((sign) => sign !== 0) ?? 0);
  return { lines, keys, used: list.length };
}

// ---- the drawing

function steps(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const count = Math.ceil(high / step) - Math.floor(low / step);
  return Array.from({ length: count + 1 }, (_, place) => Number(((Math.floor(low / step) + place) * step).toPrecision(12)));
}

// Where a value of x stands, the ticks there, and what the axis says of itself.
function across(values) {
  const inner = [FRAME.left + 40, FRAME.right - 40];
  const spread = (place, whole) => (whole === 0 ? (inner[0] + inner[1]) / 2 : inner[0] + (place / whole) * (inner[1] - inner[0]));
  const numbers = values.map(number);
  if (numbers.some(isNaN)) {
    return { at: (value) => spread(values.indexOf(value), values.length - 1), ticks: values, joined: false, note: "" };
  }
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const logarithmic = low > 0 && high / low >= LOGARITHMIC_FROM;
  const scale = logarithmic ? Math.log : (value) => value;
  const at = (value) => spread(scale(number(value)) - scale(low), scale(high) - scale(low));
  const ticks = values.length <= MOST_TICKS || logarithmic ? values : steps(low, high).filter((tick) => tick >= low && tick <= high);
  return { at, ticks, joined: true, note: logarithmic ? " (logarithmic)" : "" };
}

function word(x, y, content, attributes = {}) {
  return draw("text", { x, y, "font-size": 13, fill: "#1f2328", "text-anchor": "middle", ...attributes }, content);
}

function sample(line) {
  const { colour, dash, marker } = look(line);
  return [
    draw("path", { d: "M0 8H36", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash, fill: "none" }),
    draw("path", { d: marker, transform: "translate(18 8)", stroke: colour, "stroke-width": 2, fill: colour }),
  ];
}

function look(line) {
  const turn = Math.floor(line / COLOURS.length);
  const other = (list) => list[(line + turn) % list.length];
  return { colour: COLOURS[line % COLOURS.length], dash: other(DASHES), marker: other(MARKERS) };
}

function drawLines(lines, x, y) {
  const values = [...new Set(lines.flatMap(({ points }) => points.map((one) => one.x)))].sort(order);
  const { at: horizontal, ticks, joined, note } = across(values);
  const ends = lines.flatMap(({ points }) => points.flatMap(({ lowest, highest }) => [lowest, highest]));
  const [least, most] = [Math.min(...ends), Math.max(...ends)];
  const levels = least === most ? steps(least - 0.05, most + 0.05) : steps(least, most);
  const [bottom, top] = [levels[0], levels.at(-1)];
  const vertical = (value) => FRAME.bottom - ((value - bottom) / (top - bottom)) * (FRAME.bottom - FRAME.top);
  const parts = levels.flatMap((level) => [
    draw("path", { d: `M${FRAME.left} ${vertical(level)}H${FRAME.right}`, stroke: "#d9dee3" }),
    word(FRAME.left - 8, vertical(level) + 4, String(level), { "text-anchor": "end" }),
  ]);
  let last = -Infinity;
  for (const tick of ticks) {
    const said = String(tick);
    const place = horizontal(tick);
    parts.push(draw("path", { d: `M${place} ${FRAME.bottom}v5`, stroke: "#59636e" }));
    if (place - said.length * 3.6 < last) continue;
    last = place + said.length * 3.6 + 6;
    parts.push(word(place, FRAME.bottom + 20, said));
  }
  parts.push(draw("path", { d: `M${FRAME.left} ${FRAME.bottom}H${FRAME.right}`, stroke: "#59636e" }));
  parts.push(word((FRAME.left + FRAME.right) / 2, HEIGHT - 12, columns[x].key + note, { "font-weight": 600 }));
  const middle = (FRAME.top + FRAME.bottom) / 2;
  parts.push(word(18, middle, columns[y].key, { "font-weight": 600, transform: `rotate(-90 18 ${middle})` }));
  lines.forEach(({ label: said, points }, line) => {
    const { colour, dash, marker } = look(line);
    const place = (one) => horizontal(one.x) + (line - (lines.length - 1) / 2) * Math.min(APART, 60 / lines.length);
    const path = points.map((one, count) => `${count ? "L" : "M"}${place(one)} ${vertical(one.mean)}`).join("");
    if (joined) parts.push(draw("path", { class: "line", d: path, stroke: colour, "stroke-width": 2, "stroke-dasharray": dash, fill: "none" }));
    for (const one of points) {
      const bar = `M${place(one)} ${vertical(one.lowest)}V${vertical(one.highest)}`;
      const caps = [one.lowest, one.highest].map((value) => `M${place(one) - 4} ${vertical(value)}h8`).join("");
      const range = one.runs > 1 ? ` (${text(one.lowest, y)} to ${text(one.highest, y)})` : "";
      const title = `${said ? `${said}; ` : ""}${columns[x].key} ${one.x}: ${text(one.mean, y)}${range}, ${seedsOf(one.seeds)}`;
      const children = one.runs > 1 ? [draw("path", { d: bar + caps, stroke: colour, "stroke-width": 1.5, fill: "none" })] : [];
      children.push(draw("path", { d: marker, transform: `translate(${place(one)} ${vertical(one.mean)})`, stroke: colour, "stroke-width": 2, fill: colour }));
      parts.push(draw("g", { class: "point" }, draw("title", {}, title), ...children));
    }
  });
  at("drawn").setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  at("drawn").setAttribute("aria-label", `${columns[y].key} against ${columns[x].key}, ${lines.length} lines`);
  at("drawn").replaceChildren(...parts);
}

function seedsOf(count) {
  return count === 1 ? "one seed" : `${count} seeds`;
}

// ---- what is asked for

const axes = { y: null, x: null, series: null };

function chosenIn(id) {
  return at(id).value === NONE ? null : Number(at(id).value);
}

function drawChart() {
  if (at("chart").hidden) return;
  Object.assign(axes, { y: chosenIn("metric"), x: chosenIn("parameter"), series: chosenIn("series") });
  const { x, y, series } = axes;
  const { lines, used } = chartLines(x, y, series === x ? null : series);
  const visible = rows.filter((row) => !row.hidden).length;
  const points = lines.flatMap((line) => line.points);
  const most = Math.max(0, ...points.map(({ seeds }) => seeds));
  const again = points.filter(({ runs, seeds }) => runs > seeds).length;
  at("drawn").toggleAttribute("hidden", !used);
  if (used) drawLines(lines, x, y);
  at("legend").replaceChildren(
    ...(lines.length > 1 ? lines : []).map(({ label: said }, line) =>
      make("li", {}, draw("svg", { width: 36, height: 16, viewBox: "0 0 36 16", "aria-hidden": "true" }, ...sample(line)), said),
    ),
  );
  at("charted").textContent = [
    `${used} of the ${visible} experiments shown have both values.`,
    most > 1 ? `Mean and range over up to ${seedsOf(most)}; a point has the number of its own as a tooltip.` : "",
    lines.length > 1 ? "Lines are drawn a little apart." : "",
    again ? `At ${again} point${again === 1 ? "" : "s"} a seed was run more than once, with different results (as with other code), and all are in mean and range.` : "",
  ].join(" ");
  at("chart-csv").disabled = !used;
}

function chartTable() {
  const { x, y, series } = axes;
  const { lines, keys } = chartLines(x, y, series === x ? null : series);
  const heads = [...keys, x].map((column) => columns[column].key);
  return [
    [...heads, `${columns[y].key} mean`, "lowest", "highest", "seeds", "experiments"],
    ...lines.flatMap(({ values, points }) =>
      points.map((one) => [...values, one.x, one.mean, one.lowest, one.highest, one.seeds, one.names.join(" ")]),
    ),
  ];
}

function offer(id, list, wanted, none) {
  const option = (column) => make("option", { value: column }, columns[column].key);
  const [first, rest] = [list.filter(differs), list.filter((column) => !differs(column))];
  const groups = [[first, "different"], [rest, "equal in all"]].filter(([members]) => members.length > 0);
  at(id).append(
    ...(none ? [make("option", { value: NONE }, none)] : []),
    ...groups.map(([members, label]) => make("optgroup", { label }, ...members.map(option))),
  );
  at(id).value = wanted ?? (none ? NONE : (first[0] ?? rest[0]));
  at(id).onchange = () => {
    drawChart();
    keepState();
  };
}

function offerCharts() {
  at("chart").hidden = metrics.length === 0 || parameters.length === 0;
  if (at("chart").hidden) return;
  const different = parameters.filter((column) => column !== SEED && differs(column));
  const isNumeric = (column) => experiments.every(({ cells }) => !isWords(cells[column]));
  const horizontal = kept("x") ?? different.find(isNumeric) ?? different[0];
  const split = state.has("series") ? kept("series") : different.find((column) => column !== horizontal && !isNumeric(column));
  offer("metric", metrics, kept("y") ?? metrics.find((column) => columns[column].key.startsWith(VALIDATED)));
  offer("parameter", parameters, horizontal);
  offer("series", parameters, split, "nothing");
}
