"use strict";
// Pictures from the sheets, the tip that follows the pointer, and the lightbox. What these say of an image is the page's:
// `fileName`, `describe`, `imageTip` and `lightboxContent`.

const sheets = JSON.parse(byId("sheet-shape").textContent);
const perSheet = sheets.columns * sheets.columns;
const aspects = new Float32Array(decodeBytes(sheets.aspects).buffer); // width / height of each picture
const sheetUrls = new Map();
const sheetImages = new Map();

// The address of a sheet; it is decoded from the page when it is first needed.
function sheetUrl(sheet) {
  if (!sheetUrls.has(sheet)) {
    const bytes = decodeBytes(byId(`sheet-${sheet}`).textContent);
    sheetUrls.set(sheet, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
  }
  return sheetUrls.get(sheet);
}

// The sheet as an image to draw from, or null until it has been read; `onLoad` is called then.
function sheetImage(sheet, onLoad) {
  let image = sheetImages.get(sheet);
  if (!image) {
    image = new Image();
    sheetImages.set(sheet, image);
    image.addEventListener("load", onLoad);
    image.src = sheetUrl(sheet);
  }
  return image.complete && image.naturalWidth ? image : null;
}

const hasPicture = (row) => row >= 0 && row < sheets.pictures;

function tileOf(row) {
  const place = row % perSheet;
  return { sheet: Math.floor(row / perSheet), column: place % sheets.columns, line: Math.floor(place / sheets.columns) };
}

// Width and height of a whole picture, measured by the square in its middle.
const overhang = (row) => [Math.max(1, aspects[row]), Math.max(1, 1 / aspects[row])];

// Put a row's picture behind an element: the square in its middle or, with `whole`, all of it in its own shape. A tile holds
// the whole picture, stretched to a square.
function paint(element, row, whole = false) {
  element.classList.add("picture");
  element.dataset.row = row;
  if (!hasPicture(row)) {
    element.classList.add("no-picture");
    return element;
  }
  const { sheet, column, line } = tileOf(row);
  const inSheet = Math.min(perSheet, sheets.pictures - sheet * perSheet);
  const lines = Math.ceil(inSheet / sheets.columns);
  element.style.backgroundImage = `url(${sheetUrl(sheet)})`;
  const [wide, high] = whole ? [1, 1] : overhang(row);
  element.style.setProperty("--aspect", whole ? aspects[row] : 1);
  element.style.backgroundSize = `${100 * sheets.columns * wide}% ${100 * lines * high}%`;
  element.style.backgroundPosition = `${centred(column, sheets.columns, wide)}% ${centred(line, lines, high)}%`;
  return element;
}

// CSS position of a row of `count` tiles, each `length` times as long as the element, that puts the middle of one of them
// into the element's middle.
const centred = (place, count, length) => (count * length === 1 ? 0 : (100 * ((place + 0.5) * length - 0.5)) / (count * length - 1));

const picture = (row, attributes = {}) => paint(make("span", attributes), row);
const wholePicture = (row, attributes) => paint(make("span", attributes), row, true);

const LONG = 1.6; // times as long as wide: longer than most photographs; their middle shows too little to go unsaid
const isCropped = (row) => hasPicture(row) && Math.max(...overhang(row)) > LONG;

// A picture as a button that opens the lightbox; `list` are the rows that its arrow keys step through.
function shot(row, list, caption) {
  const button = make("button", { type: "button", class: "shot", "aria-label": describe(row) + (isCropped(row) ? ", cropped" : "") });
  paint(button, row);
  if (isCropped(row)) button.append(make("span", { class: "cropped" }, "cropped"));
  if (!hasPicture(row)) button.append(make("span", { class: "path" }, fileName(row)));
  if (caption) button.append(make("span", { class: "caption" }, caption));
  button.addEventListener("click", () => (selecting && !lightbox.open ? toggleSelected(row) : openLightbox(row, list)));
  markSelected(button);
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showTip(imageTip(row), event));
  button.addEventListener("pointerleave", hideTip);
  return button;
}

const contactSheet = (list, caption) =>
  make("div", { class: "sheet" }, ...list.map((row) => shot(row, list, caption ? caption(row) : "")));

// The tip

function showTip(content, event) {
  const tip = byId("tip");
  tip.replaceChildren(...content.filter(Boolean));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const beside = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 16 : event.clientX + 16;
  tip.style.left = `${Math.max(8, beside)}px`;
  tip.style.top = `${Math.max(8, Math.min(event.clientY + 16, innerHeight - box.height - 8))}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

// The lightbox

const lightbox = byId("lightbox");
let opened = { row: -1, list: [] };
let imageEntry = false; // whether the history has an entry for the open image, so that Back closes it

function openLightbox(row, list = [row]) {
  opened = { row, list };
  hideTip();
  const step = document.activeElement.dataset.step;
  lightbox.replaceChildren(...lightboxContent(row));
  if (!lightbox.open) {
    history.pushState({ view: current }, "");
    imageEntry = true;
    lightbox.showModal();
  }
  (lightbox.querySelector(`[data-step="${step}"]`) || lightbox.querySelector(".close")).focus();
}

lightbox.addEventListener("close", () => {
  if (imageEntry) history.back();
});

const closeButton = () => make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => lightbox.close() }, "×");

// An image with what the page says of it: the large picture, and beside it the path and `parts`.
function stage(row, ...parts) {
  return make(
    "div",
    { class: "stage" },
    wholePicture(row, { class: "huge", role: "img", "aria-label": describe(row) }),
    make("div", { class: "about" }, make("p", { class: "path" }, fileName(row)), ...parts, stepButtons(row)),
  );
}

// Buttons to the images before and after this one in the list that it was opened from.
function stepButtons(row) {
  const { list } = opened;
  if (list.length < 2) return null;
  const place = list.indexOf(row);
  const step = (by) => openLightbox(list[(place + by + list.length) % list.length], list);
  return make(
    "p",
    { class: "buttons" },
    make("button", { type: "button", onclick: () => step(-1), "data-step": "-1" }, "← previous"),
    make("button", { type: "button", onclick: () => step(1), "data-step": "1" }, "next →"),
    make("span", { class: "hint" }, `${place + 1} of ${list.length}`),
  );
}

lightbox.addEventListener("click", (event) => {
  if (event.target === lightbox) lightbox.close();
});
lightbox.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: "-1", ArrowRight: "1" }[event.key];
  const button = by && lightbox.querySelector(`[data-step="${by}"]`);
  if (!button) return;
  button.click();
  lightbox.querySelector(`[data-step="${by}"]`).focus();
  event.preventDefault();
});
