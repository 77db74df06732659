// Bars, curves, the agreement of metrics and parallel coordinates, drawn by Observable Plot.
"use strict";

const chart = { metric: null, gains: false, curve: null, sweep: null };
const CURVES = {
  si: "Simultaneous insertion",
  sd: "Simultaneous deletion",
  ci: "Conditional insertion",
  cd: "Conditional deletion",
};
const BANDS = 4;
const PLOT_STYLE = { background: "none", color: "currentColor", fontSize: "12px", fontFamily: "inherit" };

function startCharts() {
  const controls = byId("chart-controls");
  if (!study.groups.length) {
    byId("panels").append(el("p", { class: "empty" }, "No cell has results yet."));
    return;
  }
  if (study.groups.length > 1) {
    const groups = study.groups.map((group, place) => [String(place), group.name]);
    controls.append(selectField("Model and data", groups, "0", (group) => (choice.pick(Number(group)), choice.changed()), "group"));
    choice.listeners.push(() => (byId("group").value = String(choice.group)));
  }
  controls.append(explainerChips("Explainers in curves and gallery", innerWidth > 700));
  byId("panels").append(scorePanel(), curvePanel(), agreementPanel(), costPanel(), sweepPanel());
  choice.listeners.push(drawCharts);
  new ResizeObserver(onNextFrame(drawCharts)).observe(byId("panels"));
  drawFigureLinks();
}

/** At most once a frame, and not within the observer's own round. */
function onNextFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}

function drawCharts() {
  drawScores();
  drawCurves();
  drawAgreement();
  drawCosts();
  drawSweep();
}

function panel(id, title, caption, ...controls) {
  const head = el("div", { class: "head" }, el("h3", {}, title), ...controls);
  return el("figure", { class: "panel", id: `panel-${id}` }, head, el("div", { class: "plot", id: `plot-${id}` }), el("figcaption", { id: `caption-${id}` }, caption));
}

/** Put a plot into its panel; what it shows is said to those who do not see it. */
function place(id, label, options, least = 240) {
  const target = byId(`plot-${id}`);
  const width = Math.max(least, target.clientWidth);
  const plot = Plot.plot({ width, style: PLOT_STYLE, ariaLabel: label, ...options(width) });
  const svg = plot.tagName === "svg" ? plot : plot.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.style.maxWidth = "none"; // a wide one is scrolled, not shrunk
  target.replaceChildren(plot);
}

const groupMetrics = () => study.metrics.filter((metric) => study.groups[choice.group].metrics.includes(metric.name));

function scorePanel() {
  const gains = study.rows.some((row) => Object.values(row.values).some((each) => each.gain));
  chart.metric = (groupMetrics().find((metric) => metric.name === "ci") ?? groupMetrics()[0])?.name ?? null;
  const metrics = study.metrics.map((metric) => [metric.name, `${metric.head} ${arrow(metric)}`]);
  return panel(
    "scores",
    "Scores",
    "",
    el(
      "div",
      { class: "controls", style: "margin: 0" },
      gains && selectField("Show", [["is", "means"], ["gain", "gains over matched random"]], "is", (value) => ((chart.gains = value === "gain"), drawScores())),
      selectField("Metric", metrics, chart.metric, (value) => ((chart.metric = value), drawScores(), drawCosts())),
    ),
  );
}

function drawScores() {
  const metric = metricOf[chart.metric];
  const rows = rowsOf(choice.group);
  const data = rows
    .map((row) => ({ row, entry: metric && row.values[metric.name]?.[chart.gains ? "gain" : "is"] }))
    .filter(({ entry }) => entry)
    .map(({ row, entry }) => ({ name: row.title, control: row.control, mean: entry[0], low: entry[1], high: entry[2], row, entry }));
  const caption = byId("caption-scores");
  if (!data.length) {
    byId("plot-scores").replaceChildren(el("p", { class: "empty" }, "No row has this metric."));
    caption.textContent = "";
    return;
  }
  const level = study.groups[choice.group].level;
  caption.textContent =
    `${metric.about} Bars: mean over pairs; lines: ${Math.round(level * 100)} % interval; grey: controls.` +
    (chart.gains ? " Gains over matched random: positive is better." : "");
  const best = data.filter((each) => !each.control).sort((a, b) => (metric.high || chart.gains ? b.mean - a.mean : a.mean - b.mean))[0];
  place("scores", `${metric.head} of ${data.length} explainers, best ${best?.name ?? "none"} with ${number(best?.mean)}; the table above has all numbers`, (width) => {
    const left = Math.min(230, width * 0.42);
    const letters = Math.floor(left / 7.2);
    return {
      height: 44 + 21 * data.length,
      marginLeft: left,
      marginRight: 48,
      marginTop: 6,
      x: { label: null, grid: true, nice: true, ticks: Math.max(3, Math.floor((width - left) / 70)) },
      y: { label: null, domain: data.map((each) => each.name), tickSize: 0, tickFormat: (name) => (name.length > letters ? `${name.slice(0, letters - 1)}…` : name) },
      marks: [
        Plot.barX(data, { x: "mean", y: "name", fill: (each) => (each.control ? "var(--control)" : "var(--c0)"), fillOpacity: (each) => (each.control ? 0.45 : each === best ? 1 : 0.6), insetTop: 2.5, insetBottom: 2.5, rx: 2 }),
        Plot.ruleY(data.filter((each) => each.low !== null), { x1: "low", x2: "high", y: "name", stroke: "var(--ink)", strokeWidth: 1.5 }),
        Plot.ruleX([0], { stroke: "var(--muted)" }),
        Plot.text(data, { frameAnchor: "right", y: "name", text: (each) => number(each.mean, chart.gains), textAnchor: "start", dx: 6, fill: "currentColor" }),
        Plot.tip(data, Plot.pointerY({ x: "mean", y: "name", title: (each) => `${each.name}\n${intervalText(each.entry, level, chart.gains)}`, fontSize: 12 })),
      ],
    };
  });
}

