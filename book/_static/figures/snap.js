// Chapter 19: the weights of a real matrix on rulers with few marks, one ruler for all rows or one for each.
"use strict";
{
  // A row's marks are `scale` apart; ties go to the even mark, as in PyTorch. `snapped` are the weights read backwards.
  const even = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
  const quantised = (rows, bits, perRow) => {
    const marks = 2 ** bits / 2 - 1, largest = rows.map((row) => Math.max(...row.map(Math.abs)));
    const scales = largest.map((own) => (perRow ? own : Math.max(...largest)) / marks);
    const whole = rows.map((row, i) => row.map((value) => even(value / scales[i])));
    const snapped = whole.map((row, i) => row.map((n) => n * scales[i]));
    let error = 0, power = 0;
    rows.forEach((row, i) => row.forEach((value, j) => {
      error += (value - snapped[i][j]) ** 2;
      power += value ** 2;
    }));
    return { marks, scales, snapped, error: Math.sqrt(error / power), used: whole.map((row) => new Set(row).size) };
  };
  ichimon.quantised = quantised;

  ichimon.figure("snap", (box, { rows, times }, phrases, { advice }) => {
    const { add, canvas, draw, filled, number, percent, slider } = ichimon;
    const [many, each, louder, told, row] = phrases;
    const loud = times * Math.max(...rows.flat().map(Math.abs));
    const form = add(box, "div", { class: "controls" });
    const bits = slider(form, many, [2, 3, 4, 5, 6, 7, 8], 2);
    const boxes = [each, filled(louder, { n: times })].map((text) => add(add(form, "label", {}, text), "input", { type: "checkbox" }));
    const said = add(box, "p", { role: "status" });
    const high = 26, [svg, width] = canvas(box, high * rows.length + 8, { role: "img", "aria-label": advice });
    const from = 62, middle = (from + width - 8) / 2;
    const lines = rows.map((_, i) => {
      const y = high * (i + 0.5) + 4, group = draw(svg, "g");
      draw(svg, "text", { x: from - 6, y: y + 5, "text-anchor": "end", fill: "#26221E" }, filled(row, { n: i + 1 }));
      const dots = draw(svg, "g");
      return { y, group, dots: rows[i].map(() => draw(dots, "circle", { cy: y, r: 4, fill: "#0072B2", "fill-opacity": 0.3, class: "moves" })) };
    });
    const show = () => {
      const [perRow, outlier] = boxes.map((input) => input.checked);
      const now = rows.map((values, i) => values.map((value, j) => (outlier && !i && !j ? loud : value)));
      const { marks, scales, snapped, error, used } = quantised(now, bits.value, perRow);
      const reach = Math.max(...scales) * marks, px = (value) => middle + (value / reach) * (width - 8 - middle);
      lines.forEach(({ y, group, dots }, i) => {
        group.replaceChildren();
        const ticks = Array.from({ length: 2 * marks + 1 }, (_, j) => `M${px(scales[i] * (j - marks)).toFixed(1)} ${y - 9}v18`);
        draw(group, "path", { d: ticks.join(""), stroke: "#6B645C", "stroke-width": bits.value > 6 ? 0.4 : 1 });
        dots.forEach((dot, j) => dot.setAttribute("cx", px(snapped[i][j]).toFixed(1)));
      });
      const mean = used.reduce((a, b) => a + b) / used.length;
      said.textContent = filled(told, { all: 2 * marks + 1, used: number(mean, 2), error: percent(error, 1) });
    };
    form.addEventListener("input", show);
    show();
  });
}
