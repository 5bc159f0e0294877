"use strict";
// The confusion matrix of classes and clusters, and a table that says the same in words.

const matrix = { labels: [], columns: [], line: new Map(), place: new Map(), counts: new Map(), cell: 0, at: null };

function startClasses() {
  arrangeMatrix();
  const surface = byId("matrix");
  surface.addEventListener("pointermove", readMatrix);
  surface.addEventListener("pointerleave", () => drawMatrix((matrix.at = null)));
  surface.addEventListener("click", (event) => {
    readMatrix(event);
    if (event.detail > 1 || matchMedia("(hover: hover)").matches) go(viewAt(matrix.at.label, matrix.at.cluster));
  });
  new ResizeObserver(() => drawMatrix()).observe(byId("view-classes"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMatrix());
}

function arrangeMatrix() {
  matrix.at = null;
  matrix.labels = Array.from(classTotals.keys()).sort((a, b) => a - b);
  matrix.line = new Map(matrix.labels.map((label, line) => [label, line]));
  const majorityRank = (cluster) => (cluster.mix.length ? matrix.line.get(majority(cluster).label) : matrix.labels.length);
  matrix.columns = shownClusters.slice().sort((a, b) => majorityRank(a) - majorityRank(b) || b.size - a.size);
  matrix.place = new Map(matrix.columns.map((cluster, place) => [cluster, place]));
  matrix.counts = new Map(shownClusters.flatMap((cluster) => cluster.mix.map(({ label, count }) => [`${label} ${cluster.number}`, count])));
  byId("class-table").replaceChildren(classTable());
  drawMatrix();
}

const countAt = (label, cluster) => matrix.counts.get(`${label} ${cluster.number}`) || 0;

// The view of a cluster's images of a class; of all its images where it has none of the class.
const viewAt = (label, cluster) => `cluster-${cluster.number}${countAt(label, cluster) ? `/class-${label}` : ""}`;

function drawMatrix() {
  const width = byId("view-classes").clientWidth;
  if (!width) return;
  const gutter = Math.min(160, width / 3);
  matrix.cell = Math.max(3, Math.min(46, Math.floor((width - gutter) / matrix.columns.length)));
  const head = matrix.cell >= 14 ? 34 : 4;
  matrix.head = head;
  const [right, bottom] = [matrix.cell * matrix.columns.length, head + matrix.cell * matrix.labels.length];
  const pen = sized(byId("matrix"), right, bottom);
  pen.font = `${Math.min(13, matrix.cell * 0.42)}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const ink = { accent: themed("--accent"), cell: themed("--cell") };
  pen.fillStyle = themed("--cell");
  pen.fillRect(0, head, right, bottom - head);
  for (const cluster of matrix.columns) for (const { label, count } of cluster.mix) drawCell(pen, ink, label, cluster, count);
  if (matrix.cell >= 8) drawGrid(pen, right, bottom);
  if (head > 4) {
    pen.fillStyle = themed("--muted");
    matrix.columns.forEach((cluster, column) => pen.fillText(cluster.number, (column + 0.5) * matrix.cell, head / 2));
  }
  drawMatrixLabels(gutter, head);
  if (matrix.at) outlineCell(pen);
}

function sized(surface, width, height) {
  surface.width = width * devicePixelRatio;
  surface.height = height * devicePixelRatio;
  surface.style.width = `${width}px`;
  surface.style.height = `${height}px`;
  const pen = surface.getContext("2d");
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  return pen;
}

function drawCell(pen, ink, label, cluster, count) {
  const share = count / classTotals.get(label);
  const [x, y] = cornerOf(label, cluster);
  const alpha = 0.08 + 0.92 * Math.sqrt(share);
  pen.fillStyle = ink.cell;
  pen.fillRect(x, y, matrix.cell, matrix.cell);
  pen.globalAlpha = alpha;
  pen.fillStyle = ink.accent;
  pen.fillRect(x, y, matrix.cell, matrix.cell);
  pen.globalAlpha = 1;
  if (matrix.cell < 24) return;
  pen.fillStyle = readableOn(ink.accent, ink.cell, alpha);
  pen.fillText(count > 9999 ? `${Math.round(count / 1000)}k` : count, x + matrix.cell / 2, y + matrix.cell / 2);
}

// Black or white, whichever stands out more; one of them always reaches the contrast of 4.5 that WCAG AA asks for.
function readableOn(above, below, alpha) {
  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const under = channels(below);
  const mixed = channels(above).map((value, i) => alpha * value + (1 - alpha) * under[i]);
  const [red, green, blue] = mixed.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

const cornerOf = (label, cluster) => [matrix.place.get(cluster) * matrix.cell, matrix.head + matrix.line.get(label) * matrix.cell];

function drawGrid(pen, right, bottom) {
  pen.fillStyle = themed("--page");
  for (let x = matrix.cell; x <= right; x += matrix.cell) pen.fillRect(x - 1, matrix.head, 1, bottom - matrix.head);
  for (let y = matrix.head + matrix.cell; y <= bottom; y += matrix.cell) pen.fillRect(0, y - 1, right, 1);
}

function drawMatrixLabels(gutter, head) {
  const pen = sized(byId("matrix-labels"), gutter, head + matrix.cell * matrix.labels.length);
  if (matrix.cell < 9) return;
  pen.font = `${Math.min(14, matrix.cell * 0.8)}px system-ui, sans-serif`;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  pen.fillStyle = themed("--text");
  matrix.labels.forEach((label, line) => pen.fillText(className(label), gutter - 8, head + (line + 0.5) * matrix.cell, gutter - 12));
}

function outlineCell(pen) {
  const [x, y] = cornerOf(matrix.at.label, matrix.at.cluster);
  pen.strokeStyle = themed("--text");
  pen.lineWidth = 2;
  pen.strokeRect(x, y, matrix.cell - 1, matrix.cell - 1);
}

function readMatrix(event) {
  const box = byId("matrix").getBoundingClientRect();
  const column = Math.min(matrix.columns.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / matrix.cell)));
  const line = Math.min(matrix.labels.length - 1, Math.max(0, Math.floor((event.clientY - box.top - matrix.head) / matrix.cell)));
  const [cluster, label] = [matrix.columns[column], matrix.labels[line]];
  matrix.at = { cluster, label };
  const count = countAt(label, cluster);
  const share = percent(count / classTotals.get(label));
  const part = cluster.known ? percent(count / cluster.known) : "0 %";
  byId("matrix-readout").textContent = `${className(label)} in ${clusterName(cluster.number)}: ${number(count)} images, ${share} of the class, ${part} of the cluster`;
  drawMatrix();
}

function classTable() {
  const lines = matrix.labels.map((label) => {
    const found = matrix.columns.map((cluster) => [cluster, countAt(label, cluster)]).filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
    const total = classTotals.get(label);
    const links = found.slice(0, 4).flatMap(([cluster, count]) => [make("a", { href: `#${viewAt(label, cluster)}`, class: "chip" }, `${clusterName(cluster.number)} ${percent(count / total)}`), " "]);
    const more = found.length > 4 ? `and ${found.length - 4} more` : "";
    return make("tr", {}, make("th", { scope: "row" }, className(label)), make("td", { class: "figure" }, number(total)), make("td", {}, ...links, more));
  });
  const head = make("tr", {}, make("th", { scope: "col" }, "class"), make("th", { scope: "col" }, "images"), make("th", { scope: "col" }, "lie in"));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
}
