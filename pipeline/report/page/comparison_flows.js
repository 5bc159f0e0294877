"use strict";
// Flows: images of a cluster of the first run that another run puts into a cluster that is not matched to it.

const FLOW_LINES = 200; // of the table; more are not read
const flows = runs.flatMap((run, number) => run.flows.map(([from, to, count]) => ({ run: number, from, to, count })));
const flowsOfCluster = clusters.map(() => []);
for (const flow of flows) flowsOfCluster[flow.from].push(flow);
const flowsFrom = (cluster) => flowsOfCluster[cluster.number];

// The flow of an address such as "1-7": to cluster 7 of run 1; undefined where there is none.
function flowOf(cluster, address) {
  return flowsFrom(cluster).find(({ run, to }) => address === `${run}-${to}`);
}

function meaningOf({ run, to }) {
  const counterpart = runs[run].match[to];
  return counterpart < 0 ? "no counterpart" : `matched to ${clusterName(counterpart)}`;
}

// A line for each of the largest flows of a cluster, as a link to its images.
function clusterFlows(cluster) {
  const lists = others.map((run) => [run, flowsFrom(cluster).filter((flow) => flow.run === run)]).filter(([, list]) => list.length);
  if (!lists.length) return [];
  const line = (flow) => make(
    "li",
    {},
    make("span", { title: meaningOf(flow) }, nameIn(flow.run, flow.to), make("small", { class: "hint" }, ` ${meaningOf(flow)}`)),
    make("span", { class: "meter" }, make("i", { style: `width:${(100 * flow.count) / cluster.size}%;background:${categoryColour(Math.max(0, runs[flow.run].match[flow.to]))}` })),
    make("a", { class: "figure", href: `#cluster-${cluster.number}/${flow.run}-${flow.to}` }, `${number(flow.count)} · ${percent(flow.count / cluster.size)}`),
  );
  const part = ([run, list]) => make("div", {}, make("h3", {}, `Where they went in ${runs[run].name}`), make("ul", { class: "meters" }, ...list.slice(0, LARGEST_FLOWS).map(line)), list.length > LARGEST_FLOWS ? make("p", { class: "hint" }, `and ${number(list.length - LARGEST_FLOWS)} smaller ones, which the filter below offers`) : null);
  return [make("div", { class: "two", id: "cluster-flows" }, ...lists.map(part))];
}

function startFlows() {
  fillSelect(byId("flow-run"), others.map((run) => [String(run), runs[run].name]), () => go(`flows-${byId("flow-run").value}`, "replaceState"));
  byId("flow-hint").textContent = `Images of a cluster of ${runs[0].name} that the other run puts into a cluster that is not its match, and their share of the cluster. A count leads to the images.`;
}

function showFlows(run) {
  const shown = others.includes(run) ? run : 1;
  byId("flow-run").value = String(shown);
  const list = runs[shown].flows.slice(0, FLOW_LINES).map(([from, to, count]) => ({ run: shown, from, to, count }));
  const all = runs[shown].numFlows;
  byId("flow-count").textContent = list.length < all ? `the ${number(list.length)} largest of ${number(all)}` : `${number(all)} in all`;
  byId("flow-table").replaceChildren(all ? flowTable(list, runs[shown].name) : make("p", { class: "fine" }, "No image moved between these two runs."));
}

function flowTable(list, name) {
  const head = ["images", "share", `from (${runs[0].name})`, `to (${name})`, "which is"].map((text, at) => make("th", { class: at < 2 ? "figure" : "" }, text));
  const line = (flow) => make(
    "tr",
    {},
    make("td", { class: "figure" }, make("a", { class: "flow", href: `#cluster-${flow.from}/${flow.run}-${flow.to}` }, number(flow.count))),
    make("td", { class: "figure" }, percent(flow.count / clusters[flow.from].size)),
    make("td", {}, make("a", { class: "chip", href: `#cluster-${flow.from}` }, clusterName(flow.from))),
    make("td", {}, nameIn(flow.run, flow.to)),
    make("td", { class: "hint" }, meaningOf(flow)),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...list.map(line)));
}
