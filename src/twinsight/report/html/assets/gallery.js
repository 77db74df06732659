// The gallery: maps over the views of one pair, for the explainers that are chosen.
"use strict";

const gallery = { scene: 0, pair: 0, opacity: 0.75, scale: "pair", full: false, cards: [], run: 0 };
const INLINE_STEPS = 254;
const unpackedMaps = new Map();
const largePairs = new Map();

const sceneRows = () => rowsOf(study.rows.find((row) => row.cells.some((cell) => study.scenes[gallery.scene].cells.includes(cell)))?.group ?? 0);
const cellIn = (row) => row.cells.find((cell) => study.scenes[gallery.scene].cells.includes(cell));

function startGallery() {
  const body = byId("gallery-body");
  const images = study.cells.filter((cell) => cell.images);
  if (images.length) {
    const folders = images.map((cell) => el("li", {}, cell.title, ": ", el("code", {}, `cells/${cell.name}/pictures`)));
    body.append(el("details", {}, el("summary", {}, `${count(images.length, "cell")} with images instead of maps`), el("ul", {}, folders)));
  }
  if (!study.scenes.length) {
    body.append(el("p", { class: "empty" }, "No cell has maps yet."));
    return;
  }
  const scenes = study.scenes.map((scene, place) => [String(place), scene.name]);
  const radio = (value, text) => el("label", { class: "check" }, el("input", { type: "radio", name: "scale", value, checked: gallery.scale === value, onchange: () => ((gallery.scale = value), paintCards()) }), text);
  const slider = el("input", { type: "range", id: "opacity", min: 0, max: 100, value: 75, oninput: (event) => setOpacity(event.target.value / 100) });
  body.append(
    el(
      "div",
      { class: "controls" },
      study.scenes.length > 1 && selectField("Model, data, seed", scenes, "0", (scene) => showScene(Number(scene)), "scene"),
      explainerChips("Explainers", innerWidth > 700 && study.rows.length < 12),
    ),
    el(
      "div",
      { class: "controls" },
      el("div", { class: "field" }, el("span", {}, el("label", { for: "opacity" }, "Opacity of the maps"), " ", el("output", { for: "opacity", id: "opacity-value" }, "75 %")), slider),
      el("fieldset", {}, el("legend", {}, "Colour scale"), el("span", { class: "segments" }, radio("own", "of each map"), radio("pair", "of each explainer"), radio("shared", "shared by all"))),
      study.files && el("label", { class: "check" }, el("input", { type: "checkbox", id: "full", onchange: (event) => ((gallery.full = event.target.checked), showPair(gallery.pair)) }), "Full resolution"),
      el("span", { class: "note", role: "status", id: "gallery-status" }),
    ),
    el("div", { class: "strip", id: "strip", role: "group", "aria-label": "Pairs" }),
    el(
      "div",
      { class: "pairhead" },
      el("span", { class: "steps" }, el("button", { type: "button", id: "previous", onclick: () => step(-1) }, "← Previous"), el("button", { type: "button", id: "next", onclick: () => step(1) }, "Next →")),
      el("h3", { id: "pair-title", "aria-live": "polite" }),
      el("span", { class: "note push" }, el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " within the gallery turn pages"),
    ),
    el("div", { class: "cards", id: "cards" }),
    el("p", { class: "note", id: "views-note" }),
  );
  byId("gallery").addEventListener("keydown", turnPages);
  choice.listeners.push(followChoice);
  showScene(0);
}

function turnPages(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select, textarea")) return;
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way) return;
  event.preventDefault();
  step(way);
}

function step(way) {
  const pairs = study.scenes[gallery.scene].pairs.length;
  showPair((gallery.pair + way + pairs) % pairs);
}

/** Another group was chosen elsewhere: show its first scene. */
function followChoice() {
  const scene = study.scenes.findIndex((each) => each.cells.some((cell) => rowsOf(choice.group).some((row) => row.cells.includes(cell))));
  const same = rowsOf(choice.group).some((row) => cellIn(row) !== undefined);
  if (!same && scene >= 0) showScene(scene);
  else showPair(gallery.pair);
}

