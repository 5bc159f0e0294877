"use strict";
// The overview of all clusters, their cards, and the page of one cluster.

const MEASURES = {
  size: { title: "size", value: (c) => c.size, text: (c) => `${number(c.size)} images`, scale: Math.sqrt },
  cohesion: { title: "cohesion", value: (c) => c.cohesion, text: (c) => `cohesion ${decimal(c.cohesion)}` },
  margin: { title: "margin to other clusters", value: (c) => c.margin, text: (c) => `margin ${decimal(c.margin)}` },
  majority: {
    title: "share of the majority class",
    value: majorityShare,
    text: (c) => (c.known ? `${percent(majorityShare(c))} are ${className(majority(c).label)}` : "no known class"),
  },
};
// Title, order, and what a card says of it beside size and majority.
const ORDERS = {
  size: ["size", (a, b) => b.size - a.size],
  loose: ["lowest cohesion", (a, b) => a.cohesion - b.cohesion, MEASURES.cohesion.text],
  narrow: ["lowest margin", (a, b) => a.margin - b.margin, MEASURES.margin.text],
  mixed: ["lowest majority share", (a, b) => majorityShare(a) - majorityShare(b)],
  outliers: ["most outliers", (a, b) => b.outliers - a.outliers, (c) => `${number(c.outliers)} ${c.outliers === 1 ? "outlier" : "outliers"}`],
  name: ["name", (a, b) => (a.name || "\uffff").localeCompare(b.name || "\uffff") || a.number - b.number],
  number: ["number", (a, b) => a.number - b.number],
};
const CARD_BATCH = 48; // cards that are added at a time
let ordered = clusters.slice();
let lookForCards = null; // again, after the list has changed

function startClusters() {
  const measures = Object.keys(MEASURES).filter((key) => hasClasses || key !== "majority");
  const orders = Object.keys(ORDERS).filter((key) => hasClasses || key !== "mixed");
  fillSelect(byId("measure"), measures.map((key) => [key, MEASURES[key].title]), colourOverview);
  fillSelect(byId("order"), orders.map((key) => [key, ORDERS[key][0]]), sortCards);
  if (hasClasses) byId("measure").value = "majority";
  byId("facts").replaceChildren(...factBoxes(atlas.facts));
  byId("origin").hidden = !atlas.origin.length;
  byId("origin").querySelector("dl").replaceChildren(...factLines(atlas.origin));
  byId("notes").replaceChildren(...atlas.notes.map((note) => make("li", {}, note)));
  const [kind, sentence] = atlas.history.length ? verdict() : ["", ""];
  if (kind === "alarm") byId("verdict-banner").replaceChildren(make("a", { href: "#training", class: "alarm" }, sentence));
  if (atlas.alarms.length) byId("alarm-banner").replaceChildren(alarmBanner());
  byId("overview").addEventListener("keydown", moveInOverview);
  drawOverview();
  lookForCards = addWhileNear(byId("cards-end"), addCards);
  sortCards();
}

function alarmBanner() {
  const count = atlas.alarms.length;
  const text = `${count} ${count === 1 ? "alarm" : "alarms"} during training: ${atlas.alarms[count - 1].text}`;
  return make("a", { href: "#training", class: "alarm" }, text);
}

function drawOverview() {
  const overview = byId("overview");
  const columns = 1 + Math.max(...clusters.map((cluster) => cluster.cell[0]));
  overview.style.setProperty("--columns", columns);
  const inReadingOrder = shownClusters.slice().sort((a, b) => a.cell[1] - b.cell[1] || a.cell[0] - b.cell[0]);
  overview.replaceChildren(...inReadingOrder.map(overviewCell));
  colourOverview();
}

function overviewCell(cluster, place) {
  const cell = make("a", { href: `#cluster-${cluster.number}`, class: "cell", "data-cluster": cluster.number, tabindex: place ? -1 : 0 });
  cell.style.gridArea = `${cluster.cell[1] + 1} / ${cluster.cell[0] + 1}`;
  cell.append(tilePicture(cluster), make("span", { class: "label", "aria-hidden": "true" }, tileText(cluster)));
  cell.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showTip(clusterTip(cluster), event));
  cell.addEventListener("pointerleave", hideTip);
  return cell;
}

