"use strict";
// Which view of the atlas is shown, its search, and its keys.

const VIEWS = ["clusters", "map", "classes", "training", "duplicates", "outliers", "search", "cluster"];
const started = new Set();
const START = { clusters: startClusters, map: startMap, classes: startClasses, training: startTraining, duplicates: startLists, outliers: startLists };

function startView(view) {
  const start = START[view];
  if (!start || started.has(start)) return;
  started.add(start);
  start();
}

function route() {
  const [, kind, rest] = /^([a-z]+)[-=]?(.*)$/s.exec(current) || [];
  const view = VIEWS.includes(kind) ? kind : "clusters";
  hideTip();
  startView("clusters"); // the order of the cards is that of the arrow keys
  startView(view);
  showOnly(view);
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

function nameView(view, rest) {
  const names = { clusters: "", cluster: clusterName(parseInt(rest, 10)), search: `Search: ${byId("query").value}` };
  const name = view in names ? names[view] : view[0].toUpperCase() + view.slice(1);
  document.title = [name, atlas.title, "atlas"].filter(Boolean).join(" | ");
  byId("announcement").textContent = name || "Clusters";
}

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

if (!hasClasses) document.querySelector('nav a[href="#classes"]').hidden = true;
if (!atlas.history.length) document.querySelector('nav a[href="#training"]').hidden = true;
showGroups(); // the browser may have kept names
route();
showUnsaved();
showReady();
