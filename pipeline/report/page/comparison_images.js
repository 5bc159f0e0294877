"use strict";
// What the page says of an image that moved: in a list, in a label, in the tip, and in the lightbox.

const agreeing = (row) => `${percent(rows.agreement[row])} of the runs agree`;

// The cluster of a row in a run, with the cluster of the first run that it is matched to where that is another one.
function placeIn(run, row) {
  const n = clusterIn(run, row);
  if (!hasMoved(run, row)) return make("span", {}, nameIn(run, n));
  const flow = make("a", { href: `#cluster-${clusterIn(0, row)}/${run}-${n}`, class: "apart" }, nameIn(run, n));
  return make("span", {}, flow, make("span", { class: "hint" }, ` ${meaningOf({ run, to: n })}`));
}

const places = (row) => make("dl", { class: "places" }, ...factLines(runs.map(({ name }, run) => [name, placeIn(run, row)])));

function movedItem(row, list) {
  const words = make("div", {}, make("p", { class: "path" }, fileName(row)), places(row));
  return make("li", { class: "pair moved", "data-row": row }, make("div", { class: "pictures" }, shot(row, list)), words);
}

function describe(row) {
  const moves = others.filter((run) => hasMoved(run, row)).map((run) => `${nameIn(run, clusterIn(run, row))} in ${runs[run].name}`);
  return [fileName(row), clusterName(clusterIn(0, row)), ...moves].join(", ");
}

function imageTip(row) {
  const lines = make("div", { class: "lines" }, make("strong", {}, agreeing(row)), make("span", { class: "path" }, fileName(row)));
  return [hasPicture(row) ? wholePicture(row, { class: "large" }) : null, lines];
}

function lightboxContent(row) {
  const facts = [["runs that disagree", `${rows.elsewhere[row]} of ${others.length}`], ["agreement", agreeing(row)], ["index", number(rows.index[row])]];
  return [closeButton(), stage(row, places(row), make("dl", {}, ...factLines(facts)))];
}
