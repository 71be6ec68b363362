// A page prepares for paper. Pages work without this file; figures to play with have theirs in figures/.
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
