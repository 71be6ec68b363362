// Chapter 00: a line is fitted to a few measured numbers, one step of training at a time.
"use strict";
{
  // The loss is the mean of (b + w·x − y)², and `at` is [b, w]. `rule` is 0 for a plain step and 1 for one of AdamW, without decay.
  const loss = (points, [b, w]) => points.reduce((sum, [x, y]) => sum + (b + w * x - y) ** 2, 0) / points.length;
  const slopes = (points, [b, w]) => [0, 1].map(
    (i) => points.reduce((sum, [x, y]) => sum + 2 * (b + w * x - y) * (i ? x : 1), 0) / points.length,
  );
  const step = (points, state, rule, rate) => {
    const g = slopes(points, state.at), t = state.t + 1;
    const m = g.map((slope, i) => 0.9 * state.m[i] + 0.1 * slope), v = g.map((slope, i) => 0.999 * state.v[i] + 0.001 * slope ** 2);
    const moves = rule ? m.map((mean, i) => mean / (1 - 0.9 ** t) / (Math.sqrt(v[i] / (1 - 0.999 ** t)) + 1e-8)) : g;
    return { at: state.at.map((value, i) => value - rate * moves[i]), m, v, t };
  };
  const begin = (at) => ({ at, m: [0, 0], v: [0, 0], t: 0 });
  ichimon.descent = { loss, step, begin };

  ichimon.figure("descent", (box, { points, start, rates, rate, valley }, phrases, { advice }) => {
    const { add, canvas, choice, draw, filled, number, slider } = ichimon;
    const [which, plain, adam, eta, one, ten, again, told, away, fit, across, up] = phrases;
    const form = add(box, "div", { class: "controls" });
    const rule = choice(form, which, [plain, adam]), speed = slider(form, eta, rates, rates.indexOf(rate), (value) => number(value));
    const buttons = add(box, "div");
    const press = (text, n) => add(buttons, "button", { type: "button", class: "go" }, text).addEventListener("click", () => walk(n));
    press(one, 1);
    press(ten, 10);
    press(again, 0);
    const said = add(box, "p", { role: "status" });
    const [svg, width] = canvas(box, 330, { role: "img", "aria-label": advice });
    const [left, right, bottom, top] = [-1.6, 1.6, -1.1, 0.7], [high, foot] = [300, 26];
    const px = ([b, w]) => [((b - left) / (right - left)) * width, ((top - w) / (top - bottom)) * high];
    const clip = draw(draw(svg, "clipPath", { id: "descent-clip" }), "rect", { width, height: high });
    clip.parentNode.before(draw(svg, "rect", { width, height: high, fill: "#F0EAE0" }));
    const map = draw(svg, "g", { "clip-path": "url(#descent-clip)" });
    // Lines of equal loss are ellipses: radius √(loss / half the bend) along each of the two axes of the valley.
    const unit = [width / (right - left), -high / (top - bottom)], [x0, y0] = px(valley.at);
    for (const level of [4, 1, 0.25, 0.0625, 0.015, 0.004]) {
      const ring = Array.from({ length: 61 }, (_, i) => {
        const turn = (2 * Math.PI * i) / 60, r = valley.bends.map((bend) => Math.sqrt((2 * level) / bend));
        const [p, q] = [Math.cos(turn) * r[0], Math.sin(turn) * r[1]];
        return [0, 1].map((j) => (p * valley.axes[0][j] + q * valley.axes[1][j]) * unit[j]);
      });
      draw(map, "path", { d: `M${ring.map(([x, y]) => `${x0 + x} ${y0 + y}`).join("L")}Z`, fill: "#0072B2", "fill-opacity": 0.1, stroke: "#0072B2", "stroke-opacity": 0.5 });
    }
    draw(svg, "text", { x: width - 4, y: high + foot - 4, fill: "#26221E", "text-anchor": "end" }, across);
    draw(svg, "text", { x: 6, y: 20, fill: "#26221E" }, up);
    const path = draw(map, "g");
    let state = begin(start), trail = [start];
    const show = () => {
      path.replaceChildren();
      draw(path, "path", { d: `M${trail.map(px).map((p) => p.join(" ")).join("L")}`, fill: "none", stroke: "#D55E00", "stroke-width": 2 });
      trail.forEach((at, i) => {
        const [cx, cy] = px(at);
        draw(path, "circle", { cx, cy, r: i === trail.length - 1 ? 7 : 3, fill: "#D55E00" });
      });
      const [b, w] = state.at, out = b < left || b > right || w < bottom || w > top;
      const values = { step: state.t, loss: number(loss(points, state.at)), b: number(b), w: number(w) };
      said.textContent = filled(told, values) + (out ? ` ${away}` : "") + (loss(points, state.at) < valley.loss + 1e-3 ? ` ${fit}` : "");
    };
    const walk = (n) => {
      if (!n) [state, trail] = [begin(start), [start]];
      for (let i = 0; i < n; i++) {
        state = step(points, state, Number(rule.value), speed.value);
        if (state.at.every((value) => Math.abs(value) < 1e6)) trail.push(state.at);
      }
      show();
    };
    rule.addEventListener("input", () => walk(0));
    show();
  });
}
