"use strict";
// What deep networks do to a gradient at initialisation, in log10, computed while a slider moves. gradexp.theory has
// the same laws in Python, and the tests compare the two.
const laws = (() => {
  // --- Activations: φ, its slope, and the u at which it bends, beside 0 ------------------------------------------------

  // A series of positive terms: no digit is lost.
  const erf = (x) => {
    if (Math.abs(x) > 6) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= 2 * x * x / (2 * n + 1);
    return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
  };
  const density = (u) => Math.exp(-u * u / 2) / Math.sqrt(2 * Math.PI);
  const share = (u) => (1 + erf(u / Math.SQRT2)) / 2;
  const sigmoid = (u) => 1 / (1 + Math.exp(-u));
  const softplus = (u) => u > 40 ? u : Math.log1p(Math.exp(u));
  const broken = (below) => ({phi: (u) => u < 0 ? below * u : u, slope: (u) => u < 0 ? below : 1});
  const exponential = (scale, alpha) => ({
    phi: (u) => scale * (u < 0 ? alpha * Math.expm1(u) : u),
    slope: (u) => scale * (u < 0 ? alpha * Math.exp(u) : 1),
  });
  const ACTIVATIONS = {
    linear: broken(1),
    relu: broken(0),
    leaky_relu: broken(0.01),
    tanh: {phi: Math.tanh, slope: (u) => 1 / Math.cosh(u) ** 2},
    sigmoid: {phi: sigmoid, slope: (u) => sigmoid(u) * sigmoid(-u)},
    gelu: {phi: (u) => u * share(u), slope: (u) => share(u) + u * density(u)},
    silu: {phi: (u) => u * sigmoid(u), slope: (u) => sigmoid(u) * (1 + u * sigmoid(-u))},
    elu: exponential(1, 1),
    selu: exponential(1.0507009873554805, 1.6732632423543772),
    softplus: {phi: softplus, slope: sigmoid},
    softsign: {phi: (u) => u / (1 + Math.abs(u)), slope: (u) => 1 / (1 + Math.abs(u)) ** 2},
    hard_tanh: {phi: (u) => Math.max(-1, Math.min(1, u)), slope: (u) => Math.abs(u) < 1 ? 1 : 0, kinks: [1]},
    erf: {phi: erf, slope: (u) => 2 / Math.sqrt(Math.PI) * Math.exp(-u * u)},
  };

  // --- Averages over u from N(0, q) ----------------------------------------------------------------------------------

  // Gauss-Legendre points and weights on [-1, 1], by Newton's method.
  const POINTS = 16;
  const RULE = Array.from({length: POINTS}, (_, i) => {
    let x = Math.cos(Math.PI * (i + 0.75) / (POINTS + 0.5)), slope = 1;
    for (let turn = 0; turn < 8; turn++) {
      let [before, value] = [1, x];
      for (let n = 2; n <= POINTS; n++) [before, value] = [value, ((2 * n - 1) * x * value - (n - 1) * before) / n];
      slope = POINTS * (x * value - before) / (x * x - 1);
      x -= value / slope;
    }
    return [x, 2 / ((1 - x * x) * slope * slope)];
  });
  const EDGE = 12;  // standard deviations, beyond which lies 1e-32

  // Panels on z = |u| / √q that grow geometrically: the innermost show features of u of size 1, however large q is.
  const breaks = (scale, kinks) => {
    const ends = [0];
    for (let end = Math.min(scale, 1) / 8; end < 1; end *= 2) ends.push(end);
    for (let end = 1; end < EDGE; end *= 1.5) ends.push(end);
    ends.push(EDGE, ...kinks.map((kink) => kink * scale).filter((end) => end < EDGE));
    return ends.sort((a, b) => a - b);
  };
  // E φ² and E φ'².
  const moments = ({phi, slope, kinks = []}, q) => {
    const root = Math.sqrt(q), ends = breaks(1 / root, kinks);
    let square = 0, slope2 = 0;
    for (let i = 1; i < ends.length; i++) {
      const middle = (ends[i] + ends[i - 1]) / 2, half = (ends[i] - ends[i - 1]) / 2;
      for (const [at, weight] of RULE) {
        const z = middle + half * at, w = half * weight * density(z);
        for (const u of [root * z, -root * z]) {
          square += w * phi(u) ** 2;
          slope2 += w * slope(u) ** 2;
        }
      }
    }
    return {square, slope2};
  };

  // --- Laws ----------------------------------------------------------------------------------------------------------

  // Layers of λ times the identity, exactly: the output of layer l is λ^l, its gradient λ^(depth - l).
  const powers = (lambda, depth, layers) => {
    const log = Math.log10(lambda);
    return {outputs: layers.map((layer) => layer * log), gradients: layers.map((layer) => (depth - layer) * log)};
  };

  // A length q beyond these changes no average any more: there φ follows straight lines.
  const inRange = (q) => Math.min(1e200, Math.max(1e-200, q));
  /* Random weights, in the limit of wide layers (mean field), for inputs of mean square 1:
     q¹ = sigma_w2 + sigma_b2, qˡ⁺¹ = sigma_w2 E φ² + sigma_b2, and ‖δˡ‖² / ‖δˡ⁺¹‖² = χˡ = sigma_w2 E φ'².
     Returns q and χ of layers 1 to depth - 1, and log10 of the gradient's size in layers 1 to depth. */
  const meanField = ({activation, sigma_w2, sigma_b2, depth}) => {
    const lengths = [], chis = [];
    let q = inRange(sigma_w2 + sigma_b2), at = null, known = null;
    for (let layer = 1; layer < depth; layer++) {
      if (at === null || Math.abs(q - at) > 1e-15 * q) [at, known] = [q, moments(ACTIVATIONS[activation], q)];
      lengths.push(q);
      chis.push(sigma_w2 * known.slope2);
      q = inRange(sigma_w2 * known.square + sigma_b2);
    }
    const gradients = new Array(depth).fill(0);
    for (let i = depth - 2; i >= 0; i--) gradients[i] = gradients[i + 1] + Math.log10(chis[i]) / 2;
    return {lengths, chis, gradients};
  };

  return {ACTIVATIONS, powers, meanField};
})();
