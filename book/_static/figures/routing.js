// Chapter 14: which experts the tokens of a sentence go to, in a model trained with balancing and in one trained without.
"use strict";
ichimon.figure("routing", (box, { sentences, routes, shares, colours, ink }, phrases, { advice }) => {
  const { add, canvas, choice, draw, filled, percent, piece, slider, top } = ichimon;
  const [which, where, layer, balancing, follow, all, goes, busiest, thick, thin] = phrases;
  const n = shares.on[0].length, head = 48;
  const form = add(box, "div", { class: "controls" });
  const sentence = choice(form, which, sentences.map((tokens) => tokens.join("").trim()));
  sentence.parentElement.className = "wide";
  const depth = choice(form, where, shares.on.map((_, i) => filled(layer, { layer: i + 1 })));
  depth.value = shares.on.length - 1;
  const balance = add(add(form, "label", {}, balancing), "input", { type: "checkbox" });
  let tokens = [], way = [];
  const token = slider(form, follow, [0], 0, (i) => {
    if (!i) return all;
    const [a, x, b, y] = way[i - 1];
    return filled(goes, { token: piece(tokens[i - 1]), a: a + 1, b: b + 1, x: percent(x), y: percent(y) });
  });
  token.input.parentElement.className = "wide";
  const said = add(box, "p", { role: "status" });
  const height = 25 * Math.max(...sentences.map((each) => each.length));
  const [svg, width] = canvas(box, head + height, { role: "img", "aria-label": advice });
  const bar = width < 420 ? 64 : 130, [from, to] = [74, width - bar - 32];
  draw(svg, "text", { x: width, y: 14, fill: ink, "text-anchor": "end" }, thick);
  draw(svg, "text", { x: width, y: 32, fill: ink, "text-anchor": "end" }, thin);
  const flows = draw(svg, "g"), names = draw(svg, "g"), loads = draw(svg, "g");

  const show = () => {
    const [s, l, kind] = [Number(sentence.value), Number(depth.value), balance.checked ? "on" : "off"];
    tokens = sentences[s];
    way = routes[kind][s][l];
    const row = height / tokens.length, at = (e) => head + (height / n) * (e + 0.5);
    const here = Array(n).fill(0), text = shares[kind][l];
    for (const group of [flows, names, loads]) group.replaceChildren();
    way.forEach(([a, much, b, less], t) => {
      const y = head + row * (t + 0.5), middle = (from + to) / 2;
      draw(names, "text", { x: from - 6, y: y + 5, fill: ink, "text-anchor": "end" }, piece(tokens[t]));
      for (const [e, share] of [[a, much], [b, less]]) {
        here[e] += 1 / (2 * tokens.length);
        draw(flows, "path", {
          class: "flow", pathLength: 1, stroke: colours[e], "stroke-width": 1 + 7 * share, "data-token": t + 1,
          d: `M${from} ${y}C${middle} ${y} ${middle} ${at(e)} ${to - 12} ${at(e)}`,
          style: `animation-delay:${25 * t}ms`,
        });
      }
    });
    const long = (share) => 2 * bar * share; // no expert can get more than half of the routings
    here.forEach((share, e) => {
      draw(loads, "circle", { cx: to, cy: at(e), r: 10, fill: "#fff", stroke: colours[e], "stroke-width": 3 });
      draw(loads, "text", { x: to, y: at(e) + 5, fill: ink, "text-anchor": "middle" }, e + 1);
      draw(loads, "rect", { x: to + 18, y: at(e) - 8, width: long(share), height: 10, fill: colours[e] });
      draw(loads, "rect", { x: to + 18, y: at(e) + 4, width: long(text[e]), height: 4, fill: ink });
    });
    const x = to + 18 + long(1 / n);
    draw(loads, "line", { x1: x, x2: x, y1: head, y2: at(n - 0.5), stroke: ink, "stroke-dasharray": "2 4" });
    const most = top(here), common = top(text);
    said.textContent = filled(busiest, {
      here: percent(here[most]), a: most + 1, text: percent(text[common]), b: common + 1, even: percent(1 / n, 1),
      idle: here.filter((share) => share === 0).length,
    });
    token.over([...tokens.keys(), tokens.length]);
    if (Number(token.input.value) > tokens.length) token.to(0);
    trace();
  };
  const trace = () => {
    for (const flow of flows.children) flow.classList.toggle("pale", token.value > 0 && Number(flow.dataset.token) !== token.value);
  };
  for (const control of [sentence, depth, balance]) control.addEventListener("input", show);
  token.input.addEventListener("input", trace);
  show();
});
