"use strict";
// What pages share: elements, colours, and how numbers are written.

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

// Terms with their values: as boxes of a list of facts, or line by line.
const factBoxes = (facts) => facts.map(([what, value]) => make("div", {}, make("dt", {}, what), make("dd", {}, value)));
const factLines = (facts) => facts.flatMap(([what, value]) => [make("dt", {}, what), make("dd", {}, value)]);

// Adds to a list while its end is near the view; the function that it returns looks again. An observer reports only
// changes, and an end that stays near is none, so it is set anew after each batch. `add` says how many were added.
function addWhileNear(end, add) {
  const observer = new IntersectionObserver((entries) => entries[entries.length - 1].isIntersecting && add() && look(), { rootMargin: "800px" });
  const look = () => {
    observer.unobserve(end);
    observer.observe(end);
  };
  look();
  return look;
}

const whole = new Intl.NumberFormat("en");
const percent = (part) => `${(100 * part).toFixed(part > 0.0995 || part === 0 ? 0 : 1)} %`;
const number = (value) => whole.format(value);
const decimal = (value, digits = 3) => (value === null || value === undefined ? "" : value.toFixed(digits));

function decodeBytes(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Hues one golden angle apart: neighbours in number never look alike, however many there are.
function categoryColour(n, alpha = 1) {
  const lightness = [0.66, 0.76, 0.56][n % 3];
  return `oklch(${lightness} 0.15 ${((n * 137.508 + 20) % 360).toFixed(1)} / ${alpha})`;
}

// From dark violet over teal to yellow, for shares from 0 to 1.
function rampColour(share) {
  const t = Math.min(1, Math.max(0, share));
  return `oklch(${(0.38 + 0.5 * t).toFixed(3)} 0.13 ${(300 - 200 * t).toFixed(1)})`;
}
