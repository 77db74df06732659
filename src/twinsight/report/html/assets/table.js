// The result table: sorted, filtered, with intervals, as LaTeX.
"use strict";

const table = { sort: null, descending: false, words: "", controls: true, intervals: false, gains: false, axes: {} };

/** Columns of options that differ between rows; the explainer has its own column. */
const axisColumns = () =>
  study.varying
    .map((key, place) => ({ key, place }))
    .filter(({ key, place }) => {
      if (/^(explainer|explainers)$/.test(key)) return false;
      return new Set(study.rows.map((row) => axisOf(row, place))).size > 1;
    });
const axisOf = (row, place) => [...new Set(row.cells.map((cell) => study.cells[cell].axes[place]))].join(", ");

function tableColumns() {
  const text = (key, head, read) => ({ key, head, read, text: true });
  const axes = axisColumns().map(({ key, place }) => text(`axis-${place}`, key, (row) => axisOf(row, place)));
  const shown = study.metrics.filter((metric) => !table.gains || study.rows.some((row) => row.values[metric.name]?.gain));
  const metrics = shown.map((metric) => ({
    key: metric.name,
    head: metric.head,
    metric,
    read: (row) => entryOf(row, metric)?.[0] ?? null,
    // Positive is better for every gain.
    high: table.gains || metric.high,
  }));
  const costs = [
    ["forwards", "F", "image forwards a pair, metrics included, without what rows before had encoded"],
    ["backwards", "b", "backward passes a pair"],
    ["seconds", "s", "seconds a pair"],
  ]
    .filter(([key]) => study.rows.some((row) => costOf(row, key) !== null))
    .map(([key, head, about]) => ({ key, head, about, high: false, cost: true, read: (row) => costOf(row, key) }));
  return [text("title", "Explainer", (row) => row.title), ...axes, ...metrics, ...costs];
}

const entryOf = (row, metric) => row.values[metric.name]?.[table.gains ? "gain" : "is"] ?? null;

function costOf(row, key) {
  if (key !== "seconds") return row.costs[key] ?? null;
  const parts = ["explain_seconds", "metrics_seconds"].map((part) => row.costs[part]).filter((part) => part !== undefined);
  return parts.length ? parts.reduce((sum, part) => sum + part) : null;
}

function visibleRows(columns) {
  const words = table.words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = study.rows.filter((row) => {
    if (row.control && !table.controls) return false;
    if (Object.entries(table.axes).some(([place, wanted]) => wanted && axisOf(row, Number(place)) !== wanted)) return false;
    const said = [row.title, row.label, row.family, study.groups[row.group].name, row.control ? "control" : ""].join(" ").toLowerCase();
    return words.every((word) => said.includes(word));
  });
  const column = columns.find((each) => each.key === table.sort);
  if (!column) return rows.sort((a, b) => a.group - b.group || a.order - b.order);
  const sign = table.descending ? -1 : 1;
  const texts = new Intl.Collator("en", { numeric: true });
  return rows.sort((a, b) => {
    const [first, second] = [column.read(a), column.read(b)];
    if (first === null || second === null) return (first === null) - (second === null);
    return sign * (column.text ? texts.compare(first, second) : first - second);
  });
}

function startTable() {
  const controls = byId("table-controls");
  const redraw = () => drawTable();
  controls.append(
    el("div", { class: "field" }, el("label", { for: "find" }, "Find"), el("input", { type: "search", id: "find", placeholder: "explainer or family", oninput: (event) => ((table.words = event.target.value), redraw()) })),
    ...axisColumns().map(({ key, place }) => {
      const values = [...new Set(study.rows.map((row) => axisOf(row, place)))];
      return selectField(key, [["", "all"], ...values.map((each) => [each, each || "–"])], "", (value) => ((table.axes[place] = value), redraw()));
    }),
  );
  if (study.rows.some((row) => Object.values(row.values).some((each) => each.gain))) {
    controls.append(selectField("Show", [["is", "means"], ["gain", "gains over matched random"]], "is", (value) => ((table.gains = value === "gain"), redraw())));
  }
  controls.append(
    checkField("Controls", true, (checked) => ((table.controls = checked), redraw())),
    checkField("Intervals", false, (checked) => ((table.intervals = checked), redraw())),
    el("span", { class: "note", role: "status", id: "table-status" }),
    el("button", { type: "button", id: "latex", class: "push", onclick: copyLatex }, "Copy as LaTeX"),
  );
  drawTable();
}