function curvePanel() {
  const kinds = Object.keys(CURVES).filter((kind) => study.rows.some((row) => row.curves[kind]));
  chart.curve = kinds.includes("ci") ? "ci" : (kinds[0] ?? null);
  const made = panel("curves", "Insertion and deletion", "", kinds.length > 0 && selectField("Curve", kinds.map((kind) => [kind, CURVES[kind]]), chart.curve, (value) => ((chart.curve = value), drawCurves())));
  made.append(el("ul", { class: "keys", id: "curve-keys" }));
  return made;
}

function drawCurves() {
  const rows = chosenRows().filter((row) => row.curves[chart.curve]);
  const keys = byId("curve-keys");
  if (!rows.length) {
    byId("plot-curves").replaceChildren(el("p", { class: "empty" }, chart.curve ? "Choose an explainer that has this curve." : "No curves were recorded."));
    byId("caption-curves").textContent = "";
    keys.replaceChildren();
    return;
  }
  const lines = rows.flatMap((row) => {
    const [at, mean, low, high] = row.curves[chart.curve];
    return at.map((fraction, point) => ({ row, name: row.title, fraction, mean: mean[point], low: low[point], high: high[point] }));
  });
  const deletion = chart.curve.endsWith("d");
  byId("caption-curves").textContent =
    `Similarity while pixels are ${deletion ? "erased" : "revealed"}, most important first; ${deletion ? "falling early" : "rising early"} is better. ` +
    `Mean over pairs${rows.length > BANDS ? `; intervals are drawn for up to ${BANDS} explainers, and said for all` : " and interval"}. Dashed grey: controls.`;
  place("curves", `${CURVES[chart.curve]} curves of ${rows.map((row) => row.title).join(", ")}`, (width) => ({
    height: Math.max(230, Math.min(340, width * 0.6)),
    marginLeft: 44,
    x: { label: `fraction of pixels ${deletion ? "erased" : "revealed"} →`, domain: [0, 1], tickFormat: (each) => `${Math.round(each * 100)} %`, ticks: width < 400 ? 4 : 6 },
    y: { label: "↑ similarity", grid: true, nice: true },
    marks: [
      Plot.areaY(lines.filter((each) => each.low !== null && rows.length <= BANDS), { x: "fraction", y1: "low", y2: "high", z: "name", fill: (each) => look(each.row).color, fillOpacity: 0.14 }),
      ...rows.map((row) => {
        const { color, dash } = look(row);
        return Plot.line(lines.filter((each) => each.row === row), { x: "fraction", y: "mean", stroke: color, strokeWidth: 2, strokeDasharray: dash });
      }),
      Plot.tip(lines, Plot.pointer({ x: "fraction", y: "mean", fontSize: 12, title: (each) => `${each.name}\n${Math.round(each.fraction * 100)} % of pixels: ${number(each.mean)}${each.low === null ? "" : ` [${number(each.low)}, ${number(each.high)}]`}` })),
    ],
  }));
  keys.replaceChildren(
    ...rows.map((row) => {
      const { color, dash } = look(row);
      const line = d3.create("svg").attr("width", 26).attr("height", 8).attr("aria-hidden", "true");
      line.append("line").attr("x2", 26).attr("y1", 4).attr("y2", 4).attr("stroke", color).attr("stroke-width", 2.5).attr("stroke-dasharray", dash);
      return el("li", {}, line.node(), row.title);
    }),
  );
}

function agreementPanel() {
  return panel("agreement", "Do the metrics agree?", "Kendall's tau between the rankings of explainers, controls left out: 1 where two metrics rank alike, −1 where what one calls good the other calls bad.");
}

