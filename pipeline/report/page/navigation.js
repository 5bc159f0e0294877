"use strict";
// Links between views. The address after # says which view is shown, so that a view can be linked to. The history says
// it too: a viewer such as MLflow's shows the page in a sandboxed frame, where following a # link does nothing.
// The page's own `route()` shows the view `current`; `clusterHeading` is the page's, too.

const linked = () => location.hash.slice(1) || "clusters";
let current = linked();

// Show a view. `write` is "pushState" for a new entry of the history, "replaceState" for the same one.
function go(view, write = "pushState") {
  current = view;
  imageEntry = false;
  lightbox.close();
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
  const ofImage = imageEntry;
  imageEntry = false;
  lightbox.close();
  if (ofImage) return; // Back, or the image was closed: what lies below it has not changed
  current = event.state ? event.state.view : linked();
  route();
});

// Show one of the page's `VIEWS`, and its tab; a cluster belongs to the tab of all clusters.
function showOnly(view) {
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${view === "cluster" ? "clusters" : view}`;
    if (here) showTab(link);
    else link.removeAttribute("aria-current");
  }
}

// The tab in its row, which is wider than a phone.
function showTab(link) {
  link.setAttribute("aria-current", "page");
  const row = link.parentElement;
  row.scrollLeft = link.offsetLeft - row.offsetLeft - (row.clientWidth - link.offsetWidth) / 2;
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

// The head of the page of a cluster, with links to the clusters before and after it in their order.
function clusterBar(cluster, ordered) {
  const place = ordered.indexOf(cluster);
  const beside = (by) => ordered[(place + by + ordered.length) % ordered.length].number;
  return make(
    "div",
    { class: "bar" },
    clusterHeading("h2", cluster),
    make(
      "span",
      { class: "buttons" },
      make("a", { href: `#cluster-${beside(-1)}`, id: "previous-cluster", "aria-keyshortcuts": "ArrowLeft" }, "← previous"),
      make("a", { href: `#cluster-${beside(1)}`, id: "next-cluster", "aria-keyshortcuts": "ArrowRight" }, "next →"),
      make("span", { class: "hint" }, `${place + 1} of ${ordered.length}`),
    ),
  );
}

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
  const below = cards.findIndex((other) => other.offsetTop > cards[0].offsetTop);
  const across = below < 0 ? cards.length : below;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  const next = step && cards[cards.indexOf(card) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

// Ready: drawn, and the pictures that are seen first are decoded.
async function showReady() {
  if (sheets.pictures) await Object.assign(new Image(), { src: sheetUrl(0) }).decode().catch(() => {});
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = Math.round(performance.now());
  }));
}
