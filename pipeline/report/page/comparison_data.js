"use strict";
// What the page of a comparison knows: runs, the clusters of the first one, and a sample of the images that moved
// ("rows"). Runs are numbered from 0; a cluster has the number that its own run gives it.

const comparison = JSON.parse(byId("comparison-data").textContent);
const runs = comparison.runs;
const others = runs.map((_, run) => run).slice(1);

const int32 = (text) => new Int32Array(decodeBytes(text).buffer);
const rows = {
  index: int32(comparison.columns.index),
  elsewhere: int32(comparison.columns.elsewhere),
  agreement: new Float32Array(decodeBytes(comparison.columns.agreement).buffer),
};
const inRuns = int32(comparison.columns.clusters); // run by run, the cluster of each row
const clusterIn = (run, row) => inRuns[run * rows.index.length + row];

const clusters = runs[0].sizes.map((size, number) => ({
  number,
  size,
  name: runs[0].names[number] || "",
  stability: comparison.stability[number],
  moved: comparison.moved[number],
  rows: [], // that are on the page
  counterparts: runs.map(() => -1), // the cluster of each run that is matched to it; -1 for none
}));
for (let row = 0; row < rows.index.length; row++) clusters[clusterIn(0, row)].rows.push(row);
runs.forEach(({ match }, run) => match.forEach((first, n) => first >= 0 && (clusters[first].counterparts[run] = n)));

const nameIn = (run, n) => (runs[run].names[n] ? `${runs[run].names[n]} (${n})` : `Cluster ${n}`);
const clusterName = (n) => nameIn(0, n);
const fileName = (row) => comparison.paths[row] || `image ${rows.index[row]}`;
const images = (count) => `${number(count)} ${count === 1 ? "image" : "images"}`;

// Images in both over images in either.
function jaccard(run, n) {
  const { match, sizes, common } = runs[run];
  return common[n] / (sizes[n] + clusters[match[n]].size - common[n]);
}

const hasMoved = (run, row) => runs[run].match[clusterIn(run, row)] !== clusterIn(0, row);

// What a list of images holds as CSV.
const CSV_COLUMNS = {
  index: (row) => rows.index[row],
  path: (row) => comparison.paths[row],
  agreement: (row) => rows.agreement[row].toFixed(4),
  ...Object.fromEntries(runs.map((_, run) => [`cluster_${run}`, (row) => clusterIn(run, row)])),
  ...Object.fromEntries(runs.map((_, run) => [`name_${run}`, (row) => runs[run].names[clusterIn(run, row)] || ""])),
};
