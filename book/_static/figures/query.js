// Chapter 02: a query that is dragged, or moved with the arrow keys.
"use strict";
ichimon.figure("query", (box, { title, keys, query, colours, ink, card }, _, { alt, advice }) => {
  const { add, draw } = ichimon;
  const [width, height, scale] = [560, 370, 96];
  const px = ([x, y]) => [width * 0.48 + scale * x, height * 0.5 - scale * y];
  add(box, "p", { class: "title" }, title);
  const svg = draw(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": alt });
  const [x1, y1] = px([0, 0]);
  const words = Object.entries(keys).map(([word, key], i) => {
    const [x2, y2] = px(key);
    const line = draw(svg, "line", { x1, y1, x2, y2, stroke: colours[i], "stroke-linecap": "round" });
    return { word, key, line };
  });
  const blend = draw(svg, "path", { fill: "none", stroke: ink, "stroke-width": 2.5 });
  const arrow = draw(svg, "line", { x1, y1, stroke: ink, "stroke-width": 3 });
  const handle = draw(svg, "circle", {
    r: 13, fill: ink, class: "handle", tabindex: 0, role: "slider", "aria-label": advice,
    "aria-valuemin": -180, "aria-valuemax": 180,
  });
  for (const item of words) {
    const [x, y] = px(item.key.map((v) => 1.17 * v));
    item.label = draw(svg, "text", { x, y: y + 6, fill: ink, stroke: card, "text-anchor": "middle", class: "label" });
  }

  const show = () => {
    const scores = words.map(({ key }) => (query[0] * key[0] + query[1] * key[1]) / Math.SQRT2);
    const powers = scores.map((score) => Math.exp(score - Math.max(...scores)));
    const total = powers.reduce((a, b) => a + b);
    const mean = [0, 0];
    const said = words.map(({ word, key, line, label }, i) => {
      const share = powers[i] / total;
      mean[0] += share * key[0];
      mean[1] += share * key[1];
      line.setAttribute("stroke-width", 1.5 + 20 * share);
      return (label.textContent = `${word} ${Math.round(100 * share)}%`);
    });
    const [x, y] = px(query);
    arrow.setAttribute("x2", x);
    arrow.setAttribute("y2", y);
    handle.setAttribute("cx", x);
    handle.setAttribute("cy", y);
    const [bx, by] = px(mean);
    blend.setAttribute("d", `M${bx - 9} ${by}l9 -9l9 9l-9 9z`);
    handle.setAttribute("aria-valuenow", Math.round((Math.atan2(query[1], query[0]) * 180) / Math.PI));
    handle.setAttribute("aria-valuetext", said.join(", "));
  };
  const move = (x, y) => {
    query = [Math.min(2.3, Math.max(-2.3, x)), Math.min(1.6, Math.max(-1.6, y))];
    show();
  };
  handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    move((at.x - x1) / scale, (y1 - at.y) / scale);
  });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0.1, 0], ArrowLeft: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(query[0] + step[0], query[1] + step[1]);
  });
  show();
});