function drawTable() {
  const columns = tableColumns();
  const rows = visibleRows(columns);
  const focused = document.activeElement?.closest?.("thead button")?.dataset.key;
  const head = el("tr", {}, columns.map((column) => headCell(column)));
  const body = el("tbody");
  let before = null;
  for (const row of rows) {
    const apart = table.sort === null && before && (row.group !== before.group ? "first-of-group" : row.control && !before.control && "first-control");
    body.append(el("tr", { class: apart || null }, columns.map((column) => bodyCell(row, column))));
    before = row;
  }
  const whole = el("table", {}, el("caption", { class: "hidden" }, "Mean over pairs of each metric, by explainer"), el("thead", {}, head), body);
  byId("table-scroll").replaceChildren(rows.length ? whole : el("p", { class: "empty" }, study.rows.length ? "No row fits the filter." : "No cell has results yet."));
  byId("table-status").textContent = rows.length === study.rows.length ? count(rows.length, "row") : `${rows.length} of ${count(study.rows.length, "row")}`;
  byId("table-note").textContent = tableNote();
  if (focused) document.querySelector(`thead button[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function headCell(column) {
  const active = table.sort === column.key;
  const order = active ? (table.descending ? "descending" : "ascending") : "none";
  const about = column.metric?.about ?? column.about ?? null;
  const better = column.metric ? (column.high ? "higher is better" : "lower is better") : null;
  const button = el(
    "button",
    { type: "button", "data-key": column.key, "data-tip": about, onclick: () => sortBy(column) },
    column.head,
    column.metric && el("span", { class: "way", "aria-hidden": "true" }, column.high ? "↑" : "↓"),
    better && el("span", { class: "hidden" }, `, ${better}`),
    el("span", { class: "sorted", "aria-hidden": "true" }, active ? (table.descending ? "▼" : "▲") : ""),
  );
  return el("th", { scope: "col", "aria-sort": order, class: column.text ? "text" : null }, button);
}

/** Best first, then worst first, then the order of the study. */
function sortBy(column) {
  const bestFirst = Boolean(column.high);
  if (table.sort !== column.key) Object.assign(table, { sort: column.key, descending: bestFirst });
  else if (table.descending === bestFirst) table.descending = !bestFirst;
  else table.sort = null;
  drawTable();
}

function bodyCell(row, column) {
  if (column.key === "title") {
    return el(
      "th",
      { scope: "row", class: "text" },
      el("span", { class: row.control ? "control-name" : null }, row.title),
      row.control && el("span", { class: "tag" }, "control"),
      row.degenerate > 0 && el("span", { class: "tag warn", "data-tip": "pairs with a constant or non-finite map: their ranking is chance" }, `${row.degenerate} degenerate`),
      row.skipped > 0 && el("span", { class: "tag warn", "data-tip": "pairs whose photo could not be read" }, `${row.skipped} skipped`),
    );
  }
  if (column.text) return el("td", { class: "text" }, column.read(row));
  if (column.cost) {
    const cost = column.read(row);
    return el("td", {}, cost === null ? "–" : column.key === "seconds" && cost < 100 ? cost.toFixed(2) : cost.toFixed(0));
  }
  return metricCell(row, column);
}

function metricCell(row, column) {
  const facts = row.values[column.key];
  const entry = entryOf(row, column.metric);
  if (!entry) {
    const why = (table.gains ? null : facts?.why) ?? "no matched random control of this explainer or its family";
    return el("td", { class: "dash", "data-tip": why }, "–", el("span", { class: "hidden" }, ` ${why}`));
  }
  const level = study.groups[row.group].level;
  const [mean, low, high] = entry;
  const against = table.gains ? `\nagainst ${facts.against}` : "";
  const missing = facts.missing ? `\n${count(facts.missing, "pair")} without a value` : "";
  const signed = table.gains;
  const ends = low === null ? null : `[${number(low, signed)}, ${number(high, signed)}]`;
  const best = facts.best && !table.gains;
  return el(
    "td",
    { class: best ? "best" : null, "data-tip": intervalText(entry, level, signed) + against + missing },
    number(mean, signed),
    best && el("span", { class: "hidden" }, ", best"),
    table.intervals ? ends && el("span", { class: "interval" }, ends) : ends && el("span", { class: "hidden" }, `, interval ${ends}`),
  );
}

function tableNote() {
  if (!study.groups.length) return "";
  const level = Math.round(study.groups[0].level * 100);
  const pairs = [...new Set(study.groups.map((group) => group.pairs))].join(" or ");
  const { seeds } = study.groups[0];
  const what = table.gains
    ? "Mean over pairs of how much better an explanation does than noise as smooth as its maps; positive is better whatever the metric."
    : `Mean over ${pairs} pairs${seeds > 1 ? ` and ${seeds} seeds` : ""}. The best explainer of a column${study.groups.length > 1 ? ", within one model and data set," : ""} is bold; controls, in italics, do not compete and should lose.`;
  return `${what} ${level} % intervals over pairs: BCa bootstrap, Wilson's for shares. F and b: forward and backward passes a pair; s: seconds a pair.`;
}

/** The table as it is shown: rows, order, intervals. */
function latexTable() {
  const escapes = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}" };
  const safe = (text) => String(text).replace(/[\\~^<>]|[&%$#_{}]/g, (letter) => escapes[letter] ?? `\\${letter}`);
  const plain = (text) => safe(text.replaceAll("−", "-").replaceAll("–", "-")).replace(/-(?=\d)/g, "$-$");
  const columns = tableColumns();
  const rows = visibleRows(columns);
  const heads = columns.map((column) => safe(column.head) + (column.metric ? (column.high ? " $\\uparrow$" : " $\\downarrow$") : ""));
  const lines = [];
  rows.forEach((row, place) => {
    const before = rows[place - 1];
    if (table.sort === null && before && (row.group !== before.group || (row.control && !before.control))) lines.push("\\midrule");
    const cells = columns.map((column) => {
      if (column.key === "title") return row.control ? `\\emph{${safe(row.title)}}` : safe(row.title);
      if (column.text) return safe(column.read(row));
      if (column.cost) {
        const cost = column.read(row);
        return cost === null ? "-" : column.key === "seconds" && cost < 100 ? cost.toFixed(2) : cost.toFixed(0);
      }
      const entry = entryOf(row, column.metric);
      if (!entry) return "-";
      const mean = plain(number(entry[0], table.gains));
      const shown = row.values[column.key].best && !table.gains ? `\\textbf{${mean}}` : mean;
      const ends = `[${plain(number(entry[1], table.gains))}, ${plain(number(entry[2], table.gains))}]`;
      return table.intervals && entry[1] !== null ? `${shown} {\\scriptsize ${ends}}` : shown;
    });
    lines.push(`${cells.join(" & ")} \\\\`);
  });
  const align = columns.map((column) => (column.text ? "l" : "r")).join("");
  return [
    "% needs \\usepackage{booktabs}",
    "\\begin{table}",
    "\\centering",
    `\\caption{${safe(tableNote()).replaceAll("−", "$-$")}}`,
    `\\begin{tabular}{${align}}`,
    "\\toprule",
    `${heads.join(" & ")} \\\\`,
    "\\midrule",
    ...lines,
    "\\bottomrule",
    "\\end{tabular}",
    "\\end{table}",
    "",
  ].join("\n");
}

async function copyLatex() {
  const text = latexTable();
  const button = byId("latex");
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    byId("table-status").textContent = "The table was copied as LaTeX.";
    setTimeout(() => (button.textContent = "Copy as LaTeX"), 1800);
  } catch {
    byId("latex-text").value = text;
    byId("latex-dialog").showModal();
    byId("latex-text").select();
  }
}
