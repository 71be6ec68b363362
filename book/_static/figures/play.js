// What the figures to play with share. A figure is a `{play}` of a page: its phrases stand there in a list, so that they are
// translated with the page, and its numbers in JSON that the page's own run wrote. Without scripts the page shows a still
// picture in its place.
"use strict";
globalThis.ichimon = (() => {
  const put = (parent, element, attributes, text) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== "") element.textContent = text;
    return parent.appendChild(element);
  };
  const add = (parent, tag, attributes = {}, text = "") => put(parent, document.createElement(tag), attributes, text);
  const draw = (parent, tag, attributes = {}, text = "") =>
    put(parent, document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, text);

  const language = document.documentElement.lang || "en";
  const number = (value, digits = 3) => value.toLocaleString(language, { maximumSignificantDigits: digits }).replace("-", "−");
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
  const filled = (phrase, values) => phrase.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const seen = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "␣";
  const piece = (token) => token.replaceAll("\n", "↵").trim() || "␣";
  const top = (values) => values.indexOf(Math.max(...values));

  // From the card's colour, for nothing, to the blue of the still figures, for everything.
  const shade = (element, share) => {
    const mix = [[251, 0], [248, 114], [243, 178]].map(([a, b]) => Math.round(a + Math.min(1, share) * (b - a)));
    element.style.background = `rgb(${mix})`;
    element.style.color = share > 0.45 ? "#FBF8F3" : "#26221E";
  };

  // A range over a list of values; `say` puts a value into words: eyes see them, and ears hear them as the
  // slider's value.
  const slider = (parent, text, values, at, say = String) => {
    const label = add(parent, "label", {}, text), shown = add(label, "b", { "aria-hidden": true });
    const input = add(label, "input", { type: "range", min: 0, max: values.length - 1, step: 1, value: at });
    const tell = () => {
      shown.textContent = say(values[input.value]);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", tell);
    tell();
    return {
      input, get value() { return values[input.value]; },
      to(value) { input.value = values.indexOf(value); tell(); },
      over(others) { values = others; input.max = values.length - 1; tell(); },
    };
  };
  const choice = (parent, text, options) => {
    const select = add(add(parent, "label", {}, text), "select");
    options.forEach((option, i) => add(select, "option", { value: i }, option));
    return select;
  };

  // A table of bars: call what it returns with [name, share of the bar, text, share of a pale bar behind it] for each row.
  const bars = (parent, caption) => {
    const table = add(parent, "table", { class: "bars" });
    add(table, "caption", {}, caption);
    const body = add(table, "tbody");
    return (rows) => {
      while (body.children.length > rows.length) body.lastChild.remove();
      rows.forEach(([name, share, text, pale = 0, colour = "#0072B2"], i) => {
        let row = body.children[i];
        if (!row) {
          row = add(body, "tr");
          add(row, "th", { scope: "row" });
          const cell = add(row, "td", { class: "bar" });
          add(cell, "i");
          add(cell, "i");
          add(row, "td");
        }
        const [title, cell, told] = row.children;
        title.textContent = name;
        told.textContent = text;
        [pale, share].forEach((length, j) => { cell.children[j].style.width = `${100 * Math.min(1, length)}%`; });
        cell.lastChild.style.background = colour;
      });
    };
  };

  // A drawing as wide as there is room, so that its letters have their true size on a phone.
  const canvas = (box, height, attributes) => {
    const style = getComputedStyle(box), room = box.clientWidth - 2 * Number.parseFloat(style.paddingLeft);
    const width = Math.round(Math.min(600, Math.max(280, room)));
    return [draw(box, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, ...attributes }), width];
  };

  const figure = (name, begin, from = name) => {
    const box = document.querySelector(`.${name}-figure`), data = document.getElementById(`${from}-data`);
    if (!box || !data) return;
    const phrases = [...box.querySelectorAll("li")].map((item) => item.textContent.trim());
    const still = document.querySelector(`img.${name}-still`), advice = box.querySelector(":scope > p");
    box.classList.add("drawn");
    try {
      box.querySelector(":scope > ul")?.remove();
      begin(box, JSON.parse(data.textContent), phrases, { alt: still?.alt ?? "", advice: advice?.textContent.trim() ?? "" });
      if (advice) box.append(advice);
      still?.classList.add("replaced");
    } catch (error) {
      box.classList.remove("drawn");
      throw error;
    }
  };
  return { add, draw, number, percent, filled, seen, piece, top, shade, slider, choice, bars, canvas, figure };
})();
