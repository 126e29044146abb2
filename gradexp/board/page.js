"use strict";

// Who comes without an address of a view of their own gets the board's, with its settings.
if (!location.search && (!location.hash || location.hash === "#timeseries")) {
  const kept = JSON.parse(localStorage.getItem(KEPT_BY) || "{}");
  localStorage.setItem(KEPT_BY, JSON.stringify(Object.assign(kept, SETTINGS)));
  history.replaceState(null, "", ADDRESS);
}

// HParams writes every number with five digits: 10.000 layers, seed 0.0000.
const fiveDigits = Number.prototype.toPrecision;
Number.prototype.toPrecision = function (digits) {
  const text = fiveDigits.call(this, digits);
  return digits === 5 ? String(Number(text)) : text;
};

const every = (kind, root = document) => {
  const found = [...root.querySelectorAll(kind)];
  for (const one of root.querySelectorAll("*")) {
    if (one.shadowRoot) found.push(...every(kind, one.shadowRoot));
  }
  return found;
};

// With many runs TensorBoard ticks none of those that are new, and draws nothing: 500 in Time Series, 40 in Text. What
// somebody has unticked stays as it is.
const seen = new WeakMap();

const tickTimeSeries = (list) => {
  const [all, ...runs] = list.querySelectorAll("input[type=checkbox]");
  if (!all) return;
  const before = seen.get(list) || { count: 0, ticked: true };
  let ticked = runs.every((run) => run.checked);
  all.checked = ticked;
  if (!ticked && before.ticked && runs.length > before.count) {
    all.click();
    ticked = true;
  }
  seen.set(list, { count: runs.length, ticked });
};

// The older tabs have seven colours of their own, in another order.
const GREY = "#757575";

const tickText = (list) => {
  if (!list.names || !list.names.length || seen.has(list)) return;
  seen.set(list, true);
  list.coloring = { getColor: () => GREY };
  list.synchronizeColors();
  if (!list.outSelected.length) list.toggleAll();
};

const greyText = (card) => {
  if (seen.has(card)) return;
  seen.set(card, true);
  card.updateStyles({ "--tb-text-loader-outline": GREY });
  for (const heading of every("tf-card-heading", card.shadowRoot)) heading.color = GREY;
};

// Trial IDs, which are the runs' names, are cut to some sixteen letters.
const widenHparams = (table) => {
  const [name] = every("vaadin-grid-column", table.shadowRoot);
  if (name) name.width = "18em";
};

const look = () => {
  document.querySelectorAll("runs-data-table").forEach(tickTimeSeries);
  if (location.hash.startsWith("#hparams")) every("tf-hparams-table-view").forEach(widenHparams);
  if (location.hash.startsWith("#text")) {
    every("tf-multi-checkbox").forEach(tickText);
    every("tf-text-loader").forEach(greyText);
  }
};
setInterval(look, 500);
