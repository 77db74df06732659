// What all parts of the page share: the study's data, elements, numbers, the choice of explainers.
"use strict";

const study = JSON.parse(document.getElementById("study").textContent);
const byId = (id) => document.getElementById(id);

/** An element: `el("p", {class: "note"}, "text", child)`. Attributes that are false or null are left out. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Three decimals, fewer for large numbers, a true minus sign. */
function number(value, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const decimals = size < 10 ? 3 : size < 100 ? 2 : 1;
  const text = size.toFixed(decimals);
  const sign = Number(text) === 0 ? "" : value < 0 ? "−" : signed ? "+" : "";
  return sign + text;
}

/** A value of a map: three significant digits, a power of ten where that is shorter. */
function value(number) {
  if (number === 0) return "0";
  const size = Math.abs(number);
  const text = size >= 0.001 && size < 10000 ? size.toPrecision(3) : size.toExponential(1);
  return (number < 0 ? "−" : "") + text;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = seconds / 60;
  return minutes < 90 ? `${minutes.toFixed(0)} min` : `${(minutes / 60).toFixed(1)} h`;
}

const count = (many, what) => `${many.toLocaleString("en")} ${what}${many === 1 ? "" : "s"}`;
const metricOf = Object.fromEntries(study.metrics.map((metric) => [metric.name, metric]));
const arrow = (metric) => (metric.high ? "↑" : "↓");
const intervalText = ([mean, low, high, pairs, method], level, signed = false) =>
  low === null
    ? `${number(mean, signed)}, ${count(pairs, "pair")}: too few for an interval`
    : `${number(mean, signed)}\n${Math.round(level * 100)} % interval [${number(low, signed)}, ${number(high, signed)}]\n` +
      `${count(pairs, "pair")}, ${method}`;

/** A labelled select; `options` are [value, text]. */
function selectField(label, options, chosen, change, id = `field-${(selectField.made += 1)}`) {
  const select = el("select", { id, onchange: (event) => change(event.target.value) });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === chosen }, text));
  return el("div", { class: "field" }, el("label", { for: id }, label), select);
}
selectField.made = 0;

function checkField(label, checked, change) {
  return el("label", { class: "check" }, el("input", { type: "checkbox", checked, onchange: (event) => change(event.target.checked) }), label);
}

/** Which group, and which of its explainers: shared by charts and gallery. */
const choice = {
  group: 0,
  rows: new Set(),
  listeners: [],
  pick(group) {
    this.group = group;
    const rows = rowsOf(group);
    // The best of each family, so that what is shown first differs.
    const metric = study.metrics.find((each) => each.name === "ci") ?? study.metrics[0];
    const score = (row) => (metric?.high ? 1 : -1) * (row.values[metric?.name]?.is?.[0] ?? -Infinity);
    const best = new Map();
    for (const row of rows.filter((each) => !each.control)) {
      const rival = best.get(row.family || row.label);
      if (!rival || (metric && score(row) > score(rival))) best.set(row.family || row.label, row);
    }
    const explainers = [...best.values()].slice(0, 3);
    const matched = rows.filter((row) => row.control && /matched/i.test(row.title)).slice(0, 1);
    const controls = matched.length ? matched : rows.filter((row) => row.control).slice(0, 1);
    this.rows = new Set([...explainers, ...controls]);
  },
  toggle(row) {
    if (!this.rows.delete(row)) this.rows.add(row);
    this.changed();
  },
  changed() {
    for (const listener of this.listeners) listener();
  },
};
const rowsOf = (group) => study.rows.filter((row) => row.group === group).sort((a, b) => a.order - b.order);
const chosenRows = () => rowsOf(choice.group).filter((row) => choice.rows.has(row));

/** Colour and dash of a row among those that are chosen; controls are grey. */
function look(row) {
  if (row.control) {
    const place = chosenRows().filter((other) => other.control).indexOf(row);
    return { color: "var(--control)", dash: ["5 4", "1.5 3", "8 3 2 3", "2 2"][Math.max(0, place) % 4] };
  }
  const place = Math.max(0, chosenRows().filter((other) => !other.control).indexOf(row));
  return { color: `var(--c${place % 8})`, dash: place < 8 ? null : "6 3" };
}

/** Buttons that choose explainers; each call makes a list of its own, all kept in step. */
function explainerChips(label, open) {
  const list = el("ul", { class: "chips" });
  const summary = el("summary");
  const draw = () => {
    summary.textContent = `${label}: ${chosenRows().length} of ${rowsOf(choice.group).length}`;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.row : null;
    list.replaceChildren(
      ...rowsOf(choice.group).map((row) =>
        el(
          "li",
          {},
          el(
            "button",
            {
              type: "button",
              "aria-pressed": String(choice.rows.has(row)),
              "data-row": row.label,
              style: `--swatch: ${look(row).color}`,
              class: row.control ? "control-name" : null,
              onclick: () => choice.toggle(row),
            },
            el("span", { class: "swatch", "aria-hidden": "true" }),
            row.title,
          ),
        ),
      ),
    );
    if (focused !== null) [...list.querySelectorAll("button")].find((button) => button.dataset.row === focused)?.focus();
  };
  choice.listeners.push(draw);
  draw();
  return el("details", { class: "chooser", open }, summary, list);
}

/** One floating note for whatever has `data-tip`. */
function startTips() {
  const tip = byId("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  };
  const hide = () => {
    tip.hidden = true;
  };
  document.addEventListener("pointerover", (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) show(target);
    else hide();
  });
  document.addEventListener("focusin", (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) show(target);
    else hide();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true });
}

function startTheme() {
  const select = byId("theme");
  const root = document.documentElement;
  // A browser may keep no storage for pages from disk.
  const stored = (() => {
    try {
      return localStorage.getItem("twinsight-theme");
    } catch {
      return null;
    }
  })();
  root.dataset.theme = select.value = stored ?? "auto";
  select.addEventListener("change", () => {
    root.dataset.theme = select.value;
    try {
      localStorage.setItem("twinsight-theme", select.value);
    } catch {
      // it then holds for this visit
    }
  });
}