function drawAgreement() {
  const group = study.groups[choice.group];
  const made = byId("panel-agreement");
  made.hidden = !group.tau || group.metrics.length < 2;
  if (made.hidden) return;
  const heads = group.metrics.map((name) => metricOf[name].head);
  const cells = group.tau.flatMap((line, row) => line.map((tau, column) => ({ tau, row: heads[row], column: heads[column] })));
  const fill = ({ tau }) => (tau === null ? "var(--raised)" : `color-mix(in oklab, ${tau < 0 ? "var(--blue)" : "var(--red)"} ${Math.round(Math.abs(tau) * 88)}%, var(--ground))`);
  place("agreement", `Kendall's tau of ${heads.length} metrics over ${group.explainers} explainers`, (width) => {
    const side = Math.min(56, (width - 70) / heads.length);
    return {
      width: 70 + side * heads.length,
      height: 34 + side * heads.length,
      marginLeft: 66,
      marginTop: 30,
      marginBottom: 4,
      marginRight: 4,
      x: { label: null, domain: heads, axis: "top", tickSize: 0, tickRotate: side < 40 ? -35 : 0 },
      y: { label: null, domain: heads, tickSize: 0 },
      marks: [
        Plot.cell(cells, { x: "column", y: "row", fill, inset: 1, rx: 3 }),
        Plot.text(cells, { x: "column", y: "row", text: ({ tau }) => (tau === null ? "–" : (tau < 0 ? "−" : "") + Math.abs(tau).toFixed(side < 34 ? 1 : 2)), fill: ({ tau }) => (Math.abs(tau ?? 0) > 0.62 ? "#fff" : "var(--ink)"), fontSize: Math.min(12, side / 3.1) }),
      ],
    };
  });
}

function costPanel() {
  return panel("costs", "What it costs", "The metric chosen for the scores against seconds a pair. Hollow: controls.");
}

function drawCosts() {
  const metric = metricOf[chart.metric];
  const rows = rowsOf(choice.group).filter((row) => metric && row.values[metric.name]?.is && costOf(row, "seconds") > 0);
  byId("panel-costs").hidden = rows.length < 2;
  if (rows.length < 2) return;
  const data = rows.map((row) => ({ row, seconds: costOf(row, "seconds"), mean: row.values[metric.name].is[0] }));
  const middle = Math.sqrt(d3.min(data, (each) => each.seconds) * d3.max(data, (each) => each.seconds));
  place("costs", `${metric.head} against seconds a pair of ${rows.length} explainers`, (width) => ({
    height: Math.max(260, Math.min(420, width * 0.8)),
    marginLeft: 48,
    marginRight: 20,
    insetLeft: 16,
    insetRight: 16,
    insetTop: 10,
    insetBottom: 10,
    x: { type: "log", label: "seconds a pair →", grid: true, ticks: Math.max(2, Math.floor(width / 110)), tickFormat: (each) => String(Number(each.toPrecision(2))) },
    y: { label: `${metric.high ? "↑" : "↓"} ${metric.head}, ${metric.high ? "higher" : "lower"} is better`, grid: true, nice: true, reverse: !metric.high },
    marks: [
      Plot.dot(data, { x: "seconds", y: "mean", r: 5, fill: (each) => (each.row.control ? "none" : choice.rows.has(each.row) ? look(each.row).color : "var(--muted)"), fillOpacity: 0.85, stroke: (each) => (each.row.control ? "var(--control)" : "var(--ground)"), strokeWidth: 1.5 }),
      // Names stand to the side where there is room.
      ...["start", "end"].map((textAnchor) =>
        Plot.text(data.filter((each) => choice.rows.has(each.row) && (each.seconds > middle) === (textAnchor === "end")), { x: "seconds", y: "mean", text: (each) => each.row.title, textAnchor, dx: textAnchor === "end" ? -9 : 9, fontSize: 11, fill: "var(--ink)", stroke: "var(--ground)", strokeWidth: 3 }),
      ),
      Plot.tip(data, Plot.pointer({ x: "seconds", y: "mean", fontSize: 12, title: (each) => `${each.row.title}\n${metric.head} ${number(each.mean)}\n${duration(each.seconds)} a pair` })),
    ],
  }));
}

function sweepPanel() {
  const columns = sweepColumns();
  chart.sweep = columns[0]?.key ?? null;
  const made = panel(
    "sweep",
    "All at once",
    "One line for each row of the table; up is better on every axis of a metric. Touch a line to read it.",
    columns.length > 0 && selectField("Colour", columns.map((column) => [column.key, column.head]), chart.sweep, (value) => ((chart.sweep = value), drawSweep())),
  );
  made.classList.add("full");
  return made;
}

