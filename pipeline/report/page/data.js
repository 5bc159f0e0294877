"use strict";
// What the page knows: columns of images ("rows"), clusters, classes; and how numbers and names are written.

const atlas = JSON.parse(document.getElementById("atlas-data").textContent);

function decodeBytes(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

const FLOATS = new Set(["similarity", "margin", "outlier", "x", "y", "aspect"]);
const rows = {};
for (const [name, text] of Object.entries(atlas.columns)) {
  const buffer = decodeBytes(text).buffer;
  rows[name] = FLOATS.has(name) ? new Float32Array(buffer) : new Int32Array(buffer);
}

const clusters = atlas.clusters;
const clusterOf = new Map(clusters.map((cluster) => [cluster.number, cluster]));
for (const cluster of clusters) Object.assign(cluster, { mix: [], known: 0 });
const classTotals = new Map();
for (const [label, number, count] of atlas.counts) {
  classTotals.set(label, (classTotals.get(label) || 0) + count);
  const cluster = clusterOf.get(number);
  if (!cluster) continue;
  cluster.mix.push({ label, count });
  cluster.known += count;
}
for (const cluster of clusters) cluster.mix.sort((a, b) => b.count - a.count);
const hasClasses = atlas.counts.length > 0;

const whole = new Intl.NumberFormat("en");
const percent = (part) => `${(100 * part).toFixed(part > 0.0995 || part === 0 ? 0 : 1)} %`;
const number = (value) => whole.format(value);
const decimal = (value, digits = 3) => (value === null || value === undefined ? "" : value.toFixed(digits));

const className = (label) => (label < 0 ? "unknown" : atlas.classNames[label] || `class ${label}`);
const majority = (cluster) => cluster.mix[0];
const majorityShare = (cluster) => (cluster.known ? cluster.mix[0].count / cluster.known : 0);
const fileName = (row) => atlas.paths[row] || `image ${rows.index[row]}`;

// Hues one golden angle apart: neighbours in number never look alike, however many there are.
function categoryColour(n, alpha = 1) {
  const lightness = [0.66, 0.76, 0.56][n % 3];
  return `oklch(${lightness} 0.15 ${((n * 137.508 + 20) % 360).toFixed(1)} / ${alpha})`;
}

// A class has the colour of the cluster that holds most of it; of two classes there the smaller one has its own.
const colourNumbers = (() => {
  const numbers = new Map();
  const used = new Set();
  for (const [label, number] of atlas.counts.slice().sort((a, b) => b[2] - a[2])) {
    if (numbers.has(label) || used.has(number)) continue;
    numbers.set(label, number);
    used.add(number);
  }
  let free = 1 + Math.max(...clusters.map((cluster) => cluster.number), ...used);
  for (const label of classTotals.keys()) if (!numbers.has(label)) numbers.set(label, free++);
  return numbers;
})();
const classColour = (label) => categoryColour(colourNumbers.get(label));

// From dark violet over teal to yellow, for shares from 0 to 1.
function rampColour(share) {
  const t = Math.min(1, Math.max(0, share));
  return `oklch(${(0.38 + 0.5 * t).toFixed(3)} 0.13 ${(300 - 200 * t).toFixed(1)})`;
}

// An element with attributes, and children that are elements or plain text. Text is never read as markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const byId = (id) => document.getElementById(id);
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function fillSelect(select, options, onChange) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  select.addEventListener("change", onChange);
}
