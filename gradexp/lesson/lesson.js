"use strict";
// Draws what the laws say while sliders move.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent), {inits, critical, marks} = data.lesson;
  const $ = (id) => document.getElementById(id);
  const {power, digits, svg, pathOf, formatsOf} = drawing;
  const MANY = 300;  // points of a line, more than which cannot be seen
  const word = (log10) => log10 < -data.decades ? "vanishing" : log10 > data.decades ? "exploding" : "stable";
  const badge = (name) => {
    const element = document.createElement("span");
    element.className = `badge ${name}`;
    element.textContent = `${marks[name]} ${name}`;
    return element;
  };
  const fixed = (value) => String(Number(value.toFixed(4)));
  // A text in which ^ begins an exponent, as nodes.
  const withPowers = (words) => words.split(/(\^[-+]?[\d.]*\d)/).map((part) => {
    if (!part.startsWith("^")) return part;
    const raised = document.createElement("sup");
    raised.textContent = part.slice(1).replace("+", "").replace("-", "−");
    return raised;
  });
  // A size in three digits.
  const written = (log10) => {
    const [head, exponent] = digits(log10).split("e");
    return Math.abs(exponent) < 4 ? String(Number((10 ** log10).toPrecision(3))) : `${head} · 10^${Number(exponent)}`;
  };

  // --- A picture ---------------------------------------------------------------------------------------------------

  // The scale holds still, so that it is the lines that move; it grows only where they would leave it.
  const rangeOf = (lines) => {
    const far = Math.max(50, ...lines.flatMap(({sizes}) => sizes.map(Math.abs)));
    return [-far * 1.03, far * 1.03];
  };
  // Lines of {name, kind, at, sizes, value}; the first is drawn last, on top of the others.
  const draw = (place, depth, title, lines) => {
    const width = Math.max(280, $(place).clientWidth), [low, high] = rangeOf(lines);
    const plot = axes.frame({width, low, high, depth, float32: data.float32, title,
      stable: {centre: 0, decades: data.decades}});
    for (const {kind, at, sizes} of [...lines].reverse()) {
      plot.add(svg("path", {d: pathOf(at, sizes, plot.x, plot.y), class: `run ${kind}`}));
    }
    plot.add(...plot.names);
    // A name stands where its line ends on the left.
    const labels = lines.map((line) => ({...line, start: plot.x(1), end: plot.clipped(line.sizes[0])}));
    if (plot.labelled) axes.addLabels(plot, labels);
    plot.picture.setAttribute("aria-label",
      `${title} over ${depth} layers. ${lines.map(({name, value}) => `${name}: ${value}`).join("; ")}`);
    $(place).replaceChildren(plot.picture);
    $(`${place}-legend`).replaceChildren(...plot.labelled ? [] : lines.map(({name, value, kind}) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      const said = document.createElement("span");
      item.className = kind;
      swatch.className = `swatch ${kind}`;
      said.className = "name";
      said.textContent = name;
      item.append(swatch, said, value);
      return item;
    }));
  };
  const some = (depth) => {
    const stride = Math.max(1, Math.ceil(depth / MANY)), layers = [];
    for (let layer = 1; layer < depth; layer += stride) layers.push(layer);
    return [...layers, depth];
  };
  const atFirst = (log10) => `${power(log10)} at layer 1`;

  // A slider and a field for the same depth; the field goes further.
  const depthOf = (name, changed) => {
    const slider = $(name), field = $(`${name}-number`);
    let depth = Number(slider.value);
    slider.addEventListener("input", () => { field.value = depth = Number(slider.value); changed(); });
    field.addEventListener("input", () => {
      const asked = Number(field.value), isDepth = Number.isInteger(asked) && asked >= 2 && asked <= Number(field.max);
      field.setAttribute("aria-invalid", String(!isDepth));
      if (!isDepth) return;
      slider.value = depth = asked;
      changed();
    });
    field.addEventListener("change", () => { field.value = depth; field.setAttribute("aria-invalid", "false"); });
    return () => depth;
  };

  // --- λ -----------------------------------------------------------------------------------------------------------

  const powersDepth = depthOf("power-depth", () => drawPowers());
  const drawPowers = () => {
    const lambda = Number($("lambda").value), depth = powersDepth(), at = some(depth), log = Math.log10(lambda);
    const {outputs, gradients} = laws.powers(lambda, depth, at), left = gradients[0], last = outputs[at.length - 1];
    const value = `${lambda.toFixed(3)}, so λ^${depth - 1} = ${power(left)}`;
    $("lambda-value").replaceChildren(...withPowers(value));
    $("lambda").setAttribute("aria-valuetext", value);
    draw("powers", depth, "size", [
      {name: "gradient", kind: "c0", at, sizes: gradients, value: atFirst(left)},
      {name: "output", kind: "c1", at, sizes: outputs, value: `${power(last)} at layer ${depth}`},
    ]);
    $("power-facts").replaceChildren(badge(word(left)), ...withPowers(` At layer 1 the gradient is λ^${depth - 1} = ` +
      `${written(left)}. The output of the last layer is λ^${depth} = ${written(last)}.`));
    $("power-formats").textContent = formatsOf(log, depth);
  };
  $("lambda").addEventListener("input", drawPowers);
  for (const button of document.querySelectorAll(".preset")) {
    button.addEventListener("click", () => { $("lambda").value = button.dataset.lambda; drawPowers(); });
  }

  // --- Random weights ----------------------------------------------------------------------------------------------

  // The sliders have steps; an initialisation's variances need not lie on them.
  const weights = {init: "he", sigma_w2: inits.he.sigma_w2, sigma_b2: inits.he.sigma_b2};
  const fieldDepth = depthOf("field-depth", () => drawField());
  const choose = (init, variances) => {
    Object.assign(weights, {init}, variances);
    $("init").value = init;
    $("sigma-w2").value = weights.sigma_w2;
    $("sigma-b2").value = weights.sigma_b2;
    drawField();
  };
  const drawField = () => {
    const activation = $("activation").value, depth = fieldDepth(), at = some(depth);
    const profile = ({sigma_w2, sigma_b2}) => laws.meanField({activation, sigma_w2, sigma_b2, depth});
    const line = (name, kind, {gradients}) =>
      ({name, kind, at, sizes: at.map((layer) => gradients[layer - 1]), value: atFirst(gradients[0])});
    const own = profile(weights), left = own.gradients[0];
    const others = Object.entries(inits).map(([key, init], i) => [key, line(init.name, `faint c${i}`, profile(init))]);
    const isNamed = weights.init in inits;
    draw("field", depth, "size of the gradient", [
      line(isNamed ? inits[weights.init].name : "yours", "yours", own),
      ...others.filter(([key]) => key !== weights.init).map(([, other]) => other),
    ]);
    for (const key of ["sigma-w2", "sigma-b2"]) {
      $(`${key}-value`).textContent = fixed(weights[key.replace("-", "_")]);
      $(key).setAttribute("aria-valuetext", $(`${key}-value`).textContent);
    }
    const factor = 10 ** (left / (depth - 1));
    const arrives = Math.abs(left) < 0.05 ? "All of it arrives at layer 1."
      : left < 0 ? `Only ${power(left)} of it arrives at layer 1.`
        : `At layer 1 it is ${power(left)} times as large as at the last layer.`;
    $("field-facts").replaceChildren(badge(word(left)),
      ...withPowers(` On average, each layer multiplies the gradient by ${factor.toFixed(3)}. ${arrives}`));
    const option = $("init").querySelector("[value=critical]");
    const right = critical[activation];
    option.disabled = !isReached(activation);
    option.textContent = right === undefined ? "just right (there is none)"
      : `just right (${isReached(activation) ? "σ_w² =" : "takes σ_w² ="} ${right.toPrecision(3)})`;
  };
  const isReached = (activation) => critical[activation] <= Number($("sigma-w2").max);
  const CHOSEN = {
    critical: () => ({sigma_w2: critical[$("activation").value], sigma_b2: 0}),
    own: () => ({}),
  };
  const chosen = () => {
    const init = $("init").value;
    choose(init, init in inits ? inits[init] : CHOSEN[init]());
  };
  $("init").addEventListener("change", chosen);
  $("activation").addEventListener("change", () => {
    if (weights.init !== "critical") return drawField();
    // What keeps the gradient depends on the activation.
    isReached($("activation").value) ? chosen() : choose("own", {});
  });
  for (const key of ["sigma-w2", "sigma-b2"]) {
    $(key).addEventListener("input", () => choose("own", {[key.replace("-", "_")]: Number($(key).value)}));
  }

  // --- Begin -------------------------------------------------------------------------------------------------------

  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = document.documentElement.clientWidth;
    if (width !== drawnWidth) { drawnWidth = width; drawPowers(); drawField(); }
  }).observe(document.documentElement);
  drawPowers();
  choose("he", inits.he);
})();
