// Chapter 01: temperature, top-k and top-p bend a real guess, and tokens are drawn from what is left.
"use strict";
{
  // The notebook's next_token_distribution for one row: temperature, then top-k, then top-p; of equals the lower id comes first.
  const distribution = (logits, temperature = 1, topK = Infinity, topP = 1) => {
    const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b), p = Array(logits.length).fill(0);
    if (temperature === 0) topK = 1;
    const heat = temperature || 1, powers = order.map((i) => Math.exp((logits[i] - logits[order[0]]) / heat)).slice(0, topK);
    const sum = powers.reduce((a, b) => a + b);
    let kept = 0, before = 0;
    for (; kept < powers.length && (topP >= 1 || before < topP); kept++) before += powers[kept] / sum;
    for (let i = 0; i < kept; i++) p[order[i]] = powers[i] / sum / before;
    return p;
  };
  ichimon.distribution = distribution;

  ichimon.figure("sampling", (box, { vocabulary, shown, rows }, phrases) => {
    const { add, bars, choice, filled, number, percent, seen, slider } = ichimon;
    const [text, heat, k, p, all, caption, others, kept, draw, drawn, none] = phrases;
    const form = add(box, "div", { class: "controls" });
    const which = choice(form, text, shown.map((each) => `${each.text} …`));
    which.parentElement.className = "wide";
    const fixed = (digits) => (value) => value.toFixed(digits);
    const temperature = slider(form, heat, [...Array(21).keys()].map((i) => i / 10), 10, fixed(1));
    const limits = [1, 2, 3, 5, 10, 20, 40, 80, 160, 320, 640, Infinity];
    const topK = slider(form, k, limits, limits.length - 1, (value) => (value === Infinity ? all : String(value)));
    const topP = slider(form, p, [...Array(20).keys()].map((i) => (i + 1) / 20), 19, fixed(2));
    const table = bars(box, caption), said = add(box, "p", { role: "status" });
    const button = add(box, "button", { type: "button", class: "go" }, draw);
    const samples = add(box, "p", { "aria-live": "polite" });
    let now = [];
    const show = () => {
      const { logits } = shown[which.value], model = distribution(logits);
      now = distribution(logits, temperature.value, topK.value, topP.value);
      const first = [...model.keys()].sort((a, b) => model[b] - model[a] || a - b);
      const rest = first.slice(rows), sum = (shares) => rest.reduce((total, i) => total + shares[i], 0);
      const entries = first.slice(0, rows).map((i) => [`“${seen(vocabulary[i])}”`, now[i], model[i]]);
      entries.push([filled(others, { n: number(rest.length, 6) }), sum(now), sum(model)]);
      const most = Math.max(...entries.flatMap(([, share, pale]) => [share, pale]));
      table(entries.map(([name, share, pale], i) => [
        name, share / most, share ? percent(share, 1) : none, pale / most, i === rows ? "#6B645C" : "#0072B2",
      ]));
      const left = model.filter((_, i) => now[i] > 0);
      said.textContent = filled(kept, {
        n: number(left.length, 6), all: number(model.length, 6), share: percent(left.reduce((a, b) => a + b), 1),
      });
      samples.textContent = "";
    };
    button.addEventListener("click", () => {
      const tokens = Array.from({ length: 12 }, () => {
        let rest = Math.random(), i = -1, last = 0;
        while (rest > 0 && ++i < now.length) if (now[i] > 0) rest -= now[(last = i)];
        return `“${seen(vocabulary[last])}”`;
      });
      samples.textContent = `${drawn} ${tokens.join("  ")}`;
    });
    form.addEventListener("input", show);
    show();
  });
}
