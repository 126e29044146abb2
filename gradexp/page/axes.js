"use strict";
// The picture of sizes over layers: its axes, its bands, and the names at the ends of its lines.
const axes = (() => {
  const {svg, text, tenTo, ticksOf, WHOLE} = drawing;
  const LABEL = 31;  // height of two lines of text

  /* An empty picture, with what is needed to draw into it.
     options: width in pixels; low and high, log10 of the scale's ends; depth; float32, where that format ends, log10;
     stable: {centre, decades} or null; fromOutput: layers are counted from the output; title of the scale. */
  const frame = ({width, low, high, depth, float32, stable = null, fromOutput = false, title}) => {
    const labelled = width >= 620, room = Math.max(-low, high) < 100 ? 66 : 76;
    const box = {left: labelled ? 172 : 10, right: width - room, top: 14, bottom: Math.min(430, width * 0.62 + 90)};
    const height = box.bottom + 42, middle = (box.left + box.right) / 2;
    const x = (layer) => box.left + (box.right - box.left) * (depth > 1 ? (layer - 1) / (depth - 1) : 0.5);
    const y = (log10) => box.bottom - (box.bottom - box.top) * (log10 - low) / (high - low);
    const clipped = (log10) => Math.min(box.bottom, Math.max(box.top, y(log10)));
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img"});
    const add = (...elements) => picture.append(...elements);
    const names = [];  // of bands; they stand above the lines, and are added after them
    const band = (from, to, name) => {
      const [top, bottom] = [clipped(to), clipped(from)];
      if (bottom - top > 0.5) {
        add(svg("rect", {x: box.left, y: top, width: box.right - box.left, height: bottom - top, class: name}));
      }
      return bottom - top > 13 ? (top + bottom) / 2 + 4 : null;
    };
    if (stable) {
      const [from, to] = [stable.centre - stable.decades, stable.centre + stable.decades];
      band(from, to, "stable-band");
      // In a band too thin for it the name stands below.
      const [top, bottom] = [clipped(to), clipped(from)];
      names.push(text(labelled ? middle : box.right - 6, bottom - top > 60 ? top + 15 : bottom + 14,
        `stable: within ${stable.decades} powers of ten`,
        {class: "stable-text", "text-anchor": labelled ? "middle" : "end"}));
    }
    const {zero, smallest, infinite} = float32;
    for (const [from, to, words, kind] of [[zero, smallest, "float32 loses digits", "lossy-band"],
      [low, zero, "0 in float32", "zero-band"], [infinite, high, "inf in float32", "zero-band"]]) {
      const at = from < to ? band(from, to, kind) : null;
      if (at !== null) names.push(text(middle, at, words, {"text-anchor": "middle"}));
    }
    for (const tick of ticksOf(low, high, Math.max(3, (box.bottom - box.top) / 48), WHOLE)) {
      add(svg("line", {x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "grid"}));
      add(tenTo(box.right + 8, y(tick) + 4, tick));
    }
    const most = Math.max(2, (box.right - box.left) / 70);
    const between = ticksOf(0, depth, most, WHOLE).filter((tick) => tick > 1);
    const ticks = fromOutput ? ticksOf(0, depth - 1, most, WHOLE)
      : [1, ...between.filter((tick) => depth - tick > depth / 16), ...(depth > 1 ? [depth] : [])];
    for (const tick of ticks) {
      add(text(x(fromOutput ? depth - tick : tick), box.bottom + 17, String(tick), {"text-anchor": "middle"}));
    }
    add(text(middle, box.bottom + 36, fromOutput ? "layers below the output" : "layer (1 = input side)",
      {"text-anchor": "middle"}));
    add(text(0, 0, title,
      {transform: `translate(${width - 8} ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}));
    return {picture, width, box, x, y, clipped, add, names, labelled};
  };

  // How many names there is room for.
  const fits = (plot) => Math.floor((plot.box.bottom - plot.box.top) / LABEL);

  // Names stand to the left of the lines' ends, pushed apart: {name, value, kind, start, end}, the last two in pixels.
  const addLabels = ({add, box}, labels) => {
    const sorted = [...labels].sort((a, b) => a.end - b.end);
    let free = box.top - 6;
    for (const label of sorted) free = (label.y = Math.max(free, label.end - 14)) + LABEL;
    let limit = box.bottom + 6;
    for (const label of [...sorted].reverse()) limit = label.y = Math.min(label.y, limit - LABEL);
    for (const {name, value, kind, start, end, y} of sorted) {
      const short = name.length > 22 ? `${name.slice(0, 11)}…${name.slice(-10)}` : name;
      add(svg("path", {d: `M${Math.max(box.left, start) - 2} ${end}L${box.left - 9} ${y + 14}`, class: `leader ${kind}`}));
      add(svg("g", {class: kind},
        text(box.left - 13, y + 11, short, {class: "label-name", "text-anchor": "end"}),
        text(box.left - 13, y + 25, value, {class: "label-value", "text-anchor": "end"})));
    }
  };

  return {frame, fits, addLabels};
})();
