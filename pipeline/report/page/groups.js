"use strict";
// Clusters as they are shown: each for itself, or with the switch "by name" all of one name as one group. Every view asks
// here which cluster or group an image belongs to, and what it is called.

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
  shownClusters = Array.from(together.values(), (list) => (list.length > 1 ? merged(list) : list[0]));
  shownOf = new Map(shownClusters.map((cluster) => [cluster.number, cluster]));
  shownNumber = new Map(shownClusters.flatMap((cluster) => numbersOf(cluster).map((n) => [n, cluster.number])));
}

const numbersOf = (cluster) => cluster.numbers || [cluster.number];
const shownAs = (n) => (shownNumber.has(n) ? shownNumber.get(n) : n);
const shownCluster = (n) => shownOf.get(shownAs(n)); // undefined where the page does not have the cluster

// What the cluster or group is called that shows the cluster n.
function clusterName(n) {
  const cluster = shownCluster(n);
  if (!cluster || !cluster.name) return `Cluster ${n}`;
  return cluster.numbers ? cluster.name : `${cluster.name} (${n})`;
}

const clusterLink = (n, attributes = {}) => make("a", { href: `#cluster-${shownAs(n)}`, ...attributes }, clusterName(n));

// The first of each list, then the second of each: pictures of a group are of all its clusters.
function inTurns(lists) {
  const longest = Math.max(...lists.map((list) => list.length));
  return Array.from({ length: longest }, (_, place) => lists.filter((list) => place < list.length).map((list) => list[place])).flat();
}

// Sizes and classes are sums, cohesion and margin means over all images. Between two of its clusters a group has no border.
function merged(list) {
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
    typical: inTurns(list.map((c) => c.typical)),
    border: list.flatMap((c) => c.border).filter((row) => !numbers.includes(rows.runnerUp[row])).sort((a, b) => rows.margin[a] - rows.margin[b]),
  };
}

regroup();
