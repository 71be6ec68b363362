// A page prepares for paper; the query of chapter 02 can be dragged, and chapter 03's query and key can be turned. Pages
// work without this file.
"use strict";

// Paper is light, and shows what was folded.
const root = document.documentElement;
addEventListener("beforeprint", () => {
  root.dataset.themeOnScreen = root.dataset.theme;
  root.dataset.theme = "light";
  for (const details of document.querySelectorAll("details.sd-dropdown:not([open])")) {
    details.open = true;
    details.dataset.folded = "";
  }
});
addEventListener("afterprint", () => {
  root.dataset.theme = root.dataset.themeOnScreen;
  for (const details of document.querySelectorAll("details[data-folded]")) {
    details.open = false;
    delete details.dataset.folded;
  }
});

const SVG = "http://www.w3.org/2000/svg";
const draw = (parent, tag, attributes, text = "") => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return parent.appendChild(element);
};

// The data are those from which the page drew the still figure: {keys: {word: [x, y]}, query: [x, y], colours, ...}.
const queryFigure = (box, still, { title, keys, query, colours, ink, card }) => {
  const advice = box.textContent.trim();
  const [width, height, scale] = [560, 400, 96];
  const px = ([x, y]) => [width * 0.48 + scale * x, height * 0.54 - scale * y];
  const svg = draw(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": still.alt });
  draw(svg, "rect", { width, height, fill: card });
  draw(svg, "text", { x: 14, y: 32, fill: ink, class: "title" }, title);
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
  box.classList.add("drawn");
  still.classList.add("replaced");
};

const box = document.querySelector(".query-figure");
const data = document.getElementById("query-data");
const still = document.querySelector("img.query-static");
if (box && data && still) queryFigure(box, still, JSON.parse(data.textContent));

// A query and a key at their places, turned by `step` radians a place. One slider moves both, the other only the query.
const turnFigure = (box, still, { title, arrows, step, places, colours, ink, card, score, sliders }) => {
  const [width, height, scale] = [560, 420, 92];
  const svg = draw(box, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": still.alt });
  draw(svg, "rect", { width, height, fill: card });
  draw(svg, "text", { x: 14, y: 32, fill: ink, class: "title" }, title);
  const [x1, y1] = [width / 2, height * 0.54];
  const shown = Object.entries(arrows).map(([word, [x, y]], i) => ({
    word, length: Math.hypot(x, y), angle: Math.atan2(y, x),
    line: draw(svg, "line", { x1, y1, stroke: colours[i], "stroke-width": 6, "stroke-linecap": "round" }),
    tip: draw(svg, "circle", { r: 9, fill: colours[i] }),
    label: draw(svg, "text", { fill: ink, stroke: card, "text-anchor": "middle", class: "label" }),
  }));
  const said = draw(svg, "text", { x: 14, y: height - 18, fill: ink, class: "title", "aria-live": "polite" });
  const inputs = sliders.map((text, i) => {
    const label = box.appendChild(document.createElement("label"));
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: 0, max: i ? 20 : 30, value: 0 });
    label.append(text, " ", input);
    input.addEventListener("input", () => show());
    return input;
  });
  const show = () => {
    const [both, alone] = inputs.map((input) => Number(input.value));
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
  show();
  box.classList.add("drawn");
  still.classList.add("replaced");
};

const turnBox = document.querySelector(".turn-figure");
const turnData = document.getElementById("turn-data");
if (turnBox && turnData && still) turnFigure(turnBox, still, JSON.parse(turnData.textContent));
