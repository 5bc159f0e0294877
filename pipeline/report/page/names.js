"use strict";
// Names that are given in the page. The browser keeps each until the run has a name in its place.

const NAMES_KEY = `digpro names of ${atlas.title} ${new Map(atlas.origin).get("run began") || ""}`; // titles repeat
for (const cluster of clusters) cluster.saved = cluster.name;

function keptNames() {
  try {
    return JSON.parse(localStorage.getItem(NAMES_KEY)) || [];
  } catch {
    return []; // a sandboxed frame keeps nothing
  }
}

function keepNames() {
  const given = unsaved().map(({ number, name, saved }) => ({ number, name, saved }));
  try {
    localStorage.setItem(NAMES_KEY, JSON.stringify(given));
  } catch {} // they last as long as the page is open
}

// A name that was given over another one than the run has now is out of date.
for (const { number, name, saved } of keptNames()) {
  const cluster = clusterOf.get(number);
  if (cluster && cluster.saved === saved) cluster.name = name;
}

const unsaved = () => clusters.filter(({ name, saved }) => name !== saved);
keepNames();

function rename(changed, name) {
  for (const cluster of changed) cluster.name = name(cluster);
  keepNames();
  showGroups();
  showUnsaved();
}

// Everything that names or the switch decide.
function showGroups() {
  const names = clusters.map(({ name }) => name).filter(Boolean);
  byId("by-name-switch").hidden = !names.length;
  regroup();
  if (started.has(startClusters)) {
    drawOverview();
    sortCards();
  }
  if (started.has(startMap)) recolourMap();
  if (started.has(startClasses)) arrangeMatrix();
  if (started.has(startLists)) startLists();
}

byId("by-name").addEventListener("change", (event) => {
  byName = event.target.checked;
  showGroups();
  route();
});

// Typed or chosen; two clusters of one name are one group.
function nameForm(cluster) {
  const input = make("input", { id: "cluster-name", list: "names", value: cluster.name, placeholder: "Name this cluster", "aria-label": `Name of cluster ${cluster.number}`, autocomplete: "off" });
  const names = Array.from(new Set(clusters.map(({ name }) => name).filter(Boolean))).sort();
  const submit = (event) => {
    event.preventDefault();
    rename(clusters.filter(({ number }) => numbersOf(cluster).includes(number)), () => input.value.trim());
    route();
    byId("cluster-name").focus();
  };
  return make("form", { id: "naming", class: "buttons", onsubmit: submit }, input, make("datalist", { id: "names" }, ...names.map((value) => make("option", { value }))), make("button", {}, "Name"));
}

function showUnsaved() {
  const count = unsaved().length;
  byId("unsaved").hidden = !count;
  byId("unsaved").replaceChildren(
    `${count} ${count === 1 ? "name is" : "names are"} only in this page. `,
    make("button", { type: "button", id: "download-names", onclick: () => saveFile("names.yaml", namesFile()) }, "Download names.yaml"),
    make("button", { type: "button", onclick: () => { rename(clusters, ({ saved }) => saved); route(); } }, "Forget them"),
    make("span", { class: "hint" }, `to store them in the run: digpro label RUN names.yaml`),
  );
}

// What `digpro label` reads; an empty name takes one away. JSON's strings are YAML's.
function namesFile() {
  return clusters.filter(({ name, saved }) => name || saved).map(({ number, name }) => `${number}: ${JSON.stringify(name)}\n`).join("");
}
