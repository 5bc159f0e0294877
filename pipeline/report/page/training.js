"use strict";
// Alarms, curves over the epochs, and where the time went.

const CHART = { width: 460, height: 190, left: 46, right: 10, top: 10, bottom: 24 };
const PANELS = [
  ["Losses", (key) => key.startsWith("loss")],
  ["Scores", (key) => ["acc", "nmi", "ari", "label_free"].includes(key)],
  ["Health", (key) => ["label_churn", "size_entropy", "feature_spread", "silhouette", "view_agreement"].includes(key)],
  ["Sizes of clusters", (key) => ["cluster_smallest", "cluster_largest", "clusters_empty"].includes(key)],
];

const SETTLED = 0.02; // share of the images that change cluster, up to which a run has converged
const UNSETTLED = 0.1; // from which on it has not
const JUDGED = 3; // E-steps after the warm-up; a short run ends at rest because its learning rate does
const MEANINGS = {
  loss: "falls as the run learns, and rises when the warm-up ends, because parts are added; it does not rank runs",
  acc: "share of images in the cluster of their class; higher is better",
  nmi: "information that clusters and classes share; higher is better",
  ari: "pairs of images on which clusters and classes agree, corrected for chance; higher is better",
  label_free: "quality without any label; higher is better",
  label_churn: "share of images that changed cluster since the previous E-step; falls towards 0",
  size_entropy: "1 when all clusters have the same size; a fall means that clusters collapse",
  feature_spread: "how far the features lie apart; a fall towards 0 means collapse",
  silhouette: "how far clusters lie apart; higher is better",
  view_agreement: "agreement of the clusters of two views of each image, corrected for chance; higher is better",
  cluster_smallest: "images of the smallest cluster; should not approach 0",
  cluster_largest: "images of the largest cluster; should not absorb the others",
  clusters_empty: "clusters without an image; should be 0",
};
const meaningOf = (key) => MEANINGS[key] || (key.startsWith("loss") ? "a part of the loss; falls as the run learns" : "");

// Whether the clustering had come to rest: [class, sentence].
function verdict() {
  const judged = atlas.history.filter((m) => typeof m.label_churn === "number" && m.epoch > atlas.warmup);
  if (judged.length < JUDGED) return ["alarm", `Too short to judge: fewer than ${JUDGED} E-steps follow the warm-up.`];
  const churn = judged[judged.length - 1].label_churn;
  const changed = `${percent(churn)} of the images changed cluster in the last E-step.`;
  if (churn > UNSETTLED) return ["alarm", `Not converged: ${changed} Train longer, or look at the alarms.`];
  return churn > SETTLED ? ["", `Nearly converged: ${changed}`] : ["fine", `Converged: ${changed}`];
}

function startTraining() {
  const keys = Array.from(new Set(atlas.history.flatMap(Object.keys)));
  const panels = PANELS.map(([title, belongs]) => curvePanel(title, keys.filter(belongs))).filter(Boolean);
  byId("view-training").replaceChildren(
    make("p", { id: "verdict", class: verdict()[0] }, verdict()[1]),
    make("div", { class: "bar" }, make("h2", {}, "Alarms")),
    alarmList(),
    make("div", { class: "bar" }, make("h2", {}, "Curves")),
    panels.length ? make("div", { class: "panels" }, ...panels) : make("p", { class: "empty" }, "No epoch was recorded."),
    make("div", { class: "bar" }, make("h2", {}, "Where the time went")),
    ledger(keys),
    valuesTable(keys),
  );
}

