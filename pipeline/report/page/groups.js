"use strict";
// Clusters as they are shown: each for itself, or with the switch "by name" all of one name as one.

let byName = false;
let shownNumber = new Map(); // number of a cluster -> that of the cluster or group that shows it
let shownClusters = [];
let shownOf = new Map(); // by that number

function regroup() {
  const together = new Map();
  for (const cluster of clusters) {
    const key = byName && cluster.name ? `name ${cluster.name}` : cluster.number;
    together.set(key, [...(together.get(key) || []), cluster]);
  }
  shownClusters = Array.from(together.values(), (list) => (list.length > 1 ? groupOf(list) : list[0]));
  shownOf = new Map(shownClusters.map((cluster) => [cluster.number, cluster]));
  shownNumber = new Map(shownClusters.flatMap((cluster) => numbersOf(cluster).map((n) => [n, cluster.number])));
}

const numbersOf = (cluster) => cluster.numbers || [cluster.number];
const shownAs = (n) => (shownNumber.has(n) ? shownNumber.get(n) : n);

// Sizes and classes are sums, cohesion and margin means over all images.
function groupOf(list) {
  const sum = (value) => list.reduce((total, cluster) => total + value(cluster), 0);
  const size = sum((c) => c.size);
  const largest = list.reduce((best, cluster) => (cluster.size > best.size ? cluster : best));
  const numbers = list.map((cluster) => cluster.number);
  const counts = new Map();
  for (const { label, count } of list.flatMap(({ mix }) => mix)) counts.set(label, (counts.get(label) || 0) + count);
  return {
    ...largest,
    numbers,
    size,
    outliers: sum((c) => c.outliers),
    known: sum((c) => c.known),
    cohesion: sum((c) => c.cohesion * c.size) / (size || 1),
    margin: sum((c) => c.margin * c.size) / (size || 1),
    mix: Array.from(counts, ([label, count]) => ({ label, count })).sort((a, b) => b.count - a.count),
    near: largest.near.filter(([n]) => !numbers.includes(n)),
    typical: list.flatMap((c) => c.typical).sort((a, b) => rows.similarity[b] - rows.similarity[a]),
    border: list.flatMap((c) => c.border).sort((a, b) => rows.margin[a] - rows.margin[b]),
  };
}

regroup();
