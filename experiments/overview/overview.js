"use strict";

// Text from the data reaches the page as text nodes alone, so nothing in it is read as HTML.
const { columns, experiments, figures, pictures } = JSON.parse(document.getElementById("content").textContent);
const NAME = 0;
const FROM = 1;
const GAP = "–";

const at = (id) => document.getElementById(id);
// what the address keeps: #column=KEY&column=KEY&filter=...&x=KEY&y=KEY&series=KEY
const state = new URLSearchParams(location.hash.slice(1));
const wanted = state.has("column") ? new Set(state.getAll("column")) : null;
const shown = new Set([...columns.keys()].filter((column) => (wanted ? column === NAME || wanted.has(columns[column].key) : columns[column].shown)));
const chosen = new Set(); // experiments, in the order in which they were chosen
let sorted = { column: null, sign: 1 };
let rows = [];

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function text(value, column) {
  if (value === null) return GAP;
  const { decimals } = columns[column];
  return typeof value === "number" && decimals !== null ? value.toFixed(decimals) : String(value);
}

function label(experiment) {
  const { cells } = experiments[experiment];
  return shown.has(FROM) ? `${cells[NAME]} (${cells[FROM]})` : cells[NAME];
}

// A radius may be 8/255.
function number(value) {
  if (typeof value === "number") return value;
  const [, above, below] = /^([\d.]+)\/([\d.]+)$/.exec(value ?? "") ?? [];
  return below ? above / below : value?.trim() ? Number(value) : NaN;
}

// Numbers by size and before words; words by letters, numbers inside them by size.
function order(one, other) {
  const [first, second] = [number(one), number(other)];
  if (!isNaN(first) && !isNaN(second)) return first - second;
  if (isNaN(first) !== isNaN(second)) return isNaN(first) ? 1 : -1;
  return one.localeCompare(other, "en", { numeric: true });
}

// ---- the table

// A title may be broken after the signs that join its words.
function breakable(title) {
  return title.split(/(?<=[._])(?!\d)/).flatMap((part) => [part, make("wbr", {})]);
}

function isWords(value) {
  return typeof value === "string" && isNaN(number(value));
}

function cell(value, column, starts) {
  const kind = value === null ? "gap" : isWords(value) ? "words" : "";
  const node = make("td", { className: kind }, text(value, column));
  if (value === null) node.setAttribute("aria-label", "no value");
  else node.title = String(value);
  node.classList.toggle("starts", starts);
  return node;
}

function startsGroup(list, place) {
  return place > 0 && columns[list[place]].group !== columns[list[place - 1]].group;
}

function drawTable() {
  const list = [...columns.keys()].filter((column) => shown.has(column));
  const groups = make("tr", {});
  const titles = make("tr", {});
  list.forEach((column, place) => {
    const { group, title, key } = columns[column];
    const starts = startsGroup(list, place);
    if (starts || place === 0) {
      const width = list.filter((other) => columns[other].group === group).length;
      groups.append(make("th", { className: starts ? "group starts" : "group", colSpan: width, scope: "colgroup" }, group));
    }
    const button = make("button", { type: "button", title: `sort by ${key}`, onclick: () => sortBy(column) }, ...breakable(title));
    const head = make("th", { scope: "col", className: starts ? "starts" : "" }, button);
    head.classList.toggle("words", experiments.some(({ cells }) => isWords(cells[column])));
    head.dataset.column = column;
    titles.append(head);
  });
  rows = experiments.map(({ cells }, experiment) => {
    const box = make("input", { type: "checkbox", checked: chosen.has(experiment) });
    box.onchange = () => choose(experiment, box.checked);
    const name = make("th", { scope: "row", title: cells[NAME] }, make("label", {}, box, ` ${cells[NAME]}`));
    const values = list.map((column, place) => cell(cells[column], column, startsGroup(list, place)));
    return make("tr", { className: chosen.has(experiment) ? "chosen" : "" }, name, ...values.slice(1));
  });
  document.querySelector("#experiments thead").replaceChildren(groups, titles);
  placeRows();
  filter();
}