function alarmList() {
  if (!atlas.alarms.length) return make("p", { class: verdict()[0] === "fine" ? "fine" : "" }, "No alarm was raised.");
  const items = atlas.alarms.map(({ epoch, kind, text }) => make("li", {}, make("strong", {}, `epoch ${epoch} · ${kind}`), ` ${text}`));
  return make("ul", { class: "alarms" }, ...items);
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function curvePanel(title, keys) {
  const series = keys
    .map((key) => ({ key, points: atlas.history.filter((m) => typeof m[key] === "number").map((m) => [m.epoch, m[key]]) }))
    .filter(({ points }) => points.length);
  if (!series.length) return null;
  const values = series.flatMap(({ points }) => points.map((point) => point[1]));
  const range = niceRange(Math.min(...values), Math.max(...values));
  const epochs = [atlas.history[0].epoch, atlas.history[atlas.history.length - 1].epoch];
  const x = (epoch) => CHART.left + ((epoch - epochs[0]) / (epochs[1] - epochs[0] || 1)) * (CHART.width - CHART.left - CHART.right);
  const y = (value) => CHART.top + ((range.high - value) / (range.high - range.low)) * (CHART.height - CHART.top - CHART.bottom);
  const svg = draw("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img", "aria-label": `${title} over the epochs; the table at the end has the values` });
  drawAxes(svg, range, epochs, x, y);
  if (atlas.warmup > epochs[0]) drawWarmup(svg, x(epochs[0]), x(Math.min(atlas.warmup, epochs[1])));
  const colours = series.map((_, place) => categoryColour(place * 3));
  series.forEach(({ points }, place) => {
    const path = points.map(([epoch, value], i) => `${i ? "L" : "M"}${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join("");
    svg.append(draw("path", { d: path, class: "curve", stroke: colours[place] }));
    if (points.length === 1) svg.append(draw("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3, fill: colours[place] }));
  });
  for (const { epoch } of atlas.alarms) svg.append(draw("line", { x1: x(epoch), x2: x(epoch), y1: CHART.top, y2: CHART.height - CHART.bottom, class: "alarm-line" }));
  return readablePanel(title, svg, series, colours, epochs, x);
}

function drawWarmup(svg, left, right) {
  svg.append(draw("rect", { x: left, y: CHART.top, width: right - left, height: CHART.height - CHART.top - CHART.bottom, class: "warmup" }));
  svg.append(draw("text", { x: left + 4, y: CHART.top + 12 }, "warm-up"));
}

function niceRange(low, high) {
  const span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / 3));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => span / n <= 4);
  const bottom = Math.floor(low / step + 1e-9) * step;
  return { low: bottom, high: Math.max(Math.ceil(high / step - 1e-9) * step, bottom + step), step }; // a level line has height
}

function drawAxes(svg, range, epochs, x, y) {
  for (let value = range.low; value <= range.high + range.step / 2; value += range.step) {
    svg.append(draw("line", { x1: CHART.left, x2: CHART.width - CHART.right, y1: y(value), y2: y(value), class: "rule" }));
    svg.append(draw("text", { x: CHART.left - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(4))));
  }
  const step = Math.max(1, Math.ceil((epochs[1] - epochs[0]) / 6));
  for (let epoch = epochs[0]; epoch <= epochs[1]; epoch += step) svg.append(draw("text", { x: x(epoch), y: CHART.height - 6, "text-anchor": "middle" }, epoch));
}

// A panel whose legend shows the values of the epoch under the pointer; of the last one without a pointer.
function readablePanel(title, svg, series, colours, epochs, x) {
  const line = draw("line", { y1: CHART.top, y2: CHART.height - CHART.bottom, class: "cursor", visibility: "hidden" });
  svg.append(line);
  const figures = series.map(() => make("b", {}));
  const epochText = make("span", { class: "hint" });
  const read = (epoch) => {
    epochText.textContent = `epoch ${epoch}`;
    series.forEach(({ points }, place) => {
      const point = points.find(([at]) => at === epoch);
      figures[place].textContent = point ? Number(point[1].toPrecision(4)) : "";
    });
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * CHART.width;
    const epoch = atlas.history.reduce((best, m) => (Math.abs(x(m.epoch) - at) < Math.abs(x(best) - at) ? m.epoch : best), epochs[0]);
    line.setAttribute("x1", x(epoch));
    line.setAttribute("x2", x(epoch));
    line.setAttribute("visibility", "visible");
    read(epoch);
  });
  svg.addEventListener("pointerleave", () => {
    line.setAttribute("visibility", "hidden");
    read(epochs[1]);
  });
  read(epochs[1]);
  const legend = series.map(({ key }, place) => make("span", {}, make("i", { class: "swatch", style: `background:${colours[place]}` }), key, " ", figures[place]));
  return make("figure", { class: "panel" }, make("figcaption", {}, make("strong", {}, title), " ", epochText), svg, make("div", { class: "legend" }, ...legend), make("ul", { class: "meanings" }, ...series.map(({ key }) => meaningOf(key) && make("li", {}, `${key}: ${meaningOf(key)}`))));
}

function ledger(keys) {
  const entries = keys.filter((key) => key.startsWith("seconds_") && key !== "seconds_epoch");
  const sum = (key) => atlas.history.reduce((total, metrics) => total + (metrics[key] || 0), 0);
  const totals = entries.map((key) => [key.slice("seconds_".length).replaceAll("_", " "), sum(key)]);
  const counted = totals.reduce((total, [, seconds]) => total + seconds, 0);
  const all = Math.max(sum("seconds_epoch"), counted);
  if (!all) return make("p", { class: "empty" }, "No times were recorded.");
  totals.push(["other", all - counted]);
  const lines = totals.map(([name, seconds], place) =>
    make(
      "li",
      {},
      make("span", {}, name),
      make("span", { class: "meter" }, make("i", { style: `width:${(100 * seconds) / all}%;background:${categoryColour(place * 3)}` })),
      make("span", { class: "figure" }, `${seconds.toFixed(1)} s · ${percent(seconds / all)}`),
    ),
  );
  return make("div", { id: "ledger" }, make("ul", { class: "meters" }, ...lines), make("p", { class: "hint" }, `${all.toFixed(1)} s in all`));
}

function valuesTable(keys) {
  const shown = keys.filter((key) => key !== "epoch");
  const head = make("tr", {}, ...["epoch", ...shown].map((key) => make("th", { scope: "col" }, key)));
  const body = atlas.history.map((metrics) =>
    make("tr", {}, make("th", { scope: "row" }, metrics.epoch), ...shown.map((key) => make("td", { class: "figure" }, typeof metrics[key] === "number" ? Number(metrics[key].toPrecision(4)) : ""))),
  );
  return make("details", {}, make("summary", {}, "All values by epoch"), make("div", { class: "sideways" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))));
}
