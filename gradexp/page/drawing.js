"use strict";
// What the charts share: sizes as they are packed and as they are written, and shapes of SVG.
const drawing = (() => {
  // A size is a number, "0" for exactly 0, "inf" for inf or nan, or null if it was not seen.
  const sizeOf = (code) => code === -32768 ? "0" : code === 32767 ? "inf" : code === -32767 ? null : code / 100;
  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({length: bytes.length / 2}, (_, i) => sizeOf(view.getInt16(2 * i, true)));
  };
  const isNumber = (value) => typeof value === "number";
  const lastBefore = (values, value) => {
    let at = -1;
    while (at + 1 < values.length && values[at + 1] <= value) at++;
    return at;
  };
  const power = (log10) => {
    const rounded = Math.round(log10 * 10) / 10 + 0;
    return `10^${rounded < 0 ? "-" : "+"}${Math.abs(rounded).toFixed(1)}`;
  };
  // A size in three digits, which may be far outside of what a number holds.
  const digits = (log10) => {
    let exponent = Math.floor(log10), head = (10 ** (log10 - exponent)).toFixed(2);
    if (head === "10.00") [head, exponent] = ["1.00", exponent + 1];
    return `${head}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  };
  const inWords = (size) => isNumber(size) ? power(size) : size === "0" ? "exactly 0" : size === "inf" ? "inf or nan"
    : "not seen";

  // That of the place of the chart, so that it need not be spelled out as an address.
  const namespace = document.querySelector("svg")?.namespaceURI;
  const svg = (name, attributes = {}, ...content) => {
    const element = document.createElementNS(namespace, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...content.filter((part) => part !== null && part !== undefined));
    return element;
  };
  const text = (x, y, words, attributes = {}) => svg("text", {x, y, ...attributes}, words);
  const tenTo = (x, y, exponent, attributes = {}) => svg("text", {x, y, ...attributes}, "10",
    svg("tspan", {dy: "-0.45em", "font-size": "75%"}, String(exponent).replace("-", "−")));
  const ticksOf = (low, high, most, sizes) => {
    const size = sizes.find((each) => (high - low) / each <= most) || Math.ceil((high - low) / most);
    const ticks = [];
    for (let tick = Math.ceil(low / size) * size; tick <= high; tick += size) ticks.push(Math.round(tick * 1e6) / 1e6);
    return ticks;
  };
  const WHOLE = [1, 2, 3, 5, 10, 15, 20, 25, 30, 50, 100, 200, 250, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
  // A path that breaks where there is no number; a number alone is a dot.
  const pathOf = (layers, sizes, x, y) => {
    let path = "", begins = true;
    sizes.forEach((size, i) => {
      if (!isNumber(size)) { begins = true; return; }
      path += `${begins ? "M" : "L"}${x(layers[i]).toFixed(1)} ${y(size).toFixed(1)}`;
      if (begins && !isNumber(sizes[i + 1])) path += "h.1";
      begins = false;
    });
    return path;
  };
  const bandOf = (layers, low, high, x, y) => {
    const there = layers.map((_, i) => i).filter((i) => isNumber(low[i]) && isNumber(high[i]));
    const along = (order, sizes) => order.map((i) => `${x(layers[i]).toFixed(1)} ${y(sizes[i]).toFixed(1)}`);
    return there.length < 2 ? "" : `M${[...along(there, high), ...along(there.reverse(), low)].join("L")}Z`;
  };
  // From which layer on the outputs of layers that multiply by λ are lost, given log10 λ. The numbers are the powers of
  // two at which each format gives up; a tie rounds out of the range.
  const FORMATS = {float32: [150, 128], float16: [25, 16], bfloat16: [134, 128]};
  const formatsOf = (log10, depth) => {
    const bits = log10 * Math.log2(10);
    const facts = Object.entries(FORMATS).map(([format, [zero, infinite]]) => {
      const layer = bits < 0 ? Math.ceil(zero / -bits - 1e-9) : bits > 0 ? Math.ceil(infinite / bits - 1e-9) : Infinity;
      return layer <= depth ? `${bits < 0 ? "0" : "inf"} in ${format} from layer ${layer} on` : `fine in ${format}`;
    });
    return `The outputs are ${facts.join(", ")}.`;
  };

  return {unpack, isNumber, lastBefore, power, digits, inWords, svg, text, tenTo, ticksOf, WHOLE, pathOf, bandOf, formatsOf};
})();
