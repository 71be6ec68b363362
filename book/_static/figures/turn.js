// Chapter 03: a query and a key at their places, turned by `step` radians a place. One slider moves both, the other only the
// query.
"use strict";
ichimon.figure("turn", (box, { title, arrows, step, places, colours, ink, card }, [score, ...sliders]) => {
  const { add, draw, slider } = ichimon;
  const [width, height, scale] = [560, 400, 92];
  add(box, "p", { class: "title" }, title);
  const svg = draw(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const [x1, y1] = [width / 2, height * 0.5];
  const shown = Object.entries(arrows).map(([word, [x, y]], i) => ({
    word, length: Math.hypot(x, y), angle: Math.atan2(y, x),
    line: draw(svg, "line", { x1, y1, stroke: colours[i], "stroke-width": 6, "stroke-linecap": "round" }),
    tip: draw(svg, "circle", { r: 9, fill: colours[i] }),
    label: draw(svg, "text", { fill: ink, stroke: card, "text-anchor": "middle", class: "label" }),
  }));
  const said = add(box, "p", { role: "status", class: "title" });
  const form = add(box, "div", { class: "controls" });
  const upTo = (n) => [...Array(n + 1).keys()];
  const moves = sliders.map((text, i) => slider(form, text, upTo(i ? 20 : 30), 0));
  const show = () => {
    const [both, alone] = moves.map((move) => move.value);
    const [q, k] = shown.map(({ word, length, angle, line, tip, label }, i) => {
      const place = places[i] + both + (i ? 0 : alone);
      const [x, y] = [Math.cos(angle + step * place), Math.sin(angle + step * place)].map((v) => v * length);
      const [x2, y2] = [x1 + scale * x, y1 - scale * y];
      for (const [element, names] of [[line, ["x2", "y2"]], [tip, ["cx", "cy"]]]) {
        element.setAttribute(names[0], x2);
        element.setAttribute(names[1], y2);
      }
      label.setAttribute("x", x1 + 1.3 * scale * x);
      label.setAttribute("y", y1 + 6 - 1.2 * scale * y);
      label.textContent = `${word} · ${place}`;
      return [x, y];
    });
    said.textContent = `${score} = ${(q[0] * k[0] + q[1] * k[1]).toFixed(2).replace("-", "−")}`;
  };
  form.addEventListener("input", show);
  show();
});
