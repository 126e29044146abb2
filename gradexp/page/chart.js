"use strict";
// Draws the gradient over layers and the loss beside it, as SVG, from the data that the page holds. No library: what
// is drawn is a handful of paths, and a picture of vectors prints, scales and follows dark mode by its style sheet.
(() => {
  const store = document.getElementById("data");
  if (!store) return;
  const data = JSON.parse(store.textContent);
  const $ = (id) => document.getElementById(id);
  const FEW = 12;
  const {unpack, isNumber, lastBefore, power, digits, inWords, svg, text, tenTo, ticksOf, WHOLE, pathOf, bandOf, formatsOf} =
    drawing;

  // --- The numbers -------------------------------------------------------------------------------------------------

  const lines = data.lines.map((line, index) => {
    const courses = {};
    for (const [quantity, text] of Object.entries(line.course || {})) courses[quantity] = unpack(text);
    return {...line, index, courses, shown: true};
  });
  // Networks of several depths are laid with their outputs one upon the other.
  const depth = Math.max(...lines.map((line) => line.depth));
  const fromOutput = lines.some((line) => line.depth !== depth);
  const placed = (line, layers) => fromOutput ? layers.map((layer) => layer + depth - line.depth) : layers;
  const steps = [...new Set(lines.flatMap((line) => line.steps || []))].sort((a, b) => a - b);
  const frames = [...(lines.some((line) => line.initial) ? [null] : []), ...steps];
  const state = {frame: 0, quantity: $("quantity").value, theory: true, near: null};

  // What is drawn of a line: at initialisation where step is null, else what was recorded last before that step.
  const curve = (line, step = frames[state.frame]) => {
    if (step === null) {
      const sizes = line.initial && line.initial[state.quantity];
      return sizes && {layers: line.layers, at: placed(line, line.layers), sizes};
    }
    const course = line.courses[state.quantity];
    const at = course ? lastBefore(line.steps, step) : -1;
    if (at < 0) return undefined;
    const layers = line.courseLayers;
    return {layers, at: placed(line, layers), sizes: course.slice(at * layers.length, (at + 1) * layers.length)};
  };
  // The end of a line: at the input, or at the first layer that was seen.
  const endOf = (drawn) => {
    const at = drawn ? drawn.sizes.findIndex((size) => size !== null) : -1;
    return at < 0 ? null : {layer: drawn.layers[at], size: drawn.sizes[at]};
  };
  const endText = (drawn) => {
    const end = endOf(drawn);
    if (!end) return drawn ? "not seen" : "";
    let last = drawn.layers.indexOf(end.layer);
    while (!isNumber(end.size) && drawn.sizes[last + 1] === end.size) last++;
    const to = drawn.layers[last];
    return inWords(end.size) + (to > end.layer ? `: layers ${end.layer}-${to}` : ` at layer ${end.layer}`);
  };

  const colour = (line) => `c${line.colour}`;

  // --- The gradient over layers ------------------------------------------------------------------------------------

  const factor = $("factor");
  const lambda = () => Math.log10(Number($("lambda").value));
  // Where the middle of the stable band is: at the output's gradient of the lines that are drawn.
  const reference = (curves) => {
    const ends = curves.map((drawn) => drawn.sizes.findLast(isNumber)).filter(isNumber).sort((a, b) => a - b);
    return ends.length ? ends[Math.floor(ends.length / 2)] : 0;
  };
  // The scale is the same at all steps, so that it is the lines that move.
  const rangeOf = (shown) => {
    let low = Infinity, high = -Infinity;
    if (state.quantity === "output_grad") {
      for (const step of [frames[0], frames[frames.length - 1]]) {
        const centre = reference(shown.map((line) => curve(line, step)).filter(Boolean));
        [low, high] = [Math.min(low, centre - data.decades - 0.25), Math.max(high, centre + data.decades + 0.25)];
      }
    }
    const add = (sizes) => sizes.forEach((size) => {
      if (isNumber(size)) { low = Math.min(low, size); high = Math.max(high, size); }
    });
    for (const line of shown) {
      if (line.initial && line.initial[state.quantity]) add(line.initial[state.quantity]);
      if (line.courses[state.quantity]) add(line.courses[state.quantity]);
      if (state.theory && line.theory && line.theory[state.quantity]) add(line.theory[state.quantity]);
    }
    if (low > high) [low, high] = [-3, 3];
    const wide = Math.max(6, high - low);  // at least six powers of ten, or noise would look like a trend
    [low, high] = [Math.min(low, (low + high - wide) / 2), Math.max(high, (low + high + wide) / 2)];
    // The end of float32 is shown as soon as a line comes near.
    if (low < -36) low = Math.min(low, data.float32.zero - 2);
    if (high > 36) high = Math.max(high, data.float32.infinite + 2);
    return [low - wide * 0.02, high + wide * 0.02];
  };

  let plot = null;  // where things are, for the pointer
  const drawProfile = () => {
    const place = $("profile"), width = Math.max(280, place.clientWidth);
    const shown = lines.filter((line) => line.shown);
    const drawn = shown.map((line) => ({line, ...curve(line)})).filter((each) => each.sizes);
    const [low, high] = rangeOf(shown);
    const hasNumbers = !drawn.length || drawn.some((each) => each.sizes.some(isNumber));
    const isGradient = state.quantity === "output_grad" && hasNumbers;
    plot = axes.frame({width, low, high, depth, float32: data.float32, fromOutput,
      stable: isGradient ? {centre: reference(drawn), decades: data.decades} : null,
      title: `size of the ${$("quantity").selectedOptions[0].textContent}`});
    plot.drawn = drawn;
    const {picture, box, x, y, add} = plot;

    const initial = frames[state.frame] === null, q = state.quantity;
    for (const {line} of drawn) {
      if (!initial) continue;
      const own = [];
      if (line.low && line.low[q]) own.push([line.low[q], line.high[q]]);
      if (state.theory && q === "output_grad" && line.spread && line.theory && line.theory[q] && shown.length <= FEW) {
        const edge = (sign) => line.theory[q].map((size, i) => isNumber(size) ? size + sign * 2 * line.spread[i] : null);
        own.push([edge(-1), edge(1)]);
      }
      for (const [from, to] of own) {
        add(svg("path", {d: bandOf(placed(line, line.layers), from, to, x, y), class: `band ${colour(line)}`}));
      }
    }
    for (const {line, at, sizes} of drawn) {
      const before = !initial && shown.length <= FEW ? curve(line, (line.steps || [])[0]) : null;
      if (before) {
        add(svg("path", {d: pathOf(before.at, before.sizes, x, y), class: `past ${colour(line)}`}));
      }
      const kind = `run ${colour(line)}${shown.length > FEW ? " many" : ""}${state.near === line ? " near" : ""}`;
      add(svg("path", {d: pathOf(at, sizes, x, y), class: kind, "data-line": line.index}));
      // A size without a logarithm stands at the edge: 0 at the foot, inf or nan at the top.
      const wide = Math.max(2, (box.right - box.left) / Math.max(1, at.length - 1));
      sizes.forEach((size, i) => {
        if (size !== "0" && size !== "inf") return;
        add(svg("rect", {x: x(at[i]) - wide / 2, y: size === "0" ? box.bottom - 5 : box.top, width: wide, height: 5,
          class: `mark ${colour(line)}`, "data-size": size}));
      });
    }
    if (initial && state.theory) {
      for (const {line} of drawn) {
        const predicted = line.theory && line.theory[q];
        if (predicted) add(svg("path", {d: pathOf(placed(line, line.layers), predicted, x, y), class: "theory"}));
      }
    }
    const labels = drawn.map((each) => ({...each, name: each.line.name, value: endText(each), kind: colour(each.line)}));
    if (factor && q === "output_grad") {
      const ends = [1, depth], sizes = ends.map((layer) => (depth - layer) * lambda());
      const inside = (size) => Math.min(high, Math.max(low, size));
      // Where the line leaves the picture it ends.
      const last = lambda() ? depth - inside(sizes[0]) / lambda() : 1;
      add(svg("path", {d: pathOf([last, depth], [inside(sizes[0]), 0], x, y), class: "factor", id: "factor-line"}));
    }
    add(...plot.names);
    if (plot.labelled) addLabels(labels);
    picture.setAttribute("aria-label", summary(labels));
    const theory = initial && state.theory && drawn.some(({line}) => line.theory && line.theory[q]);
    const dotted = picture.querySelector(".past"), round = picture.querySelector(".factor");
    $("reading").textContent = ["Read from right (output) to left (input): falling = vanishing, rising = exploding.",
      theory ? "Dashed: theory, with a band of two standard deviations of one network." : "",
      dotted ? "Dotted: the first recorded step." : "", round ? "Dots: λ^(depth − layer)." : ""].join(" ");
    place.replaceChildren(picture);
    for (const line of lines) {
      const end = document.querySelector(`[data-line="${line.index}"]`).closest("label").querySelector(".end");
      end.textContent = line.shown ? endText(curve(line)) : "";
    }
  };

  const summary = (labels) => {
    const said = labels.slice(0, FEW).map(({name, value}) => `${name}: ${value}`);
    const more = labels.length > FEW ? `; and ${labels.length - FEW} more` : "";
    return `${$("quantity").selectedOptions[0].textContent} over layers, ${when()}. ${said.join("; ")}${more}`;
  };

  // Of too many names only that near the pointer.
  const addLabels = (labels) => {
    const chosen = labels.length > axes.fits(plot) ? labels.filter(({line}) => line === state.near) : labels;
    axes.addLabels(plot, chosen.filter(endOf).map((label) => {
      const {size} = endOf(label), {box} = plot;
      const end = size === "0" ? box.bottom - 3 : size === "inf" ? box.top + 3 : plot.clipped(size);
      return {...label, start: plot.x(label.at[0]), end};
    }));
  };

  // --- The pointer -------------------------------------------------------------------------------------------------

  const point = (event) => {
    if (!plot || !plot.drawn.length) return;
    const {picture, box, x, y, drawn, width} = plot;
    const frame = picture.getBoundingClientRect();
    const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
    if (px < box.left - 8 || px > box.right + 8) return leave();
    let best = null;
    for (const each of drawn) {
      let near = 0;
      each.at.forEach((layer, i) => { if (Math.abs(x(layer) - px) < Math.abs(x(each.at[near]) - px)) near = i; });
      const size = each.sizes[near];
      const height = isNumber(size) ? y(size) : size === "inf" ? box.top : box.bottom;
      const far = Math.hypot(height - py, x(each.at[near]) - px);
      if (!best || far < best.far) best = {...each, near, size, height, far};
    }
    if (state.near !== best.line) { state.near = best.line; drawProfile(); }
    const layer = best.layers[best.near], across = x(best.at[best.near]), q = state.quantity;
    const predicted = frames[state.frame] === null && best.line.theory && best.line.theory[q]
      ? `, theory ${inWords(best.line.theory[q][best.near])}` : "";
    const named = data.names[layer - 1] ? ` (${data.names[layer - 1]})` : "";
    const words = [`${best.line.name}, layer ${layer}${named}`,
      `${isNumber(best.size) ? digits(best.size) : inWords(best.size)}${predicted}`];
    const wide = Math.min(width - 8, 14 + 6.7 * Math.max(...words.map((line) => line.length)));
    const left = Math.max(4, Math.min(width - wide - 4, across - wide / 2));
    const top = best.height > box.top + 60 ? best.height - 52 : best.height + 12;
    plot.picture.querySelector("#tip")?.remove();
    plot.picture.append(svg("g", {id: "tip", "pointer-events": "none"},
      svg("circle", {cx: across, cy: best.height, r: 4.5, class: `mark ${colour(best.line)}`}),
      svg("rect", {x: left, y: top, width: wide, height: 40, rx: 5, class: "tip"}),
      text(left + 8, top + 16, words[0], {class: "tip-text"}), text(left + 8, top + 32, words[1], {class: "tip-text"})));
  };
  const leave = () => {
    if (state.near) { state.near = null; drawProfile(); }
  };

  // --- The loss ----------------------------------------------------------------------------------------------------

  const withLoss = () => lines.filter((line) => line.shown && line.losses && line.losses.some(isNumber));
  const drawLoss = () => {
    const place = $("loss"), width = Math.max(240, place.clientWidth), shown = withLoss();
    const wide = window.matchMedia("(min-width:1000px)").matches;
    const box = {left: 46, right: width - 12, top: 26, bottom: wide && plot ? plot.box.bottom : 190};
    const height = box.bottom + 42;
    const values = shown.flatMap((line) => [...line.losses, line.guessing]).filter(isNumber);
    const guessing = shown.map((line) => line.guessing).find(isNumber);
    const top = (line) => Math.max(...line.losses.filter(isNumber));
    // One loss that explodes is not to press those that learn to the floor: it leaves the picture at the top.
    const far = shown.filter((line) => guessing > 0 && top(line) > 100 * guessing);
    const most = far.length && far.length < shown.length ? 2 * guessing : Infinity;
    const highest = Math.min(most, Math.max(...values));
    const logarithmic = values.length && highest > 100 * Math.max(...shown.map((line) => line.losses[0] || 1));
    const scale = (loss) => logarithmic ? Math.log10(Math.max(loss, 1e-12)) : Math.min(loss, most);
    let low = logarithmic ? Math.min(...values.map(scale)) : 0, high = Math.max(...values.map(scale), low + 1e-9);
    high += (high - low) * 0.06;
    const end = Math.max(1, ...lines.flatMap((line) => line.lossSteps || []), ...steps);
    const x = (step) => box.left + (box.right - box.left) * step / end;
    const y = (loss) => box.bottom - (box.bottom - box.top) * (scale(loss) - low) / (high - low || 1);
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, height, role: "img"});
    const add = (...elements) => picture.append(...elements);
    const FINE = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, ...WHOLE];
    for (const tick of values.length ? ticksOf(low, high, 5, logarithmic ? WHOLE : FINE) : []) {
      const at = y(logarithmic ? 10 ** tick : tick);
      add(svg("line", {x1: box.left, x2: box.right, y1: at, y2: at, class: "grid"}));
      add(logarithmic ? tenTo(box.left - 28, at + 4, tick)
        : text(box.left - 8, at + 4, String(tick), {"text-anchor": "end"}));
    }
    const between = ticksOf(0, end, Math.max(2, width / 80), WHOLE).filter((tick) => end - tick > end / 8);
    for (const tick of [...between, end]) {
      add(text(x(tick), box.bottom + 17, String(tick), {"text-anchor": "middle"}));
    }
    add(text((box.left + box.right) / 2, box.bottom + 36, "training step", {"text-anchor": "middle"}));
    add(text(box.left, 14, "loss"));
    const step = frames[state.frame];
    if (guessing !== undefined) {
      add(svg("path", {d: `M${box.left} ${y(guessing)}H${box.right}`, class: "guess"}));
    }
    for (const line of shown) {
      const kind = `run ${colour(line)}${shown.length > FEW ? " many" : ""}`;
      add(svg("path", {d: pathOf(line.lossSteps, line.losses, x, y), class: kind}));
    }
    if (guessing !== undefined) {
      add(text(box.right - 5, y(guessing) - 5, `guessing ${guessing.toFixed(2)}`,
        {"text-anchor": "end", class: "tip-text"}));
    }
    (most < Infinity ? far.slice(0, 3) : []).forEach((line, i) => {
      const at = x(line.lossSteps[line.losses.findIndex((loss) => loss > most)]);
      const words = `↑ ${line.name.slice(0, 22)}: ${digits(Math.log10(top(line)))}`;
      add(svg("g", {class: colour(line)}, text(at + 8, box.top + 12 + 16 * i, words, {class: "label-name beyond"})));
      add(svg("circle", {cx: at, cy: y(most), r: 4.5, class: `mark ${colour(line)}`}));
    });
    if (isNumber(step)) {
      add(svg("line", {x1: x(step), x2: x(step), y1: box.top - 6, y2: box.bottom, class: "now", id: "now"}));
      for (const line of shown.length > FEW ? [] : shown) {
        const loss = line.losses[lastBefore(line.lossSteps, step)];
        if (isNumber(loss)) add(svg("circle", {cx: x(step), cy: y(loss), r: 4.5, class: `mark ${colour(line)}`}));
      }
    }
    picture.setAttribute("aria-label", `loss over training steps, ${when()}. ${shown.slice(0, FEW)
      .map((line) => `${line.name}: ${lossAt(line, step)}`).join("; ")}`);
    place.replaceChildren(picture);
  };
  const lossAt = (line, step) => {
    const at = step === null ? 0 : lastBefore(line.lossSteps, step), loss = line.losses[at];
    return isNumber(loss) ? loss.toFixed(2) : "not finite";
  };

  // --- Steps -------------------------------------------------------------------------------------------------------

  const when = () => frames[state.frame] === null ? data.first : `training step ${frames[state.frame]}`;
  const draw = () => {
    drawProfile();
    if (!$("loss-figure").hidden) drawLoss();
    const shown = withLoss(), step = frames[state.frame];
    const loss = shown.length === 1 && step !== null ? `: loss ${lossAt(shown[0], step)}` : "";
    $("when").textContent = when() + loss;
    $("step").setAttribute("aria-valuetext", when() + loss);
  };
  const go = (frame) => {
    state.frame = Math.max(0, Math.min(frames.length - 1, frame));
    $("step").value = state.frame;
    draw();
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    $("play").textContent = "▶ play";
    $("when").setAttribute("aria-live", "polite");
  };
  const play = () => {
    if (timer) return stop();
    if (state.frame === frames.length - 1) go(0);
    // Whoever asked for less motion gets ten pictures, one a second.
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const stride = calm ? Math.max(1, Math.ceil(frames.length / 10)) : 1;
    $("play").textContent = "❚❚ pause";
    $("when").setAttribute("aria-live", "off");
    timer = setInterval(() => {
      go(state.frame + stride);
      if (state.frame === frames.length - 1) stop();
    }, calm ? 1000 : Math.max(40, Math.min(400, 7000 / frames.length)));
  };

  // --- λ -----------------------------------------------------------------------------------------------------------

  const drawFactor = () => {
    const log = lambda(), value = Number($("lambda").value), layers = Number(factor.dataset.depth);
    $("lambda-value").textContent = `λ = ${value.toFixed(3)}: λ^${layers - 1} = ${power((layers - 1) * log)}`;
    $("lambda").setAttribute("aria-valuetext", $("lambda-value").textContent);
    for (const [row, exponent] of [["outputs", (layer) => layer], ["gradients", (layer) => layers - layer]]) {
      for (const cell of document.querySelectorAll(`#${row} [data-power]`)) {
        cell.textContent = digits(exponent(Number(cell.dataset.power)) * log);
      }
    }
    $("formats").textContent = formatsOf(log, layers);
    drawProfile();
  };

  // --- Begin -------------------------------------------------------------------------------------------------------

  $("chart").hidden = false;
  $("which").hidden = $("quantity").options.length < 2;
  $("many").hidden = lines.length <= FEW;
  $("theory-tick").hidden = !lines.some((line) => line.theory);
  $("loss-figure").hidden = !withLoss().length;
  $("player").hidden = frames.length < 2;
  $("step").max = frames.length - 1;
  const ticks = [...document.querySelectorAll(".ticks input")];
  const look = () => { ticks.forEach((tick, i) => { lines[i].shown = tick.checked; }); draw(); };
  ticks.forEach((tick) => tick.addEventListener("change", look));
  for (const [id, checked] of [["all", true], ["none", false]]) {
    $(id).addEventListener("click", () => { ticks.forEach((tick) => { tick.checked = checked; }); look(); });
  }
  // A number has to be a word of the name: 10 is not to find 100.
  $("only").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/[\s,=]+/).filter(Boolean);
    ticks.forEach((tick, i) => {
      const own = lines[i].name.toLowerCase().split(/[\s,]+/);
      tick.checked = words.every((word) => own.some((each) => isNaN(word) ? each.startsWith(word) : each === word));
      tick.closest("label").hidden = !tick.checked;
    });
    look();
  });
  $("theory").addEventListener("change", (event) => { state.theory = event.target.checked; draw(); });
  $("quantity").addEventListener("change", (event) => { state.quantity = event.target.value; draw(); });
  $("step").addEventListener("input", (event) => { if (timer) stop(); go(Number(event.target.value)); });
  $("play").addEventListener("click", play);
  $("profile").addEventListener("pointermove", point);
  $("profile").addEventListener("pointerleave", leave);
  if (factor) {
    factor.hidden = false;
    $("lambda").addEventListener("input", drawFactor);
    drawFactor();
  }
  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = document.documentElement.clientWidth;
    if (width !== drawnWidth) { drawnWidth = width; draw(); }
  }).observe(document.documentElement);
  go(0);
})();