// The most typical image of a cluster; of a group four, so that it looks like one.
function tilePicture(cluster) {
  const [first = -1] = cluster.typical;
  return cluster.numbers ? make("span", { class: "four" }, ...cluster.typical.slice(0, 4).map((row) => picture(row))) : picture(first);
}

const tileText = ({ name, number, numbers }) => (name && !numbers ? `${number} ${name}` : name || String(number));

function colourOverview() {
  const measure = MEASURES[byId("measure").value];
  const scale = measure.scale || ((value) => value);
  const values = shownClusters.map((cluster) => scale(measure.value(cluster)));
  const low = Math.min(...values);
  const range = Math.max(...values) - low || 1;
  for (const cell of byId("overview").children) {
    const cluster = shownOf.get(Number(cell.dataset.cluster));
    cell.style.setProperty("--shade", rampColour((scale(measure.value(cluster)) - low) / range));
    cell.setAttribute("aria-label", `${clusterName(cluster.number)}, ${measure.text(cluster)}`);
  }
  const ends = shownClusters.slice().sort((a, b) => measure.value(a) - measure.value(b)).filter((_, i, all) => i === 0 || i === all.length - 1);
  const text = (cluster) => (measure === MEASURES.majority ? percent(majorityShare(cluster)) : measure.text(cluster).replace(/^\D* (?=[\d.-])/, ""));
  byId("measure-legend").replaceChildren(text(ends[0]), make("i"), text(ends[ends.length - 1]));
}

// Arrow keys go to the next cell in their direction; one cell at a time can be reached by Tab.
function moveInOverview(event) {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const from = shownOf.get(Number(event.target.dataset.cluster));
  if (!by || !from) return;
  const target = nextInOverview(from, by);
  event.preventDefault();
  event.stopPropagation();
  if (!target) return;
  const cell = byId("overview").querySelector(`[data-cluster="${target.number}"]`);
  event.target.tabIndex = -1;
  cell.tabIndex = 0;
  cell.focus();
}

// Ahead in the direction and as near as possible, first of all not aside: merged clusters leave gaps.
function nextInOverview(from, [right, down]) {
  const ahead = ({ cell }) => (cell[0] - from.cell[0]) * right + (cell[1] - from.cell[1]) * down;
  const aside = ({ cell }) => Math.abs((cell[0] - from.cell[0]) * down) + Math.abs((cell[1] - from.cell[1]) * right);
  const candidates = shownClusters.filter((c) => ahead(c) > 0);
  return candidates.sort((a, b) => aside(a) - aside(b) || ahead(a) - ahead(b))[0];
}

function clusterTip(cluster) {
  const lines = [make("strong", {}, clusterName(cluster.number)), make("span", {}, `${number(cluster.size)} images`), make("span", {}, `cohesion ${decimal(cluster.cohesion)}`)];
  if (cluster.known) lines.push(make("span", {}, MEASURES.majority.text(cluster)));
  const strip = make("div", { class: "tip-strip" }, ...cluster.typical.slice(0, 9).map((row) => picture(row)));
  return [strip, make("div", { class: "lines" }, ...lines)];
}

function sortCards() {
  ordered = shownClusters.slice().sort(ORDERS[byId("order").value][1]);
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
  const sortedBy = ORDERS[byId("order").value][2] || MEASURES.cohesion.text;
  return make(
    "a",
    { href: `#cluster-${cluster.number}`, class: "card", "data-cluster": cluster.number },
    make("div", { class: "strip" }, ...cluster.typical.slice(0, 8).map((row) => picture(row))),
    clusterHeading("h3", cluster),
    make("p", {}, `${number(cluster.size)} ${cluster.size === 1 ? "image" : "images"} · ${sortedBy(cluster)}`),
    hasClasses ? mixBar(cluster) : null,
  );
}

function clusterHeading(tag, cluster) {
  const swatch = make("i", { class: "swatch", style: `background:${categoryColour(cluster.number)}`, "aria-hidden": "true" });
  if (!cluster.name) return make(tag, {}, swatch, `Cluster ${cluster.number}`);
  const numbers = numbersOf(cluster);
  return make(tag, {}, swatch, cluster.name, make("small", {}, ` ${numbers.length > 1 ? "clusters" : "cluster"} ${numbers.join(", ")}`));
}

