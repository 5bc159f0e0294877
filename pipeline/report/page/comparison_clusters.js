"use strict";
// The head of the page, the cards of the first run's clusters, and the page of one cluster.

// Title and order.
const ORDERS = {
  stability: ["lowest stability", (a, b) => a.stability - b.stability],
  moved: ["most moved", (a, b) => b.moved - a.moved],
  share: ["largest share moved", (a, b) => movedShare(b) - movedShare(a)],
  size: ["size", (a, b) => b.size - a.size],
  number: ["number", (a, b) => a.number - b.number],
};
const CARD_BATCH = 48; // cards that are added at a time
const LARGEST_FLOWS = 12; // that a cluster's page lists for each run
let ordered = [];
let lookForCards = null; // again, after the list has changed

const movedShare = (cluster) => cluster.moved / (cluster.size || 1);
const totalMoved = comparison.moved.reduce((sum, count) => sum + count, 0);

function startClusters() {
  byId("facts").replaceChildren(...factBoxes([
    ["images", number(comparison.images)],
    ["clusters", number(clusters.length)],
    ["moved", `${number(totalMoved)} · ${percent(totalMoved / comparison.images)}`],
    ["mean agreement", percent(comparison.agreement)],
  ]));
  byId("notes").replaceChildren(...notes().map((note) => make("li", {}, note)));
  byId("scores").replaceChildren(
    scoreTable("Adjusted Rand index", "ARI: 1 for the same clusters, about 0 for random ones.", comparison.ari),
    scoreTable("Normalised mutual information", "NMI: 1 for the same clusters.", comparison.nmi),
  );
  const [unstable, stable] = comparison.limits;
  byId("first-run").textContent = runs[0].name;
  byId("stability-hint").textContent = `Stability is the mean Jaccard index of a cluster and the most similar cluster of each other run (Hennig 2007). Below ${unstable} a cluster is unreliable; above ${stable} every run finds it. Cards show images that moved and, for each other run, the matched cluster with its size and Jaccard index.`;
  fillSelect(byId("order"), Object.entries(ORDERS).map(([key, [title]]) => [key, title]), sortCards);
  lookForCards = addWhileNear(byId("cards-end"), addCards);
  sortCards();
}

function notes() {
  const shown = rows.index.length;
  const sample = `This page has ${number(shown)} of the ${number(totalMoved)} images that moved, those first on which the most runs disagree; moved.parquet has all.`;
  return [`An image has moved if at least one other run puts it into a cluster that is not matched to its cluster in ${runs[0].name}.`, ...(shown < totalMoved ? [sample] : [])];
}

// The values of each pair of runs. Columns are numbered, because names of runs are long.
function scoreTable(title, meaning, values) {
  const head = make("tr", {}, make("th", {}, ""), make("th", {}, ""), ...runs.map((_, run) => make("th", { class: "figure", title: runs[run].name }, String(run + 1))));
  const lines = values.map((line, a) => make("tr", {}, make("td", { class: "figure hint" }, String(a + 1)), make("th", { scope: "row" }, runLink(a)), ...line.map((value, b) => scoreCell(value, a === b))));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  return make("div", {}, make("h3", {}, title), make("p", { class: "hint" }, meaning), make("div", { class: "sideways" }, table));
}

function scoreCell(value, same) {
  const share = same ? 0 : Math.round(100 * Math.max(0, value) ** 2 * 0.5);
  return make("td", { class: "figure score", style: `background:color-mix(in srgb, var(--accent) ${share}%, transparent)` }, same ? "–" : decimal(value));
}

// The name of a run, which leads to its atlas where that lies on the same disk; a viewer's frame opens no files.
function runLink(run) {
  const { name, atlas } = runs[run];
  return atlas && location.protocol !== "blob:" ? make("a", { href: atlas, class: "run-link", title: "Open its atlas" }, name) : make("span", {}, name);
}

function sortCards() {
  ordered = clusters.slice().sort(ORDERS[byId("order").value][1]);
  byId("cards").replaceChildren();
  addCards();
  lookForCards();
}

function addCards() {
  const done = byId("cards").childElementCount;
  const next = ordered.slice(done, done + CARD_BATCH);
  byId("cards").append(...next.map(clusterCard));
  return next.length;
}

function clusterCard(cluster) {
  const strip = cluster.rows.length ? make("div", { class: "strip" }, ...cluster.rows.slice(0, 4).map((row) => picture(row))) : null;
  const matches = others.map((run) => make("p", { class: "match" }, make("span", {}, runs[run].name), make("span", {}, ...counterpartWords(cluster, run))));
  return make(
    "a",
    { href: `#cluster-${cluster.number}`, class: "card", "data-cluster": cluster.number },
    strip,
    clusterHeading("h3", cluster),
    make("p", {}, `${images(cluster.size)} · ${number(cluster.moved)} moved · `, stabilityWord(cluster)),
    ...matches,
  );
}

