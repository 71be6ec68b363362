// Chapter 21: foresee what changes a guess, with the map and without it. Nothing is kept or sent.
"use strict";
ichimon.figure("forecast", (box, { sentences }, [withMap, without, ask, told, tally, next, last]) => {
  const { add, filled, piece, shade, top } = ichimon;
  const number = (value) => value.toFixed(2);
  const order = sentences.map((_, i) => i).sort(() => Math.random() - 0.5);
  const score = [{ right: 0, rounds: 0 }, { right: 0, rounds: 0 }];
  let round = 0;
  const head = add(box, "p"), task = add(box, "p"), tokens = add(box, "div", { class: "tokens", role: "group" });
  const said = add(box, "p", { "aria-live": "polite" });
  const onward = add(box, "button", { type: "button", class: "go" }, next);
  const show = () => {
    const s = sentences[order[round]], helped = round % 2 === 0, effects = s.token_effects.slice(0, -1), best = top(effects);
    round += 1;
    head.textContent = filled(helped ? withMap : without, { round, n: sentences.length });
    task.textContent = filled(ask, { guess: piece(s.guess) });
    tokens.setAttribute("aria-label", task.textContent);
    tokens.replaceChildren();
    said.textContent = "";
    onward.disabled = true;
    const buttons = effects.map((_, j) => add(tokens, "button", { type: "button" }, piece(s.tokens[j])));
    const end = add(tokens, "span", { class: "last" }, piece(s.tokens.at(-1)));
    [...buttons, end].forEach((word, j) => shade(word, helped ? s.map[j] : 0));
    if (helped) buttons.forEach((word, j) => word.setAttribute("aria-label", `${piece(s.tokens[j])}, ${Math.round(100 * s.map[j])} %`));
    buttons.forEach((word, j) => word.addEventListener("click", () => {
      buttons.forEach((other, k) => {
        other.disabled = true;
        shade(other, (0.9 * effects[k]) / effects[best]);
      });
      word.classList.add("chosen");
      buttons[best].classList.add("best");
      const side = score[helped ? 0 : 1];
      side.right += j === best;
      side.rounds += 1;
      said.textContent = [
        filled(told, { word: piece(s.tokens[j]), effect: number(effects[j]), best: piece(s.tokens[best]), most: number(effects[best]) }),
        filled(tally, { a: score[0].right, b: score[0].rounds, c: score[1].right, d: score[1].rounds }),
        round === sentences.length ? last : "",
      ].join(" ");
      onward.disabled = round === sentences.length;
    }));
  };
  onward.addEventListener("click", show);
  show();
}, "looking");
