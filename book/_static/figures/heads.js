// Chapter 21: guess which head matters most. Nothing is kept or sent.
"use strict";
ichimon.figure("heads", (box, { sentences, n_heads }, [reads, named, choose, next, yours, best, right, ask]) => {
  const { add, filled, percent, piece, shade, top } = ichimon;
  const number = (value) => value.toFixed(2);
  let round = 0, won = 0;
  const task = add(box, "p"), tokens = add(box, "div", { class: "tokens" });
  const field = add(box, "fieldset");
  add(field, "legend", {}, ask);
  const called = (i) => ({ layer: Math.floor(i / n_heads) + 1, head: (i % n_heads) + 1 });
  const rows = sentences[0].heads.map((_, i) => {
    const label = add(field, "label"), input = add(label, "input", { type: "radio", name: "head" });
    add(label, "span", {}, filled(named, called(i)));
    const strip = add(label, "span", { class: "strip", "aria-hidden": "true" });
    const value = add(label, "span", { class: "value" }), bar = add(label, "span", { class: "bar" });
    input.addEventListener("change", () => look(i));
    return { label, input, strip, value, bar };
  });
  const commit = add(box, "button", { type: "button", class: "go" }, choose);
  const onward = add(box, "button", { type: "button", class: "go" }, next);
  const said = add(box, "p", { "aria-live": "polite" });
  const look = (i) => {
    [...tokens.children].forEach((word, j) => shade(word, sentences[(round - 1) % sentences.length].heads[i][j]));
    commit.disabled = commit.dataset.done === "yes";
  };
  const show = () => {
    const s = sentences[round++ % sentences.length];
    task.textContent = filled(reads, { n: s.tokens.length, guess: piece(s.guess), chance: percent(s.chance) });
    tokens.replaceChildren();
    s.tokens.forEach((token, j) => add(tokens, "span", j === s.tokens.length - 1 ? { class: "last" } : {}, piece(token)));
    rows.forEach(({ label, input, strip, value, bar }, i) => {
      label.className = "";
      input.checked = false;
      value.textContent = "";
      bar.style.width = "0";
      strip.replaceChildren();
      for (const share of s.heads[i]) shade(add(strip, "i"), share);
    });
    commit.disabled = true;
    commit.dataset.done = "";
    said.textContent = "";
  };
  commit.addEventListener("click", () => {
    const s = sentences[(round - 1) % sentences.length], mine = rows.findIndex(({ input }) => input.checked);
    const effects = s.head_effects, most = top(effects);
    rows.forEach(({ label, value, bar }, i) => {
      value.textContent = number(effects[i]);
      bar.style.width = `${(100 * effects[i]) / effects[most]}%`;
      label.className = i === most ? "best" : i === mine ? "chosen" : "";
    });
    won += mine === most;
    const place = 1 + effects.filter((effect) => effect > effects[mine]).length;
    said.textContent = [
      filled(yours, { ...called(mine), effect: number(effects[mine]), place, n: effects.length }),
      filled(best, { ...called(most), effect: number(effects[most]) }),
      filled(right, { right: won, rounds: round }),
    ].join(" ");
    commit.dataset.done = "yes";
    commit.disabled = true;
  });
  onward.addEventListener("click", show);
  show();
}, "looking");
