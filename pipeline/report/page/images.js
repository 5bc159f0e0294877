"use strict";
// What the atlas says of an image: in a label, in the tip, and in the lightbox.

function describe(row) {
  const parts = [fileName(row), clusterName(rows.cluster[row]), `similarity ${decimal(rows.similarity[row])}`];
  if (rows.label[row] >= 0) parts.push(`class ${className(rows.label[row])}`);
  return parts.join(", ");
}

function imageTip(row) {
  const lines = [make("strong", {}, clusterName(rows.cluster[row]))];
  if (rows.label[row] >= 0) lines.push(make("span", {}, `class ${className(rows.label[row])}`));
  lines.push(make("span", {}, `similarity ${decimal(rows.similarity[row])}`));
  lines.push(make("span", { class: "path" }, fileName(row)));
  return [hasPicture(row) ? wholePicture(row, { class: "large" }) : null, make("div", { class: "lines" }, ...lines)];
}

function lightboxContent(row) {
  const facts = [
    ["cluster", clusterLink(rows.cluster[row])],
    rows.label[row] >= 0 ? ["class", className(rows.label[row])] : null,
    ["similarity", decimal(rows.similarity[row], 4)],
    ["runner-up", shownAs(rows.runnerUp[row]) === shownAs(rows.cluster[row]) ? "another cluster of the group" : clusterLink(rows.runnerUp[row])],
    ["margin", decimal(rows.margin[row], 4)],
    ["outlier score", decimal(rows.outlier[row], 1)],
    ["index", number(rows.index[row])],
  ].filter(Boolean);
  return [
    closeButton(),
    stage(row, make("dl", {}, ...factLines(facts)), Number.isNaN(rows.x[row]) ? null : make("p", {}, make("a", { href: `#map-${row}` }, "Show on the map"))),
    ...alikeContent(row),
  ];
}

function alikeContent(row) {
  const count = atlas.alikePerImage;
  if (!count || !hasPicture(row)) return [];
  const list = Array.from(rows.alike.subarray(row * count, (row + 1) * count)).filter((other) => other >= 0);
  if (!list.length) return [];
  return [make("h3", {}, "Most similar images"), contactSheet(list)];
}
