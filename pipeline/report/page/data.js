"use strict";
// What the page knows: columns of images ("rows"), clusters, classes; and how names are written.

const atlas = JSON.parse(document.getElementById("atlas-data").textContent);

const FLOATS = new Set(["similarity", "margin", "outlier", "x", "y"]);
const rows = {};
for (const [name, text] of Object.entries(atlas.columns)) {
  const buffer = decodeBytes(text).buffer;
  rows[name] = FLOATS.has(name) ? new Float32Array(buffer) : new Int32Array(buffer);
}

const clusters = atlas.clusters;
const clusterOf = new Map(clusters.map((cluster) => [cluster.number, cluster]));
for (const cluster of clusters) Object.assign(cluster, { mix: [], known: 0 });
const classTotals = new Map();
for (const [label, number, count] of atlas.counts) {
  classTotals.set(label, (classTotals.get(label) || 0) + count);
  const cluster = clusterOf.get(number);
  if (!cluster) continue;
  cluster.mix.push({ label, count });
  cluster.known += count;
}
for (const cluster of clusters) cluster.mix.sort((a, b) => b.count - a.count);
const hasClasses = atlas.counts.length > 0;

const className = (label) => (label < 0 ? "unknown" : atlas.classNames[label] || `class ${label}`);
const majority = (cluster) => cluster.mix[0];
const majorityShare = (cluster) => (cluster.known ? cluster.mix[0].count / cluster.known : 0);
const fileName = (row) => atlas.paths[row] || `image ${rows.index[row]}`;

// A class has the colour of the cluster that holds most of it; of two classes there the smaller one has its own.
const colourNumbers = (() => {
  const numbers = new Map();
  const used = new Set();
  for (const [label, number] of atlas.counts.slice().sort((a, b) => b[2] - a[2])) {
    if (numbers.has(label) || used.has(number)) continue;
    numbers.set(label, number);
    used.add(number);
  }
  let free = 1 + Math.max(...clusters.map((cluster) => cluster.number), ...used);
  for (const label of classTotals.keys()) if (!numbers.has(label)) numbers.set(label, free++);
  return numbers;
})();
const classColour = (label) => categoryColour(colourNumbers.get(label));

// What a list of images holds as CSV.
const CSV_COLUMNS = {
  index: (row) => rows.index[row],
  path: (row) => atlas.paths[row],
  cluster: (row) => rows.cluster[row],
  name: (row) => (clusterOf.get(rows.cluster[row]) || { name: "" }).name,
  class: (row) => (rows.label[row] < 0 ? "" : className(rows.label[row])),
  runner_up: (row) => rows.runnerUp[row],
  similarity: (row) => rows.similarity[row],
  margin: (row) => rows.margin[row],
  outlier: (row) => rows.outlier[row],
};
