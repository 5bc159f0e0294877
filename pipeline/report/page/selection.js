"use strict";
// Images that are selected, and lists of images as CSV.

const selected = new Set();
let selecting = false; // whether a click on an image selects it

function toggleSelected(row) {
  if (!selected.delete(row)) selected.add(row);
  showSelection();
}

function showSelection() {
  document.documentElement.toggleAttribute("data-selecting", selecting);
  for (const button of document.querySelectorAll("main .shot")) markSelected(button);
  for (const button of document.querySelectorAll(".select")) button.setAttribute("aria-pressed", String(selecting));
  byId("selection").hidden = !selected.size;
  byId("selection").replaceChildren(
    `${number(selected.size)} selected `,
    make("button", { type: "button", id: "download-selection", onclick: () => saveFile("selection.csv", csv(Array.from(selected))) }, "Download CSV"),
    make("button", { type: "button", onclick: () => { selected.clear(); showSelection(); } }, "Clear"),
  );
}

function markSelected(button) {
  const row = Number(button.dataset.row);
  if (selecting || selected.has(row)) button.setAttribute("aria-pressed", String(selected.has(row)));
  else button.removeAttribute("aria-pressed");
}

// Buttons of a list: `list()` gives its rows.
function listTools(name, list) {
  const toggle = () => { selecting = !selecting; showSelection(); };
  return make(
    "span",
    { class: "buttons" },
    make("button", { type: "button", class: "select", "aria-pressed": String(selecting), onclick: toggle }, "Select"),
    make("button", { type: "button", onclick: () => { list().forEach((row) => selected.add(row)); showSelection(); } }, "Select all"),
    make("button", { type: "button", class: "csv", onclick: () => saveFile(`${name}.csv`, csv(list())) }, "Download CSV"),
  );
}

function csv(list) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const lines = [Object.keys(CSV_COLUMNS), ...list.map((row) => Object.values(CSV_COLUMNS).map((value) => value(row)))];
  return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

// A viewer's frame may forbid downloads without a word; there the text is shown, to be copied.
function saveFile(name, text) {
  if (location.protocol === "blob:") {
    const area = make("textarea", { readonly: true, rows: 16, "aria-label": name });
    area.value = text;
    lightbox.replaceChildren(closeButton(), make("h3", {}, name), make("p", { class: "hint" }, "This frame may not save files; copy the text, or open the page from disk."), area);
    lightbox.showModal();
    area.select();
    return;
  }
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