function showScene(scene) {
  gallery.scene = scene;
  const group = sceneRows()[0]?.group;
  if (group !== undefined && group !== choice.group) {
    choice.pick(group);
    choice.changed();
  }
  if (byId("scene")) byId("scene").value = String(scene);
  drawStrip();
  const { missing } = study.scenes[scene];
  byId("views-note").textContent = missing ? `Maps are drawn on grey: ${missing}.` : "";
  showPair(Math.min(gallery.pair, study.scenes[scene].pairs.length - 1));
}

const viewsOf = (pair) => byId(`views-${gallery.scene}-${pair}`)?.textContent.split("|").map((jpeg) => `data:image/jpeg;base64,${jpeg}`) ?? null;

function drawStrip() {
  // Photos are decoded when they come into sight: hundreds at once would hold up the page.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      const views = viewsOf(Number(target.dataset.pair));
      if (views) target.append(el("img", { src: views[0], alt: "" }));
      else target.append(String(Number(target.dataset.pair) + 1));
    }
  });
  byId("strip").replaceChildren(
    ...study.scenes[gallery.scene].pairs.map(([, name], pair) => {
      const button = el("button", { type: "button", "data-pair": pair, "aria-label": `Pair ${pair + 1}: ${name}`, onclick: () => showPair(pair) });
      seen.observe(button);
      return button;
    }),
  );
}

