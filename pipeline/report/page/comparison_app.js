"use strict";
// Which view of the comparison is shown, and its keys.

const VIEWS = ["clusters", "flows", "cluster"];

function route() {
  const [, kind, rest] = /^([a-z]+)-?(.*)$/s.exec(current) || [];
  const view = VIEWS.includes(kind) ? kind : "clusters";
  hideTip();
  showOnly(view);
  scrollTo(0, view === "clusters" ? scrolled : 0);
  if (view === "cluster") showCluster(...splitOnce(rest));
  if (view === "flows") showFlows(Number(rest));
  const name = { clusters: "", cluster: clusterName(parseInt(rest, 10)), flows: "Flows" }[view];
  document.title = [name, comparison.title].filter(Boolean).join(" | ");
  byId("announcement").textContent = name || "Clusters";
}

document.addEventListener("keydown", (event) => {
  if (lightbox.open || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
  } else if (event.key === "Escape" && byId("view-clusters").hidden) {
    go("clusters");
  } else {
    arrowKey(event);
  }
});

startClusters();
startFlows();
route();
showReady();
