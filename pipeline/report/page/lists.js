"use strict";
// Likely duplicates, outliers, and the search.

const HITS = 300; // images that a search shows
const FOUND_CLUSTERS = 24; // and clusters

function startLists() {
  byId("view-duplicates").replaceChildren(...duplicatesContent());
  byId("view-outliers").replaceChildren(...outliersContent());
}

function duplicatesContent() {
  const count = atlas.duplicates.length;
  const head = make("div", { class: "bar" }, make("h2", {}, "Likely duplicates"), make("span", { class: "hint" }, `${number(count)} pairs`), listTools("duplicates", () => atlas.duplicates.flatMap(({ first, second }) => [first, second])));
  if (!count) return [head, make("p", { class: "fine" }, "None was found.")];
  const pairs = atlas.duplicates.map(({ first, second, similarity, likeness }) =>
    make(
      "li",
      { class: "pair" },
      make("div", { class: "pictures" }, shot(first, [first, second]), shot(second, [first, second])),
      make("div", {}, make("strong", { class: likeness.replace(" ", "-") }, likeness), make("span", { class: "hint" }, ` cosine ${decimal(similarity, 4)}`),
        make("p", { class: "path" }, fileName(first)), make("p", { class: "path" }, fileName(second)), clustersOfPair(first, second)),
    ),
  );
  return [head, make("p", { class: "hint" }, duplicatesHint()), make("ul", { class: "pairs" }, ...pairs)];
}

// Where two images that should lie together do not.
function clustersOfPair(first, second) {
  const [one, other] = [rows.cluster[first], rows.cluster[second]];
  if (shownAs(one) === shownAs(other)) return null;
  return make("p", { class: "apart" }, "in two clusters: ", clusterLink(one, { class: "chip" }), " ", clusterLink(other, { class: "chip" }));
}

function duplicatesHint() {
  return atlas.pictures
    ? "Pairs with nearly equal features whose pictures are alike, too. Identical: the pixels are the same; alike: almost the same."
    : "Pairs with nearly equal features. There are no pictures, so their pixels were not compared.";
}

function outliersContent() {
  const list = atlas.outliers;
  const head = make("div", { class: "bar" }, make("h2", {}, "Outliers"), make("span", { class: "hint" }, `${number(list.length)} images`), listTools("outliers", () => list));
  if (!list.length) return [head, make("p", { class: "fine" }, "No image lies far outside its cluster.")];
  const hint = "Images that are far less similar to their centre than the rest of their cluster, the farthest first. The number says how far an image's similarity lies below the cluster's median, in multiples of the usual spread.";
  return [head, make("p", { class: "hint" }, hint), contactSheet(list, (row) => decimal(rows.outlier[row], 1))];
}

function showSearch(query) {
  const [n, words] = parseQuery(query);
  const matches = (text) => words.every((word) => text.includes(word));
  const found = shownClusters.filter((cluster) => (n === null || shownAs(n) === cluster.number) && matches(clusterText(cluster)));
  const names = new Map(clusters.map(({ number, name }) => [number, ` ${name.toLowerCase()}`]));
  const classText = new Map(Array.from(classTotals.keys(), (label) => [label, ` ${className(label).toLowerCase()}`]));
  const rowText = (row) => atlas.paths[row].toLowerCase() + (names.get(rows.cluster[row]) || "") + (classText.get(rows.label[row]) || "");
  const isHit = (row) => (n === null || shownAs(n) === shownAs(rows.cluster[row])) && matches(rowText(row));
  const all = [];
  for (let row = 0; row < atlas.paths.length; row++) {
    if (isHit(row)) all.push(row);
  }
  const [total, hits] = [all.length, all.slice(0, HITS)];
  const withPicture = hits.filter(hasPicture);
  const without = hits.filter((row) => !hasPicture(row));
  byId("view-search").replaceChildren(
    make("div", { class: "bar" }, make("h2", {}, `${number(total)} images, ${number(found.length)} clusters`), make("span", { class: "hint" }, `with ${query}`), listTools("search", () => all)),
    found.length ? make("div", { class: "cards" }, ...found.slice(0, FOUND_CLUSTERS).map(clusterCard)) : "",
    found.length > FOUND_CLUSTERS ? make("p", { class: "hint" }, `The first ${FOUND_CLUSTERS} clusters are shown.`) : "",
    withPicture.length ? contactSheet(withPicture, (row) => clusterName(rows.cluster[row])) : "",
    make("ul", { class: "hits" }, ...without.map(hitLine)),
    total > HITS ? make("p", { class: "hint" }, `The first ${HITS} are shown; type more of the path to find others.`) : "",
    total || found.length ? "" : make("p", { class: "empty" }, "No path, name or class contains this text."),
  );
}

// The cluster that a query asks for by "cluster 11", or null, and its other words.
function parseQuery(query) {
  const [asked, n] = /\bcluster\s+(\d+)\b/i.exec(query) || ["", null];
  return [n && Number(n), query.replace(asked, " ").toLowerCase().split(/\s+/).filter(Boolean)];
}

function clusterText(cluster) {
  return `cluster ${numbersOf(cluster).join(" cluster ")} ${cluster.name} ${cluster.mix.length ? className(majority(cluster).label) : ""}`.toLowerCase();
}

function hitLine(row) {
  return make("li", {}, make("button", { type: "button", class: "path", onclick: () => openLightbox(row) }, fileName(row)), " ", clusterLink(rows.cluster[row]));
}