function stabilityWord({ stability }) {
  const [unstable, stable] = comparison.limits;
  const kind = stability < unstable ? "unstable" : stability > stable ? "fine" : "";
  return make("span", { class: `stability ${kind}` }, `stability ${decimal(stability, 2)}`);
}

// Name, size and overlap of the cluster that is matched to this one in another run.
function counterpartWords(cluster, run) {
  const n = cluster.counterparts[run];
  if (n < 0) return ["no counterpart"];
  return [nameIn(run, n), make("span", { class: "hint" }, ` ${number(runs[run].sizes[n])} · ${decimal(jaccard(run, n), 2)}`)];
}

function clusterHeading(tag, { number: n, name }) {
  const swatch = make("i", { class: "swatch", style: `background:${categoryColour(n)}`, "aria-hidden": "true" });
  return name ? make(tag, {}, swatch, name, make("small", {}, ` cluster ${n}`)) : make(tag, {}, swatch, `Cluster ${n}`);
}

// The page of one cluster

function showCluster(n, filter = "") {
  const cluster = clusters[n];
  const view = byId("view-cluster");
  const focused = view.contains(document.activeElement) && document.activeElement.id;
  if (!cluster) {
    view.replaceChildren(make("p", { class: "empty" }, `There is no cluster ${n}.`));
    return;
  }
  view.replaceChildren(clusterBar(cluster, ordered), clusterFacts(cluster), matchTable(cluster), ...clusterFlows(cluster), movedSection(cluster, filter));
  if (focused && byId(focused)) byId(focused).focus({ preventScroll: true });
  if (filter || focused === "moved-filter") byId("moved").scrollIntoView();
}

function clusterFacts(cluster) {
  const facts = [
    ["images", number(cluster.size)],
    ["moved", `${number(cluster.moved)} · ${percent(movedShare(cluster))}`],
    ["stability", make("span", { class: stabilityWord(cluster).className }, decimal(cluster.stability))],
  ];
  return make("dl", { class: "facts" }, ...factBoxes(facts));
}

function matchTable(cluster) {
  const head = ["run", "matched cluster", "images there", "in both", "Jaccard"].map((text, at) => make("th", { class: at > 1 ? "figure" : "" }, text));
  const line = (run) => {
    const n = cluster.counterparts[run];
    const values = n < 0 ? ["", "", ""] : [number(runs[run].sizes[n]), number(runs[run].common[n]), decimal(jaccard(run, n))];
    const name = n < 0 ? make("td", { class: "hint" }, "no counterpart") : make("td", {}, nameIn(run, n));
    return make("tr", {}, make("th", { scope: "row" }, runLink(run)), name, ...values.map((value) => make("td", { class: "figure" }, value)));
  };
  const table = make("table", { id: "matches" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...others.map(line)));
  return make("div", {}, make("h3", {}, "In the other runs"), make("div", { class: "sideways" }, table));
}

// The images of a cluster that moved and are on this page, filtered by where they went.
function movedSection(cluster, filter) {
  const flow = flowOf(cluster, filter);
  const list = flow ? cluster.rows.filter((row) => clusterIn(flow.run, row) === flow.to) : cluster.rows;
  const total = flow ? flow.count : cluster.moved;
  const choice = make("select", { id: "moved-filter" });
  const options = flowsFrom(cluster).map(({ run, to, count }) => [`${run}-${to}`, `→ ${nameIn(run, to)} in ${runs[run].name}: ${number(count)}`]);
  fillSelect(choice, [["", "all"], ...options], () => go(`cluster-${cluster.number}${choice.value && "/"}${choice.value}`, "replaceState"));
  choice.value = flow ? filter : "";
  const count = make("span", { class: "hint", role: "status" }, `${number(list.length)} of ${number(total)} shown`);
  return make(
    "section",
    { id: "moved", "aria-label": "Images that moved" },
    make("div", { class: "bar" }, make("h3", {}, "Images that moved"), options.length ? make("label", {}, "Show ", choice) : null, list.length ? listTools(`cluster-${cluster.number}-moved`, () => list) : null, count),
    list.length ? make("p", { class: "hint" }, `Most disagreement first. In red: a cluster that is not the match of this one, with its own match in ${runs[0].name}.`) : null,
    list.length ? make("ul", { class: "pairs" }, ...list.map((row) => movedItem(row, list))) : emptyMoved(total),
  );
}

function emptyMoved(total) {
  if (!total) return make("p", { class: "fine" }, "Every run agrees on all images of this cluster.");
  return make("p", { class: "empty" }, `The sample on this page has none of these ${images(total)}; moved.parquet has all.`);
}
