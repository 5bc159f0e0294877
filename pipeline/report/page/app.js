"use strict";
// Which view is shown. The address after # says it, so that a view can be linked to. The history says it too: a viewer
// such as MLflow's shows the page in a sandboxed frame, where following a # link does nothing.

const VIEWS = ["clusters", "map", "classes", "training", "duplicates", "outliers", "search", "cluster"];
const started = new Set();
const START = { clusters: startClusters, map: startMap, classes: startClasses, training: startTraining, duplicates: startLists, outliers: startLists };

function startView(view) {
  const start = START[view];
  if (!start || started.has(start)) return;
  started.add(start);
  start();
}

const linked = () => location.hash.slice(1) || "clusters";
let current = linked();

// Show a view. `write` is "pushState" for a new entry of the history, "replaceState" for the same one.
function go(view, write = "pushState") {
  current = view;
  imageEntry = false;
  try {
    history[write]({ view }, "", `#${view}`);
  } catch {
    history[write]({ view }, ""); // the frame's address may not change
  }
  route();
}

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href").slice(1), link.closest("dialog") && imageEntry ? "replaceState" : "pushState");
});
addEventListener("popstate", (event) => {
  if (imageEntry) {
    imageEntry = false; // Back, or the image was closed: what lies below it has not changed
    lightbox.close();
    return;
  }
  current = event.state ? event.state.view : linked();
  route();
});

function route() {
  const [, kind, rest] = /^([a-z]+)[-=]?(.*)$/s.exec(current) || [];
  const view = VIEWS.includes(kind) ? kind : "clusters";
  hideTip();
  startView("clusters"); // the order of the cards is that of the arrow keys
  startView(view);
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${view === "cluster" ? "clusters" : view}`;
    if (here) showTab(link);
    else link.removeAttribute("aria-current");
  }
  if (view === "search") showQuery(decodeURIComponent(rest));
  if (view === "map" && rest) showOnMap(Number(rest));
  if (view !== "search") byId("query").value = "";
  scrollTo(0, view === "clusters" ? scrolled : 0);
  if (view === "cluster") showCluster(...splitOnce(rest));
  nameView(view, rest);
}

// The results of a query, which may come from a link; what is being typed stays as it is.
function showQuery(query) {
  if (byId("query").value.trim() !== query) byId("query").value = query;
  showSearch(query);
}

// The tab in its row, which is wider than a phone.
function showTab(link) {
  link.setAttribute("aria-current", "page");
  const row = link.parentElement;
  row.scrollLeft = link.offsetLeft - row.offsetLeft - (row.clientWidth - link.offsetWidth) / 2;
}

function nameView(view, rest) {
  const names = { clusters: "", cluster: clusterName(parseInt(rest, 10)), search: `Search: ${byId("query").value}` };
  const name = view in names ? names[view] : view[0].toUpperCase() + view.slice(1);
  document.title = [name, atlas.title, "atlas"].filter(Boolean).join(" | ");
  byId("announcement").textContent = name || "Clusters";
}

// The number of a cluster and the filter of its images, of "3" or "3/outliers".
function splitOnce(rest) {
  const [n, filter] = rest.split("/");
  return [Number(n), filter];
}

// Where the list of clusters was left, for the way back from one of them.
let scrolled = 0;
addEventListener("scroll", () => {
  if (!byId("view-clusters").hidden) scrolled = scrollY;
});

function search() {
  const query = byId("query").value.trim();
  go(query ? `search=${encodeURIComponent(query)}` : "clusters", "replaceState");
}

let typing = 0;
byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(search, 120);
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});

document.addEventListener("keydown", (event) => {
  const inField = event.target.matches("input, select, textarea");
  if (event.key === "/" && !inField && !lightbox.open) {
    event.preventDefault();
    byId("query").focus();
  } else if (event.key === "Escape" && event.target.id === "query") {
    byId("query").value = "";
    byId("query").blur();
    search();
  } else if (event.key === "Escape" && inField) {
    event.target.blur();
  } else if (event.key === "Escape" && !lightbox.open && !byId("view-cluster").hidden) {
    go("clusters");
  } else if (!inField && !lightbox.open && !event.altKey && !event.ctrlKey && !event.metaKey) {
    arrowKey(event);
  }
});

// Arrow keys go from cluster to cluster on the page of one, and from card to card in the list.
function arrowKey(event) {
  if (!byId("view-cluster").hidden) {
    const link = { ArrowLeft: byId("previous-cluster"), ArrowRight: byId("next-cluster") }[event.key];
    if (link) link.click();
    return;
  }
  const card = event.target.closest && event.target.closest("#cards .card");
  if (!card) return;
  const cards = Array.from(byId("cards").children);
  const across = cards.findIndex((other) => other.offsetTop > cards[0].offsetTop);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  const next = step && cards[cards.indexOf(card) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

if (!hasClasses) document.querySelector('nav a[href="#classes"]').hidden = true;
if (!atlas.history.length) document.querySelector('nav a[href="#training"]').hidden = true;
showGroups(); // the browser may have kept names
route();
showUnsaved();

// Ready: drawn, and the pictures that are seen first are decoded.
const firstSheet = atlas.pictures ? Object.assign(new Image(), { src: sheetUrl(0) }).decode().catch(() => {}) : Promise.resolve();
firstSheet.then(() => requestAnimationFrame(() => requestAnimationFrame(() => {
  document.documentElement.dataset.ready = Math.round(performance.now());
})));
