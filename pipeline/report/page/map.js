"use strict";
// The map: a point for each image, which becomes its picture where there is room. Drag, wheel, pinch, arrows, + and -.

const POINT = 3; // radius in CSS pixels
const ROOM = 26; // pixels between pictures from which on they are drawn
const COLOURS = {
  cluster: ["cluster", (row) => categoryColour(shownAs(rows.cluster[row]))],
  class: ["class", (row) => (rows.label[row] < 0 ? themed("--muted") : classColour(rows.label[row]))],
  similarity: ["similarity", (row) => rampColour((rows.similarity[row] - similarityRange[0]) / similarityRange[1])],
};
const onMap = Array.from(rows.x.keys()).filter((row) => !Number.isNaN(rows.x[row]));
const similarityRange = (() => {
  const sorted = onMap.map((row) => rows.similarity[row]).sort((a, b) => a - b);
  const low = sorted[Math.floor(0.02 * sorted.length)] || 0;
  return [low, (sorted[sorted.length - 1] || 1) - low || 1];
})();

const map = { x: 0, y: 0, zoom: 1, width: 0, height: 0, marked: -1, only: null, drawn: [], colours: [], pending: false, pointers: new Map() };
const canvas = byId("map-canvas");

function startMap() {
  const keys = Object.keys(COLOURS).filter((key) => hasClasses || key !== "class");
  fillSelect(byId("map-colour"), keys.map((key) => [key, COLOURS[key][0]]), recolourMap);
  byId("map-pictures").addEventListener("change", redrawMap);
  byId("map-in").addEventListener("click", () => zoomMap(1.6, map.width / 2, map.height / 2));
  byId("map-out").addEventListener("click", () => zoomMap(1 / 1.6, map.width / 2, map.height / 2));
  byId("map-whole").addEventListener("click", showWholeMap);
  canvas.setAttribute("aria-label", `Map of ${number(onMap.length)} images by ${atlas.method}. Arrow keys move it, plus and minus zoom.`);
  byId("map-hint").textContent = onMap.length
    ? `${number(onMap.length)} images, placed by ${atlas.method}. Images that are alike lie near each other. Zoom in to see the pictures.`
    : "There is no map, because the run stored no features.";
  for (const [type, handler] of Object.entries({ pointerdown: mapDown, pointermove: mapMove, pointerup: mapUp, pointercancel: mapUp, pointerleave: mapLeave, click: mapClick })) {
    canvas.addEventListener(type, handler);
  }
  canvas.addEventListener("wheel", mapWheel, { passive: false });
  canvas.addEventListener("keydown", mapKey);
  new ResizeObserver(sizeMap).observe(byId("map-frame"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolourMap);
  recolourMap();
}

function sizeMap() {
  const frame = byId("map-frame");
  if (!frame.clientWidth) return;
  map.width = frame.clientWidth;
  map.height = frame.clientHeight;
  canvas.width = map.width * devicePixelRatio;
  canvas.height = map.height * devicePixelRatio;
  redrawMap();
}

function recolourMap() {
  const colour = COLOURS[byId("map-colour").value][1];
  map.colours = onMap.map(colour);
  middles = null;
  map.only = null;
  drawLegend();
  redrawMap();
}

// A legend that can be counted: a click shows only one cluster or class.
function drawLegend() {
  const kind = byId("map-colour").value;
  const column = kind === "class" ? rows.label : rows.cluster.map(shownAs);
  const values = kind === "similarity" ? [] : Array.from(new Set(onMap.map((row) => column[row]))).sort((a, b) => a - b);
  const [text, colour] = kind === "class" ? [className, classColour] : [clusterName, categoryColour];
  const entries = values.length > 60 ? [] : values.filter((value) => value >= 0);
  byId("map-legend").replaceChildren(
    ...entries.map((value) =>
      make("button", { type: "button", "aria-pressed": "false", onclick: (event) => toggleOnly(event.currentTarget, (row) => column[row] === value) },
        make("i", { class: "swatch", style: `background:${colour(value)}` }), text(value)),
    ),
  );
}

function toggleOnly(button, test) {
  const pressed = button.getAttribute("aria-pressed") === "true";
  for (const other of byId("map-legend").children) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", String(!pressed));
  map.only = pressed ? null : test;
  redrawMap();
}

// The axes mean nothing, so that the map fills the frame in both directions.
const extent = (column) => onMap.reduce((most, row) => Math.max(most, Math.abs(column[row])), 1e-9);
const [extentX, extentY] = [extent(rows.x), extent(rows.y)];
const scaleX = () => ((0.5 * map.width - 30) * map.zoom) / extentX;
const scaleY = () => ((0.5 * map.height - 30) * map.zoom) / extentY;
const toScreen = (x, y) => [map.width / 2 + (x - map.x) * scaleX(), map.height / 2 - (y - map.y) * scaleY()];
const placeOf = (row) => toScreen(rows.x[row], rows.y[row]);

function redrawMap() {
  if (map.pending) return;
  map.pending = true;
  requestAnimationFrame(() => {
    map.pending = false;
    drawMap();
  });
}

function drawMap() {
  const pen = canvas.getContext("2d");
  pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  pen.clearRect(0, 0, map.width, map.height);
  const side = pictureSide();
  const visible = [];
  for (let i = 0; i < onMap.length; i++) {
    const [x, y] = placeOf(onMap[i]);
    if (x > -side && y > -side && x < map.width + side && y < map.height + side) visible.push([onMap[i], x, y, map.colours[i]]);
  }
  drawPoints(pen, visible);
  map.drawn = side ? placePictures(visible, side) : [];
  for (const place of map.drawn.slice(1)) drawPicture(pen, side, place);
  drawNames(pen);
  if (map.drawn.length) drawPicture(pen, side, map.drawn[0]);
  if (map.marked >= 0) drawMark(pen, side);
}

function drawPoints(pen, visible) {
  const radius = POINT * Math.min(2, Math.max(0.8, Math.sqrt(map.zoom * 700 / (onMap.length + 200))));
  for (const [row, x, y, colour] of visible) {
    pen.globalAlpha = map.only && !map.only(row) ? 0.08 : 0.85;
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  }
  pen.globalAlpha = 1;
}

// How large pictures are at this zoom; 0 when they are off.
function pictureSide() {
  if (!byId("map-pictures").checked || !atlas.pictures) return 0;
  return Math.min(sheets.side, 72, Math.max(ROOM, 10 + 9 * map.zoom));
}

// Where pictures do not cover each other: [row, x, y, colour], the marked one first; the points of the others stay.
function placePictures(visible, side) {
  const taken = new Map();
  const marked = visible.filter(([row]) => row === map.marked);
  const others = visible.filter(([row]) => row !== map.marked && !(map.only && !map.only(row)));
  return [...marked, ...others].filter(([row, x, y]) => hasPicture(row) && takePlace(taken, x, y, side + 4));
}

function drawPicture(pen, side, [row, x, y, colour]) {
  const tile = tileOf(row);
  const image = sheetImage(tile.sheet, redrawMap);
  if (!image) return;
  pen.fillStyle = colour;
  pen.fillRect(x - side / 2 - 1.5, y - side / 2 - 1.5, side + 3, side + 3);
  const [width, height] = overhang(row).map((length) => sheets.side / length); // of its middle
  const [left, top] = [(tile.column + 0.5) * sheets.side - width / 2, (tile.line + 0.5) * sheets.side - height / 2];
  pen.drawImage(image, left, top, width, height, x - side / 2, y - side / 2, side, side);
}

// Whether a square of this side is free; it is taken then. A cell of `taken` holds one square at most.
function takePlace(taken, x, y, side) {
  const [column, line] = [Math.floor(x / side), Math.floor(y / side)];
  for (let i = column - 1; i <= column + 1; i++) {
    for (let j = line - 1; j <= line + 1; j++) {
      const other = taken.get(`${i} ${j}`);
      if (other && Math.abs(other[0] - x) < side && Math.abs(other[1] - y) < side) return false;
    }
  }
  taken.set(`${column} ${line}`, [x, y]);
  return true;
}

// The middle of each cluster, in words, as long as there are few.
function drawNames(pen) {
  if (shownClusters.length > 40 || byId("map-colour").value !== "cluster") return;
  pen.font = "600 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.lineWidth = 4;
  pen.strokeStyle = themed("--panel");
  pen.fillStyle = themed("--text");
  for (const [n, [x, y]] of clusterMiddles()) {
    const place = toScreen(x, y);
    const cluster = shownCluster(n);
    const text = cluster && cluster.name ? cluster.name : `cluster ${n}`;
    pen.strokeText(text, ...place);
    pen.fillText(text, ...place);
  }
}

let middles = null;
function clusterMiddles() {
  if (middles) return middles;
  const members = new Map();
  for (const row of onMap) {
    const n = shownAs(rows.cluster[row]);
    if (!members.has(n)) members.set(n, []);
    members.get(n).push(row);
  }
  const median = (list, column) => list.map((row) => column[row]).sort((a, b) => a - b)[list.length >> 1];
  middles = new Map(Array.from(members, ([n, list]) => [n, [median(list, rows.x), median(list, rows.y)]]));
  return middles;
}

// A frame of two tones, of which one stands out from any picture.
function drawMark(pen, side) {
  const [x, y] = placeOf(map.marked);
  const reach = (side || 4 * POINT) / 2 + 4;
  for (const [colour, width] of [["--panel", 7], ["--text", 3]]) {
    pen.strokeStyle = themed(colour);
    pen.lineWidth = width;
    pen.strokeRect(x - reach, y - reach, 2 * reach, 2 * reach);
  }
}

// The image at a place: the picture that is drawn there, or else the nearest point within reach; -1 for none.
function rowOnMap(x, y, reach) {
  const half = pictureSide() / 2 + 2;
  const hit = map.drawn.find(([, left, top]) => Math.abs(left - x) <= half && Math.abs(top - y) <= half);
  return hit ? hit[0] : nearestOnMap(x, y, reach);
}

function nearestOnMap(x, y, reach) {
  let best = -1;
  let least = reach * reach;
  for (const row of onMap) {
    if (map.only && !map.only(row)) continue;
    const [left, top] = placeOf(row);
    const distance = (left - x) ** 2 + (top - y) ** 2;
    if (distance < least) [best, least] = [row, distance];
  }
  return best;
}

function zoomMap(factor, x, y) {
  const before = [scaleX(), scaleY()];
  map.zoom = Math.min(200, Math.max(0.7, map.zoom * factor));
  map.x += (x - map.width / 2) * (1 / before[0] - 1 / scaleX());
  map.y -= (y - map.height / 2) * (1 / before[1] - 1 / scaleY());
  redrawMap();
}

function moveMap(dx, dy) {
  map.x -= dx / scaleX();
  map.y += dy / scaleY();
  redrawMap();
}

function showWholeMap() {
  Object.assign(map, { x: 0, y: 0, zoom: 1, marked: -1 });
  redrawMap();
}

function showOnMap(row) {
  sizeMap();
  Object.assign(map, { x: rows.x[row], y: rows.y[row], zoom: Math.max(6, map.zoom), marked: row });
  redrawMap();
}

const placeIn = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

let dragged = false;
let touched = false; // whether the last pointer was a finger or a pen
let tipRow = -1; // the image that a tap has shown; a second tap opens it

function mapDown(event) {
  canvas.setPointerCapture(event.pointerId);
  map.pointers.set(event.pointerId, placeIn(event));
  dragged = false;
  touched = event.pointerType !== "mouse";
}

function mapMove(event) {
  const now = placeIn(event);
  const before = map.pointers.get(event.pointerId);
  if (!before) {
    hoverMap(event, now);
    return;
  }
  if (map.pointers.size === 2) pinchMap(event.pointerId, before, now);
  else if (dragged || Math.hypot(now[0] - before[0], now[1] - before[1]) > 4) {
    dragged = true;
    hideTip();
    moveMap(now[0] - before[0], now[1] - before[1]);
  } else return;
  map.pointers.set(event.pointerId, now);
}

function pinchMap(id, before, now) {
  const other = Array.from(map.pointers).find(([key]) => key !== id)[1];
  const span = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
  dragged = true;
  hideTip();
  zoomMap(span(now) / span(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
}

function hoverMap(event, [x, y]) {
  const row = rowOnMap(x, y, 18);
  canvas.style.cursor = row < 0 ? "grab" : "pointer";
  tipRow = -1;
  if (row < 0) hideTip();
  else showTip(imageTip(row), event);
}

function mapUp(event) {
  map.pointers.delete(event.pointerId);
}

// A click and not the pointer's end: what opens there would be given the click of the same tap.
function mapClick(event) {
  if (dragged) return;
  const row = rowOnMap(...placeIn(event), touched ? 28 : 18);
  if (row < 0) hideTip();
  else if (!touched || row === tipRow) openLightbox(row);
  else showTip([...imageTip(row), make("span", { class: "hint" }, "tap again to open")], event);
  tipRow = row;
}

// A finger that is lifted leaves, too, and what it has tapped stays.
function mapLeave(event) {
  if (event.pointerType === "mouse") hideTip();
}

function mapWheel(event) {
  event.preventDefault();
  hideTip();
  zoomMap(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...placeIn(event));
}

function openMiddle() {
  const row = rowOnMap(map.width / 2, map.height / 2, Infinity);
  if (row >= 0) openLightbox(row);
}

function mapKey(event) {
  const step = 60;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  const zooms = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 };
  if (moves[event.key]) moveMap(...moves[event.key]);
  else if (zooms[event.key]) zoomMap(zooms[event.key], map.width / 2, map.height / 2);
  else if (event.key === "0") showWholeMap();
  else if (event.key === "Enter") openMiddle();
  else return;
  event.preventDefault();
}
