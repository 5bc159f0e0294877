"use strict";
// All images of a cluster that the page knows, sorted and filtered; they are added as the end comes into view.

const MEMBER_BATCH = 120;
const FAR_OUT = 3.5; // outlier score from which on an image counts as an outlier
const MEMBER_ORDERS = {
  similarity: ["highest similarity", (row) => -rows.similarity[row], (row) => decimal(rows.similarity[row])],
  margin: ["lowest margin", (row) => rows.margin[row], (row) => decimal(rows.margin[row])],
  outlier: ["highest outlier score", (row) => -rows.outlier[row], (row) => decimal(rows.outlier[row], 1)],
};
let memberOrder = "similarity"; // kept from cluster to cluster

let members = null;
function membersOf(n) {
  if (!members) {
    members = new Map(clusters.map((cluster) => [cluster.number, []]));
    rows.cluster.forEach((number, row) => members.has(number) && members.get(number).push(row));
  }
  return members.get(n) || [];
}

// The filters of a cluster: [name in the address, text, test of a row].
function memberFilters(cluster) {
  const classes = cluster.mix.map(({ label }) => [`class-${label}`, className(label), (row) => rows.label[row] === label]);
  return [["", "all images", () => true], ["outliers", "outliers", (row) => rows.outlier[row] > FAR_OUT], ...classes];
}

function memberSection(cluster, filter) {
  const known = numbersOf(cluster).flatMap(membersOf);
  const filters = memberFilters(cluster);
  const [, , test] = filters.find(([name]) => name === filter) || filters[0];
  const found = known.filter(test);
  const sheet = make("div", { class: "sheet" });
  const end = make("div");
  const order = make("select", { id: "member-order" });
  fillSelect(order, Object.entries(MEMBER_ORDERS).map(([key, [title]]) => [key, title]), () => fill());
  const choice = make("select", { id: "member-filter" });
  fillSelect(choice, filters.map(([name, text]) => [name, text]), () => go(`cluster-${cluster.number}${choice.value && "/"}${choice.value}`, "replaceState"));
  [order.value, choice.value] = [memberOrder, filter || ""];

  let list = [];
  const add = () => {
    const next = list.slice(sheet.childElementCount, sheet.childElementCount + MEMBER_BATCH);
    sheet.append(...next.map((row) => shot(row, list, MEMBER_ORDERS[memberOrder][2](row))));
    return next.length;
  };
  const look = addWhileNear(end, add);
  const fill = () => {
    memberOrder = order.value;
    list = found.slice().sort((a, b) => MEMBER_ORDERS[memberOrder][1](a) - MEMBER_ORDERS[memberOrder][1](b));
    sheet.replaceChildren();
    add();
    look();
  };
  fill();
  const missing = known.length < cluster.size ? `; ${number(known.length)} of the ${number(cluster.size)} images are on this page` : "";
  return make(
    "section",
    { id: "members", "aria-label": "All images of the cluster" },
    make("div", { class: "bar" }, make("h3", {}, `All ${number(cluster.size)}`), make("label", {}, "Sort by ", order), make("label", {}, "Show ", choice),
      listTools(`cluster-${cluster.number}`, () => list), make("span", { class: "hint", role: "status" }, `${number(found.length)} of ${number(cluster.size)}${missing}`)),
    sheet,
    end,
  );
}
