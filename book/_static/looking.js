// Chapter 21's two games: guess which head matters, and foresee what changes a guess, with the map and without it. Nothing
// is kept or sent. The phrases stand in the page, in a list, so that they are translated with it. Pages work without this.
"use strict";
{
  const STYLE = `
    .bd-article .game { max-width: 38rem; padding: .8rem 1rem 1rem !important; color-scheme: light; border: 1px solid var(--pst-color-border); border-radius: .5rem;
      background: #FBF8F3; color: #26221E; }
    .game p { margin: .5rem 0; color: inherit; }
    .game fieldset { border: 0; padding: 0; margin: .6rem 0; }
    .game legend { float: none; font-size: 1em; font-weight: 600; margin-bottom: .4rem; color: inherit; }
    .game .tokens { display: flex; flex-wrap: wrap; gap: .2rem; margin: .6rem 0; }
    .game .tokens > * { padding: .15rem .4rem; border: 1px solid #DDD6CB; border-radius: .25rem; min-height: 2rem; min-width: 1.6rem;
      font: inherit; text-align: center; white-space: pre; }
    .game .tokens > .chosen { outline: 3px solid #D55E00; }
    .game .tokens > .best { outline: 3px solid #009E73; }
    .game .tokens > .last { border: 2px dashed #26221E; }
    .game label { display: grid; grid-template-columns: 1.4rem 8.2rem 1fr 3.2rem; align-items: center; gap: .3rem; min-height: 1.9rem; }
    .game .strip { display: flex; height: 1rem; }
    .game .strip > i { flex: 1; border-right: 1px solid #FBF8F3; }
    .game .bar { grid-column: 3; height: .45rem; background: #0072B2; }
    .game .value { font-variant-numeric: tabular-nums; text-align: right; }
    .game label.chosen { background: #F8DFCF; } .game label.best { background: #CFE9E0; }
    .game button.go { font: inherit; font-weight: 600; padding: .35rem .9rem; margin-right: .5rem; border-radius: .3rem; cursor: pointer;
      border: 1px solid #26221E; background: #fff; color: #26221E; }
    .game button:disabled { opacity: 1; cursor: default; } .game button.go:disabled { opacity: .45; }
    .game :focus-visible { outline: 3px solid #26221E; outline-offset: 2px; }`;
  const add = (parent, tag, attributes = {}, text = "") => {
    const element = parent.appendChild(document.createElement(tag));
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const filled = (phrase, values) => phrase.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const mix = (share) => [[251, 0], [248, 114], [243, 178]].map(([a, b]) => Math.round(a + Math.min(1, share) * (b - a)));
  const shade = (element, share) => {
    element.style.background = `rgb(${mix(share)})`;
    element.style.color = share > 0.45 ? "#FBF8F3" : "#26221E";
  };
  const seen = (token) => token.replaceAll("\n", "↵").trim() || "␣";
  const top = (values) => values.indexOf(Math.max(...values));
  const number = (value) => value.toFixed(2);

  const begin = (name) => {
    const box = document.querySelector(`.${name}-figure`), data = document.getElementById("looking-data");
    if (!box || !data) return null;
    if (!document.getElementById("looking-style")) add(document.head, "style", { id: "looking-style" }, STYLE);
    const phrases = [...box.querySelectorAll("li")].map((item) => item.textContent.trim());
    box.replaceChildren();
    box.classList.add("drawn", "game");
    return [box, JSON.parse(data.textContent), phrases];
  };

  const heads = (box, { sentences, n_heads }, phrases) => {
    const [reads, named, choose, next, yours, best, right, ask] = phrases;
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
      task.textContent = filled(reads, { n: s.tokens.length, guess: seen(s.guess), chance: `${Math.round(100 * s.chance)} %` });
      tokens.replaceChildren();
      s.tokens.forEach((token, j) => add(tokens, "span", j === s.tokens.length - 1 ? { class: "last" } : {}, seen(token)));
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
    document.querySelector("img.heads-static")?.classList.add("replaced");
  };

  const forecast = (box, { sentences }, phrases) => {
    const [withMap, without, ask, told, tally, next, last] = phrases;
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
      task.textContent = filled(ask, { guess: seen(s.guess) });
      tokens.setAttribute("aria-label", task.textContent);
      tokens.replaceChildren();
      said.textContent = "";
      onward.disabled = true;
      const buttons = effects.map((_, j) => add(tokens, "button", { type: "button" }, seen(s.tokens[j])));
      const end = add(tokens, "span", { class: "last" }, seen(s.tokens.at(-1)));
      [...buttons, end].forEach((word, j) => shade(word, helped ? s.map[j] : 0));
      if (helped) buttons.forEach((word, j) => word.setAttribute("aria-label", `${seen(s.tokens[j])}, ${Math.round(100 * s.map[j])} %`));
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
          filled(told, { word: seen(s.tokens[j]), effect: number(effects[j]), best: seen(s.tokens[best]), most: number(effects[best]) }),
          filled(tally, { a: score[0].right, b: score[0].rounds, c: score[1].right, d: score[1].rounds }),
          round === sentences.length ? last : "",
        ].join(" ");
        onward.disabled = round === sentences.length;
      }));
    };
    onward.addEventListener("click", show);
    show();
  };

  for (const [name, play] of [["heads", heads], ["forecast", forecast]]) {
    const ready = begin(name);
    if (ready) play(...ready);
  }
}