async function showPair(pair) {
  gallery.pair = pair;
  const run = ++gallery.run;
  const scene = study.scenes[gallery.scene];
  if (!scene.pairs[pair]) return;
  const [, name] = scene.pairs[pair];
  const rows = sceneRows().filter((row) => choice.rows.has(row) && cellIn(row) !== undefined);
  const any = scene.cells.find((cell) => study.cells[cell].scores.score?.[pair] !== undefined);
  const score = any === undefined ? null : study.cells[any].scores.score[pair];
  byId("pair-title").textContent = `${pair + 1} of ${scene.pairs.length}: ${name}, similarity ${number(score)}`;
  for (const button of byId("strip").children) {
    const current = Number(button.dataset.pair) === pair;
    if (current) {
      button.setAttribute("aria-current", "true");
      const strip = byId("strip");
      const beyond = button.offsetLeft - strip.offsetLeft;
      if (beyond < strip.scrollLeft || beyond + 70 > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = beyond - strip.clientWidth / 2;
    } else button.removeAttribute("aria-current");
  }
  let large = null;
  if (gallery.full) {
    large = await loadLarge(gallery.scene, pair);
    byId("gallery-status").textContent = large ? "" : `The full maps are not beside this page: copy the folder ${study.files} along with it.`;
  } else byId("gallery-status").textContent = "";
  const maps = await Promise.all(rows.map((row) => mapsOf(cellIn(row), pair, large)));
  if (run !== gallery.run) return; // turned on meanwhile
  const views = large?.views?.map((jpeg) => `data:image/jpeg;base64,${jpeg}`) ?? viewsOf(pair);
  gallery.cards = rows.map((row, place) => makeCard(row, maps[place], views, pair));
  byId("cards").replaceChildren(...(gallery.cards.length ? gallery.cards.map((card) => card.figure) : [el("p", { class: "empty" }, "Choose an explainer to see its maps.")]));
  setOpacity(gallery.opacity);
  paintCards();
}

/** Inflate what Python's zlib packed. */
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Both maps of a cell for one pair, as numbers; null where there is none. */
async function mapsOf(cell, pair, large) {
  const facts = study.cells[cell].maps[pair] ?? [null, null];
  const fine = large?.maps[cell];
  if (!unpackedMaps.has(cell)) unpackedMaps.set(cell, inflate(byId(`maps-${cell}`).textContent));
  const pixels = await unpackedMaps.get(cell);
  const sizes = study.cells[cell].maps.slice(0, pair).flat().filter(Boolean);
  let start = sizes.reduce((sum, [height, width]) => sum + height * width, 0);
  return Promise.all(
    facts.map(async (fact, view) => {
      if (!fact) return null;
      const [height, width, low, high, signed, from, to, flaw] = fact;
      const own = pixels.subarray(start, start + height * width);
      start += height * width;
      const about = { signed: Boolean(signed), limits: [from, to], flaw };
      if (!fine?.[view]) return { ...about, height, width, values: numbers(own, low, high) };
      const [tall, wide, least, most, packed] = fine[view];
      return { ...about, height: tall, width: wide, values: numbers(await inflate(packed), least, most) };
    }),
  );
}

function numbers(pixels, low, high) {
  return Float32Array.from(pixels, (pixel) => (pixel === 0 ? NaN : low + ((pixel - 1) / INLINE_STEPS) * (high - low)));
}

/** A pair's views and maps at full size, from a script beside the page: the only thing a page from disk may load. */
function loadLarge(scene, pair) {
  const key = `${scene}-${pair}`;
  if (!largePairs.has(key)) {
    largePairs.set(
      key,
      new Promise((resolve) => {
        const script = el("script", { src: `${study.files}/maps/pair-${key}.js` });
        script.addEventListener("load", () => {
          resolve(twinsightLarge.found[key] ?? null);
          delete twinsightLarge.found[key];
        });
        script.addEventListener("error", () => resolve(null));
        document.head.append(script);
      }),
    );
  }
  return largePairs.get(key);
}
function twinsightLarge(scene, pair, content) {
  twinsightLarge.found[`${scene}-${pair}`] = content;
}
twinsightLarge.found = {};

function makeCard(row, maps, views, pair) {
  const cell = study.cells[cellIn(row)];
  const read = el("output", { class: "read" });
  const ramp = el("div", { class: "ramp" });
  const sides = maps.map((map, side) => {
    const canvas = map && el("canvas", { width: 256, height: 256 });
    const said = !map ? "no map of this view" : map.flaw ? `degenerate map: ${map.flaw}` : whereStrongest(map);
    const box = el(
      "div",
      { class: "view", role: "img", "aria-label": `${row.title}, view ${side + 1}: ${said}` },
      views && el("img", { src: views[side], alt: "" }),
      canvas,
      !map && el("span", { class: "none" }, "one map: view 1"),
      map?.flaw && el("span", { class: "none" }, `degenerate map\n${map.flaw}`),
    );
    box.addEventListener("pointermove", (event) => {
      const area = box.getBoundingClientRect();
      readAll(side, (event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
    });
    box.addEventListener("pointerleave", () => readAll(side, null));
    return { box, canvas, map };
  });
  const scores = Object.entries(cell.scores).filter(([name, values]) => name !== "score" && values[pair] !== null && metricOf[name]);
  const figure = el(
    "figure",
    { class: "card" },
    el("div", { class: "twins" }, sides.map((side) => side.box)),
    el(
      "figcaption",
      {},
      read,
      el("span", { class: row.control ? "name control-name" : "name" }, row.title),
      row.control && el("span", { class: "tag" }, "control"),
      ramp,
      el("ul", { class: "scores" }, scores.map(([name, values]) => el("li", {}, metricOf[name].head, " ", el("b", {}, number(values[pair]))))),
    ),
  );
  const [signed, low, high] = cell.scales[pair] ?? [];
  return { figure, sides, read, ramp, range: high === undefined ? null : { signed: Boolean(signed), low, high } };
}

/** "strongest, 0.12, at the upper left": for those who do not see the map. */
function whereStrongest({ values, height, width }) {
  let best = -1;
  values.forEach((each, place) => {
    if (!Number.isNaN(each) && (best < 0 || each > values[best])) best = place;
  });
  if (best < 0) return "nothing finite";
  const row = ["upper", "middle", "lower"][Math.min(2, Math.floor((3 * Math.floor(best / width)) / height))];
  const column = ["left", "centre", "right"][Math.min(2, Math.floor((3 * (best % width)) / width))];
  return `strongest, ${value(values[best])}, at the ${row} ${column}`;
}

function setOpacity(opacity) {
  gallery.opacity = opacity;
  byId("opacity-value").textContent = `${Math.round(opacity * 100)} %`;
  // The photo gives up its own colours as the map's appear.
  byId("cards").style.setProperty("--saturation", String(1 - 0.8 * Math.min(1, opacity / 0.5)));
  for (const { sides } of gallery.cards) for (const { canvas } of sides) if (canvas) canvas.style.opacity = String(opacity);
}

/** One range for what shares a scale: of one map, or of all cards; that of both maps of an explainer is worked out before. */
function commonRange(maps) {
  const drawable = maps.filter((map) => map && !map.flaw);
  if (!drawable.length) return null;
  const signed = drawable.some((map) => map.signed);
  const high = Math.max(...drawable.map((map) => Math.max(Math.abs(map.limits[1]), signed ? Math.abs(map.limits[0]) : 0)));
  return { signed, low: signed ? -high : Math.min(...drawable.map((map) => map.limits[0])), high };
}

function paintCards() {
  const everything = gallery.cards.flatMap((card) => card.sides.map((side) => side.map));
  for (const card of gallery.cards) {
    const own = card.sides.map((side) => side.map);
    const ranges = own.map((map) => (gallery.scale === "pair" ? card.range : commonRange(gallery.scale === "own" ? [map] : everything)));
    card.sides.forEach(({ canvas, map }, side) => {
      if (canvas) paint(canvas, map, ranges[side]);
    });
    drawRamp(card.ramp, gallery.scale === "own" ? ranges : ranges.slice(0, 1));
  }
}

function drawRamp(ramp, ranges) {
  ramp.replaceChildren(
    ...ranges.filter(Boolean).flatMap(({ signed, low, high }) => {
      const table = study.colours[signed ? "signed" : "positive"];
      const stops = d3.range(0, 256, 17).map((place) => `rgba(${table.slice(4 * place, 4 * place + 3).join(",")},${((table[4 * place + 3] / 255) * 0.75).toFixed(2)})`);
      return [el("span", {}, value(low)), el("i", { style: `background: linear-gradient(to right, ${stops.join(",")}), #808080` }), el("span", {}, value(high))];
    }),
  );
}

/** Values are interpolated, then coloured: bilinear, cells tile the view, as in figures. */
function paint(canvas, map, range) {
  const context = canvas.getContext("2d");
  const { width: wide, height: tall } = canvas;
  const image = context.createImageData(wide, tall);
  if (range && !map.flaw) {
    const table = study.colours[range.signed ? "signed" : "positive"];
    const columns = d3.range(wide).map((place) => between(place, wide, map.width));
    for (let y = 0; y < tall; y += 1) {
      const [top, bottom, down] = between(y, tall, map.height);
      for (let x = 0; x < wide; x += 1) {
        const [left, right, over] = columns[x];
        const above = map.values[top * map.width + left] * (1 - over) + map.values[top * map.width + right] * over;
        const below = map.values[bottom * map.width + left] * (1 - over) + map.values[bottom * map.width + right] * over;
        const share = (above * (1 - down) + below * down - range.low) / (range.high - range.low);
        if (Number.isNaN(share)) continue;
        const colour = 4 * Math.round(255 * Math.min(1, Math.max(0, share)));
        const pixel = 4 * (y * wide + x);
        for (let part = 0; part < 4; part += 1) image.data[pixel + part] = table[colour + part];
      }
    }
  }
  context.putImageData(image, 0, 0);
}

/** The two cells around a place, and how far it is from the first to the second. */
function between(place, places, cells) {
  const at = Math.min(cells - 1, Math.max(0, ((place + 0.5) * cells) / places - 0.5));
  const first = Math.floor(at);
  return [first, Math.min(cells - 1, first + 1), at - first];
}

/** The value under the pointer, in every card, with a ring where it was read. */
function readAll(side, across, down) {
  for (const { sides, read } of gallery.cards) {
    const { box, map } = sides[side];
    box.querySelector(".mark")?.remove();
    if (across === null || !map) {
      read.textContent = "";
      continue;
    }
    const row = Math.min(map.height - 1, Math.max(0, Math.floor(down * map.height)));
    const column = Math.min(map.width - 1, Math.max(0, Math.floor(across * map.width)));
    const found = map.values[row * map.width + column];
    read.textContent = Number.isNaN(found) ? "not finite" : value(found);
    box.append(el("span", { class: "mark", style: `left: ${100 * across}%; top: ${100 * down}%` }));
  }
}

/** From an issue to its picture. */
function goTo(cell, pairName) {
  const row = study.rows.find((each) => each.cells.includes(cell));
  const { scene } = study.cells[cell];
  if (!row || scene === null) return;
  if (row.group !== choice.group) choice.pick(row.group);
  choice.rows.add(row);
  gallery.pair = study.scenes[scene].pairs.findIndex(([, name]) => name === pairName);
  gallery.scene = scene;
  choice.changed();
  showScene(scene);
  byId("gallery").scrollIntoView();
  byId("next").focus({ preventScroll: true });
}
