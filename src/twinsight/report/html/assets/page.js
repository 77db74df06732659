// Head, issues and setup, and the start of everything.
"use strict";

function drawHead() {
  const { about, cells, rows, scenes, groups, name } = study;
  byId("title").textContent = name;
  const names = groups.map((group) => group.name);
  const few = names.slice(0, 3).join("; ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
  byId("lead").textContent = few ? `Why two views are found similar, explained and measured: ${few}.` : "Nothing has been explained yet.";
  const done = cells.filter((cell) => cell.state === "done").length;
  const pairs = scenes.length ? Math.max(...scenes.map((scene) => scene.pairs.length)) : 0;
  const explainers = new Set(rows.filter((row) => !row.control).map((row) => row.title)).size;
  const controls = new Set(rows.filter((row) => row.control).map((row) => row.title)).size;
  const facts = [
    [done === cells.length ? String(done) : `${done} of ${cells.length}`, "cells done"],
    [String(explainers), explainers === 1 ? "explainer" : "explainers"],
    [String(controls), controls === 1 ? "control" : "controls"],
    [pairs.toLocaleString("en"), pairs === 1 ? "pair" : "pairs"],
    [duration(about.seconds), "of computing"],
  ];
  byId("counts").append(...facts.map(([figure, what]) => el("li", {}, el("b", {}, figure), el("span", {}, what))));
}

function drawIssues() {
  const { cells } = study;
  const body = byId("issues-body");
  const issues = [];
  const issue = (kind, title, about, items) => {
    if (!items.length) return;
    const list = el("ul", {}, items.map((item) => el("li", {}, item)));
    issues.push(el("div", { class: `issue ${kind}` }, el("h3", {}, title), about && el("p", { class: "note" }, about), items.length > 12 ? el("details", {}, el("summary", {}, `Show all ${items.length}`), list) : list));
  };
  const named = (cell) => [cell.title, ...cell.axes.filter((axis) => axis && axis !== cell.label)].join(", ");
  const of = (state) => cells.filter((cell) => cell.state === state);
  issue("bad", `${count(of("failed").length, "cell")} failed`, null, of("failed").map((cell) => [el("b", {}, named(cell)), `: ${cell.error ?? "no reason was recorded"}`]));
  issue("warn", `${count(of("interrupted").length, "cell")} interrupted`, "They go on at the first missing pair when run again.", of("interrupted").map((cell) => [el("b", {}, named(cell)), cell.error ? `: ${cell.error}` : ""]));
  issue("warn", `${count(of("skipped").length, "cell")} skipped`, null, of("skipped").map((cell) => [el("b", {}, named(cell)), `: ${cell.error ?? "no reason was recorded"}`]));
  const waiting = [...of("running"), ...of("planned")];
  issue("warn", `${count(waiting.length, "cell")} not finished`, null, waiting.map((cell) => [el("b", {}, named(cell)), `: ${cell.state}`]));
  issue("warn", `${count(study.skippedPairs.length, "pair")} could not be read`, null, study.skippedPairs.map(([scene, pair, reason]) => [el("b", {}, pair), `: ${reason}${study.scenes.length > 1 ? ` (${scene})` : ""}`]));
  const flaws = cells.flatMap((cell, place) => cell.flaws.map(([pair, view, reason]) => [el("button", { type: "button", class: "link", onclick: () => goTo(place, pair) }, `${named(cell)}, ${pair}, view ${view}`), `: ${reason}`]));
  issue("warn", `${count(flaws.length, "degenerate map")}`, "Constant or not finite: their ranking of pixels is chance.", flaws);
  const weak = study.rows.filter((row) => row.nonpositive > 0).map((row) => `${row.title}: ${count(row.nonpositive, "pair")}`);
  issue("warn", "Similarities of zero or less", "Drops relative to such a similarity mean little.", weak);
  const reasons = new Map();
  for (const cell of cells) {
    for (const [metric, reason] of Object.entries(cell.notApplicable)) {
      const key = `${cell.title}: ${reason}`;
      reasons.set(key, [...(reasons.get(key) ?? []), metricOf[metric]?.head ?? metric]);
    }
  }
  byId("issue-count").textContent = issues.length ? String(issues.length) : "";
  issue("", "Metrics left out", null, [...reasons].map(([what, metrics]) => `${what} (${[...new Set(metrics)].join(", ")})`));
  if (!byId("issue-count").textContent) issues.unshift(el("p", {}, "No cell failed or was skipped, every photo could be read, and no map was degenerate."));
  body.append(...issues);
}

function drawSetup() {
  const { about, cells, varying } = study;
  const facts = [
    ["Asked for", about.commands.length ? about.commands.map((command) => el("div", {}, el("code", {}, `python run.py -m ${command}`))) : null],
    ["Planned", about.created],
    ["Commit", about.commit && el("code", {}, about.commit)],
    ["Versions", Object.entries(about.versions).map(([name, version]) => `${name} ${version}`).join(", ")],
    ["Hardware", about.hardware.join("; ")],
    ["Computing", `${duration(about.seconds)}${about.forwards ? `, ${about.forwards.toLocaleString("en")} image forwards` : ""}`],
  ].filter(([, fact]) => fact);
  byId("setup-body").append(el("dl", { class: "facts" }, facts.flatMap(([name, fact]) => [el("dt", {}, name), el("dd", {}, fact)])));
  const heads = ["Cell", ...varying.filter((key) => !/^explainers?$/.test(key)), "State", "Time", "Options"];
  const kept = varying.map((key, place) => [key, place]).filter(([key]) => !/^explainers?$/.test(key));
  const lines = cells.map((cell) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", class: "text" }, cell.title, el("div", { class: "note" }, el("code", {}, cell.name))),
      kept.map(([, place]) => el("td", { class: "text" }, cell.axes[place] || "–")),
      el("td", { class: "text" }, cell.state),
      el("td", {}, cell.seconds ? duration(cell.seconds) : "–"),
      el("td", { class: "text", style: "white-space: normal; min-width: 20rem" }, cell.options || "–"),
    ),
  );
  byId("setup-body").append(
    el("h3", {}, "Cells and how they differ"),
    el("div", { class: "scroll", role: "region", "aria-label": "Cells and how they differ", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", class: "text", style: "padding: 0.55rem 0.7rem" }, head)))), el("tbody", {}, lines))),
    el("h3", { style: "margin-top: 1.6rem" }, "What decides each result"),
    el("p", { class: "note" }, "The identity of a cell, whose hash is its name: resolved options, digests of weights and photos, the seed."),
    ...cells.filter((cell) => cell.identity).map((cell) => el("details", {}, el("summary", {}, cell.title, " ", el("code", {}, cell.name)), el("pre", {}, cell.identity))),
  );
  byId("foot").textContent = `Written ${about.written} from the records of ${count(cells.length, "cell")}. Charts by Observable Plot and D3 (ISC licence), shipped inside this file.`;
}

startTheme();
startTips();
if (study.groups.length) choice.pick(0);
drawHead();
startTable();
startCharts();
startGallery();
drawIssues();
drawSetup();
document.documentElement.dataset.ready = "true";