function placeRows() {
  const { column, sign } = sorted;
  const places = [...experiments.keys()];
  if (column !== null) {
    const value = (experiment) => experiments[experiment].cells[column];
    // gaps last, whichever way
    places.sort((one, other) => {
      const gaps = (value(one) === null) - (value(other) === null);
      return gaps || value(one) === null ? gaps : sign * order(value(one), value(other));
    });
  }
  document.querySelector("#experiments tbody").replaceChildren(...places.map((experiment) => rows[experiment]));
  for (const head of document.querySelectorAll("#experiments [data-column]")) {
    if (Number(head.dataset.column) === column) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

// The first click on a metric brings the largest value to the top, on anything else the smallest.
function sortBy(column) {
  const first = columns[column].decimals === null ? 1 : -1;
  sorted = { column, sign: sorted.column === column ? -sorted.sign : first };
  placeRows();
}

// ---- the filter

// The column that is meant: by its key, by its title, or by the end of its key. Throws an Error if none is, or several are.
function asked(key) {
  const ways = [
    (column) => column.key.toLowerCase() === key,
    (column) => column.title.toLowerCase() === key,
    (column) => column.key.toLowerCase().endsWith(`.${key}`),
  ];
  const found = ways.map((way) => [...columns.keys()].filter((column) => way(columns[column])));
  const meant = found.find((list) => list.length > 0) ?? [];
  if (meant.length === 0) throw new Error(`No column is called “${key}”.`);
  if (meant.length > 1) throw new Error(`“${key}” is one of: ${meant.map((column) => columns[column].key).join(", ")}.`);
  return meant[0];
}

function meets(value, sign, wanted) {
  if (value === null) return false;
  if (sign === "<") return number(value) < number(wanted);
  if (sign === ">") return number(value) > number(wanted);
  if (sign === "<=") return number(value) <= number(wanted);
  if (sign === ">=") return number(value) >= number(wanted);
  return String(value).toLowerCase() === wanted || number(value) === number(wanted);
}

// A condition on the cells of an experiment; throws an Error where the column is not known, or words are to be compared.
function condition(word) {
  const plain = word.replaceAll('"', "").toLowerCase();
  const [, key, sign, wanted] = /^([^=<>]+)([<>]=?|=)(.+)$/.exec(plain) ?? [];
  if (sign) {
    const column = asked(key);
    if (sign !== "=" && isNaN(number(wanted))) {
      throw new Error(`“${wanted}” in “${plain}” is not a number; words are asked with “=”.`);
    }
    return (cells) => meets(cells[column], sign, wanted);
  }
  return (cells) => [...shown].some((column) => text(cells[column], column).toLowerCase().includes(plain));
}

function filter() {
  let conditions = [];
  let problem = "";
  try {
    conditions = (at("filter").value.match(/(?:"[^"]*"|\S)+/g) ?? []).map(condition);
  } catch (error) {
    conditions = [() => false];
    problem = `${error.message} `;
  }
  experiments.forEach(({ cells }, experiment) => {
    rows[experiment].hidden = !conditions.every((holds) => holds(cells));
  });
  const visible = rows.filter((row) => !row.hidden).length;
  at("said").textContent = `${problem}${visible} of ${experiments.length} shown, ${chosen.size} chosen.`;
  markBest();
  drawChart();
}

// ---- the best by validation

const VALIDATED = "training.proxy.";
const isValidation = ({ key }) => /^(dataset|image_folder|prepare|validation)(\.|$)/.test(key);

// Of the experiments that are shown and were measured on the same validation images those with the highest robust accuracy, the
// mean over norms, radii and seeds. None of one alone.
function markBest() {
  const all = [...columns.keys()];
  const compared = all.filter((column) => !columns[column].metric && isValidation(columns[column]));
  const setup = all.filter((column) => column > FROM && !columns[column].metric && columns[column].key !== "seed");
  const proxies = all.filter((column) => columns[column].key.startsWith(VALIDATED));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const values = (list, experiment) => JSON.stringify(list.map((column) => experiments[experiment].cells[column]));
  const accuracy = (experiment) => mean(proxies.map((column) => experiments[experiment].cells[column]).filter((value) => value !== null));
  const seed = ({ cells }) => cells[all.find((column) => columns[column].key === "seed")];
  const measured = [...experiments.keys()].filter((experiment) => !rows[experiment].hidden && !isNaN(accuracy(experiment)));
  const said = [];
  rows.forEach((row) => row.querySelector("th").classList.remove("best"));
  for (const alike of Map.groupBy(measured, (experiment) => values(compared, experiment)).values()) {
    const settings = [...Map.groupBy(alike, (experiment) => values(setup, experiment)).values()].map((runs) => {
      const bySeed = [...Map.groupBy(runs, (experiment) => seed(experiments[experiment])).values()];
      return { runs, seeds: bySeed.length, accuracy: mean(bySeed.map((same) => mean(same.map(accuracy)))) };
    });
    if (settings.length < 2) continue;
    const highest = Math.max(...settings.map((one) => one.accuracy));
    const best = settings.filter((one) => highest - one.accuracy < 1e-9);
    for (const experiment of best.flatMap(({ runs }) => runs)) rows[experiment].querySelector("th").classList.add("best");
    const names = best.map(({ runs, seeds }) => `${runs.map(label).join(", ")} (${seedsOf(seeds)})`).join(" and ");
    const unlike = new Set(settings.map(({ seeds }) => seeds)).size > 1 ? "; not all have as many seeds" : "";
    const of = proxies.filter((column) => experiments[alike[0]].cells[column] !== null).map((column) => columns[column].key.slice(VALIDATED.length));
    said.push(`${names}${best.length > 1 ? ", which are equal" : ""}: ${highest.toFixed(3)}, mean of ${of.join(", ")}${unlike}`);
  }
  at("best").textContent = said.length ? `★ best by validation of those shown: ${said.join(". With other validation images: ")}.` : "";
}

// ---- files, and the address

function csv(lines) {
  const field = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return lines.map((line) => `${line.map((value) => field(String(value ?? ""))).join(",")}\n`).join("");
}

function save(name, lines) {
  const link = make("a", { href: URL.createObjectURL(new Blob([csv(lines)], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The table as it is shown: its columns, and its rows in their order, with all digits.
function tableLines() {
  const list = [...columns.keys()].filter((column) => shown.has(column));
  const inOrder = [...document.querySelectorAll("#experiments tbody tr")].filter((row) => !row.hidden).map((row) => rows.indexOf(row));
  return [list.map((column) => columns[column].key), ...inOrder.map((experiment) => list.map((column) => experiments[experiment].cells[column]))];
}

function kept(name) {
  const found = columns.findIndex(({ key }) => key === state.get(name));
  return found < 0 ? undefined : found;
}

function keepState() {
  const list = [...columns.keys()].filter((column) => column !== NAME && shown.has(column));
  const first = list.every((column) => columns[column].shown) && columns.filter((column) => column.shown).length === list.length + 1;
  const now = new URLSearchParams(first ? [] : list.map((column) => ["column", columns[column].key]));
  if (!first && list.length === 0) now.append("column", "");
  if (at("filter").value) now.set("filter", at("filter").value);
  if (!at("chart").hidden) {
    for (const [name, id] of [["y", "metric"], ["x", "parameter"], ["series", "series"]]) {
      now.set(name, at(id).value === "" ? "" : columns[Number(at(id).value)].key);
    }
  }
  history.replaceState(null, "", `#${now}`);
}

// ---- the choice of columns

function drawChoice() {
  const groups = Map.groupBy([...columns.keys()].slice(FROM), (column) => columns[column].group);
  for (const [group, list] of groups) {
    const boxes = list.map((column) => {
      const box = make("input", { type: "checkbox", checked: shown.has(column) });
      box.onchange = () => {
        if (box.checked) shown.add(column);
        else shown.delete(column);
        drawTable();
        drawComparison();
        keepState();
      };
      return make("label", {}, box, ` ${columns[column].title}`);
    });
    const frame = make("fieldset", { className: list.length > 20 ? "long" : "" }, ...boxes);
    if (group) frame.prepend(make("legend", {}, group));
    at("choice").append(frame);
  }
}

// ---- the comparison

function choose(experiment, wanted) {
  if (wanted) chosen.add(experiment);
  else chosen.delete(experiment);
  rows[experiment].classList.toggle("chosen", wanted);
  filter();
  drawComparison();
}

function drawComparison() {
  at("compare").disabled = chosen.size < 2;
  at("none").disabled = chosen.size === 0;
  at("comparison").hidden = chosen.size < 2;
  if (chosen.size < 2) return;
  drawCompared([...chosen]);
  drawPictures([...chosen]);
}

function drawCompared(list) {
  const pair = list.length === 2;
  const heads = ["", ...list.map(label), ...(pair ? ["difference"] : [])];
  document.querySelector("#compared thead").replaceChildren(
    make("tr", {}, ...heads.map((head) => make(head ? "th" : "td", head ? { scope: "col" } : {}, head))),
  );
  for (const body of document.querySelectorAll("#compared tbody")) body.remove();
  const groups = Map.groupBy([...columns.keys()].slice(FROM + 1), (column) => columns[column].group);
  for (const [group, members] of groups) {
    const lines = members.map((column) => comparedLine(column, list, pair)).filter((line) => line !== null);
    if (lines.length === 0) continue;
    const head = make("th", { className: "group", scope: "rowgroup", colSpan: heads.length }, group);
    at("compared").append(make("tbody", {}, make("tr", {}, head), ...lines));
  }
}

function comparedLine(column, list, pair) {
  const values = list.map((experiment) => experiments[experiment].cells[column]);
  const equal = values.every((value) => value === values[0]);
  if (values.every((value) => value === null) || (equal && !at("equal").checked)) return null;
  const line = make("tr", { className: equal ? "equal" : "" }, make("th", { scope: "row" }, columns[column].title));
  line.append(...values.map((value) => cell(value, column, false)));
  if (pair) line.append(make("td", {}, difference(values, column), uncertainty(list, column)));
  return line;
}

// Second less first, of metrics.
function difference([first, second], column) {
  if (!columns[column].metric || typeof first !== "number" || typeof second !== "number") return "";
  const size = text(Math.abs(second - first), column);
  return second === first ? size : `${second > first ? "+" : "−"}${size}`;
}

// Two standard errors of a difference of accuracies on the same images, from those on which the two experiments differ.
function uncertainty(list, column) {
  const [first, second] = list.map((experiment) => experiments[experiment]);
  const [before, after] = [first, second].map(({ verdicts }) => verdicts[columns[column].key]);
  if (!before || !after || first.attacked !== second.attacked || before.length !== after.length) return "";
  const images = before.length;
  const gained = [...before].filter((mark, image) => mark < after[image]).length;
  const lost = [...before].filter((mark, image) => mark > after[image]).length;
  const mean = (gained - lost) / images;
  return ` ± ${text(2 * Math.sqrt(((gained + lost) / images - mean ** 2) / images), column)}`;
}

function drawPictures(list) {
  at("pictures").replaceChildren();
  for (const { name, caption } of figures) {
    if (!list.some((experiment) => name in experiments[experiment].figures)) continue;
    const frames = list.map((experiment) => {
      const picture = experiments[experiment].figures[name];
      const title = make("figcaption", {}, label(experiment));
      if (picture === undefined) return make("figure", {}, title, make("div", { className: "none" }, "no such figure"));
      const image = make("img", { src: pictures[picture], alt: `${spoken(name)} of ${label(experiment)}` });
      const button = make("button", { type: "button", title: "show it large" }, image);
      button.onclick = () => enlarge(name, list.filter((other) => name in experiments[other].figures), experiment);
      return make("figure", {}, title, button);
    });
    at("pictures").append(
      make("section", {},
        make("h3", {}, spoken(name)), make("p", { className: "note" }, caption), make("div", { className: "beside" }, ...frames)),
    );
  }
  if (!at("pictures").hasChildNodes()) at("pictures").append(make("p", {}, "None of these experiments has figures."));
}

function spoken(name) {
  const words = name.replaceAll("_", " ").replace("pgd", "PGD");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// ---- a figure, large

// `step` goes to the same figure of another experiment, in the same place, where a difference is easily seen.
let step = () => {};

function enlarge(name, list, experiment) {
  let place = list.indexOf(experiment);
  step = (by) => {
    place = (place + by + list.length) % list.length;
    const title = `${spoken(name)}: ${label(list[place])} (${place + 1} of ${list.length})`;
    at("large-title").textContent = title;
    Object.assign(at("large").querySelector("img"), { src: pictures[experiments[list[place]].figures[name]], alt: title });
  };
  step(0);
  at("previous").disabled = at("next").disabled = list.length < 2;
  at("large").showModal();
}

at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
at("close").onclick = () => at("large").close();
at("large").onclick = (event) => event.target === at("large") && at("large").close();
at("large").onkeydown = (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
};
at("filter").oninput = () => {
  filter();
  keepState();
};
at("table-csv").onclick = () => save("experiments.csv", tableLines());
at("chart-csv").onclick = () => save("chart.csv", chartTable());
// an address that was entered, not one that the page has kept
window.onhashchange = () => location.reload();
at("equal").onchange = drawComparison;
at("none").onclick = () => {
  chosen.clear();
  drawTable();
  drawComparison();
};
at("compare").onclick = () => {
  at("comparison").scrollIntoView();
  at("comparison-title").focus({ preventScroll: true });
};

function start() {
  at("filter").value = state.get("filter") ?? "";
  drawChoice();
  offerCharts();
  drawTable();
}