/** Options that differ, then metrics, then the cost. */
function sweepColumns() {
  const axes = axisColumns().map(({ key, place }) => ({ key: `axis-${place}`, head: key, text: true, read: (row) => axisOf(row, place) }));
  const metrics = study.metrics.map((metric) => ({ key: metric.name, head: `${metric.head} ${arrow(metric)}`, down: !metric.high, read: (row) => row.values[metric.name]?.is?.[0] ?? null }));
  const seconds = { key: "seconds", head: "seconds ↓", down: true, log: true, read: (row) => costOf(row, "seconds") };
  return [...axes, ...metrics, ...(study.rows.some((row) => costOf(row, "seconds") !== null) ? [seconds] : [])];
}

function drawSweep() {
  const columns = sweepColumns();
  const made = byId("panel-sweep");
  made.hidden = study.rows.length < 2 || columns.length < 2;
  if (made.hidden) return;
  for (const column of columns) {
    const values = study.rows.map(column.read).filter((each) => each !== null);
    const texts = column.text && values.some((each) => each !== "" && Number.isNaN(Number(each)));
    const shown = (each) => (column.text ? each : column.log ? duration(each) : number(each));
    if (texts) {
      const domain = [...new Set(values)];
      column.at = (each) => (domain.length > 1 ? domain.indexOf(each) / (domain.length - 1) : 0.5);
      column.ticks = domain.map((each) => [each, column.at(each)]);
    } else {
      const scale = (column.log && Math.min(...values) > 0 ? d3.scaleLog() : d3.scaleLinear()).domain(d3.extent(values, Number)).range(column.down ? [1, 0] : [0, 1]);
      column.at = (each) => (d3.extent(values, Number)[0] === d3.extent(values, Number)[1] ? 0.5 : scale(Number(each)));
      column.ticks = [...new Set(d3.extent(values, Number))].map((each) => [shown(each), column.at(each)]);
    }
  }
  const colour = columns.find((column) => column.key === chart.sweep) ?? columns[0];
  const paint = (row) => {
    const each = colour.read(row);
    if (row.control) return "var(--control)";
    if (each === null) return "var(--muted)";
    if (colour.ticks.length > 2 || colour.text) return `var(--c${Math.max(0, colour.ticks.findIndex(([text]) => text === each)) % 8})`;
    return `color-mix(in oklab, var(--c0) ${Math.round(100 * colour.at(each))}%, var(--c5))`;
  };
  const points = study.rows.flatMap((row) => columns.map((column) => ({ row, column: column.head, entry: column.read(row), height: column.read(row) === null ? NaN : column.at(column.read(row)), said: column })));
  const ticks = columns.flatMap((column) => column.ticks.map(([text, height]) => ({ column: column.head, text, height })));
  place("sweep", `Parallel coordinates of ${study.rows.length} rows over ${columns.map((column) => column.head).join(", ")}`, (width) => ({
    height: 320,
    marginTop: 44,
    marginBottom: 22,
    marginLeft: 58,
    marginRight: 40,
    x: { type: "point", padding: 0, domain: columns.map((column) => column.head), label: null, axis: "top", tickSize: 0, tickPadding: 18 },
    y: { domain: [0, 1], axis: null },
    marks: [
      Plot.ruleX(columns.map((column) => column.head), { stroke: "var(--line)" }),
      Plot.line(points, { x: "column", y: "height", z: (each) => study.rows.indexOf(each.row), stroke: (each) => paint(each.row), strokeWidth: 1.6, strokeOpacity: 0.75, curve: "bump-x" }),
      Plot.dot(points.filter((each) => !Number.isNaN(each.height)), { x: "column", y: "height", r: 2.4, fill: (each) => paint(each.row) }),
      ...[-9, 9].map((dy) =>
        Plot.text(ticks.filter((each) => each.height > 0.5 === dy < 0), { x: "column", y: "height", text: "text", dy, fontSize: 10.5, fill: "var(--muted)", stroke: "var(--ground)", strokeWidth: 3 }),
      ),
      Plot.tip(points.filter((each) => !Number.isNaN(each.height)), Plot.pointer({ x: "column", y: "height", fontSize: 12, title: (each) => `${each.row.title}${study.groups.length > 1 ? `\n${study.groups[each.row.group].name}` : ""}\n${each.column.replace(/ [↑↓]$/, "")}: ${each.said.text ? each.entry : each.said.log ? duration(each.entry) : number(each.entry)}` })),
    ],
  }), 72 * columns.length);
}

function drawFigureLinks() {
  if (!study.figures.length) return;
  const links = study.figures.map(([name, path]) => el("span", {}, name, " ", el("a", { href: path }, "PDF"), " ", el("a", { href: path.replace(/pdf$/, "png") }, "PNG")));
  byId("figure-links").append("For print, beside this page: ", ...links.flatMap((link, place) => (place ? [" · ", link] : [link])), ".");
}