// A bar of the classes of a cluster, and its majority in words.
function mixBar(cluster) {
  const parts = cluster.mix.slice(0, 6).map(({ label, count }) =>
    make("i", { style: `width:${(100 * count) / cluster.known}%;background:${classColour(label)}`, title: `${className(label)} ${percent(count / cluster.known)}` }),
  );
  return make("div", { class: "mix" }, make("div", { class: "mix-bar", "aria-hidden": "true" }, ...parts), MEASURES.majority.text(cluster));
}

// The page of one cluster

function showCluster(n, filter) {
  const cluster = shownCluster(n);
  const view = byId("view-cluster");
  const focused = view.contains(document.activeElement) && document.activeElement.id;
  if (!cluster) {
    view.replaceChildren(make("p", { class: "empty" }, `Cluster ${n} is not shown on this page.`));
    return;
  }
  view.replaceChildren(
    clusterBar(cluster, ordered),
    nameForm(cluster),
    clusterFacts(cluster),
    make("div", { class: "two" }, cluster.known ? classMix(cluster) : null, nearestClusters(cluster)),
    make("h3", {}, "Nearest to the centre", sheetCount(cluster, cluster.typical)),
    cluster.typical.length ? contactSheet(cluster.typical, (row) => decimal(rows.similarity[row])) : make("p", { class: "empty" }, "This cluster is empty."),
    ...borderSheet(cluster),
    ...groupMembers(cluster),
    memberSection(cluster, filter),
  );
  if (focused && byId(focused)) byId(focused).focus({ preventScroll: true });
  if (filter || focused === "member-filter") byId("members").scrollIntoView();
}

const sheetCount = (cluster, list) => make("small", {}, ` ${number(list.length)} of ${number(cluster.size)}`);

function clusterFacts(cluster) {
  const facts = [
    ["images", number(cluster.size)],
    ["of all images", percent(cluster.size / atlas.images)],
    ["cohesion", decimal(cluster.cohesion)],
    ["margin", decimal(cluster.margin)],
    ["outliers", make("a", { href: `#cluster-${cluster.number}/outliers` }, number(cluster.outliers))],
  ];
  if (cluster.known) facts.unshift(["majority class", MEASURES.majority.text(cluster)]);
  return make("dl", { class: "facts" }, ...factBoxes(facts));
}

function classMix(cluster) {
  const lines = cluster.mix.slice(0, 8).map(({ label, count }) =>
    make(
      "li",
      {},
      make("span", {}, className(label)),
      make("span", { class: "meter" }, make("i", { style: `width:${(100 * count) / cluster.known}%;background:${classColour(label)}` })),
      make("a", { class: "figure", href: `#cluster-${cluster.number}/class-${label}` }, `${number(count)} · ${percent(count / cluster.known)}`),
    ),
  );
  const more = cluster.mix.length - lines.length;
  return make("div", {}, make("h3", {}, "Classes"), make("ul", { class: "meters" }, ...lines), more > 0 ? make("p", { class: "hint" }, `and ${more} more`) : null);
}

function nearestClusters(cluster) {
  const near = new Map(); // the first cosine of a group is its largest
  for (const [n, cosine] of cluster.near) if (!near.has(shownCluster(n))) near.set(shownCluster(n), cosine);
  const links = Array.from(near, ([{ number, typical: [first = -1] }, cosine]) =>
    make("a", { href: `#cluster-${number}`, class: "near" }, picture(first), make("span", {}, clusterName(number)), make("span", { class: "figure" }, decimal(cosine))),
  );
  return make("div", {}, make("h3", {}, "Nearest clusters, with the cosine of the centres"), make("div", { class: "nears" }, ...links));
}

function borderSheet(cluster) {
  if (!cluster.border.length) return [];
  return [make("h3", {}, "At the border, with the runner-up", sheetCount(cluster, cluster.border)), contactSheet(cluster.border, (row) => `→ ${clusterName(rows.runnerUp[row])}`)];
}

function groupMembers(cluster) {
  const others = clusters.filter((c) => cluster.name && c.name === cluster.name && c !== cluster);
  if (!others.length) return [];
  return [make("h3", {}, cluster.numbers ? `Clusters named ${cluster.name}` : `Also named ${cluster.name}`), make("div", { class: "cards" }, ...others.map(clusterCard))];
}
