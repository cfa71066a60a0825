// Requests of the page beside viser's own: an element with data-do is a control, and the first touch of the scene is
// told. The header makes a browser ask before it sends such a request from another page, which the server refuses.
(() => {
  const tell = (action, value = "") =>
    fetch(`do/${action}?${encodeURIComponent(value)}`, { headers: { "X-Gscfd": "1" } }).catch(() => {});
  addEventListener("click", (event) => {
    const control = event.target.closest?.("[data-do]");
    if (control) tell(control.dataset.do, control.dataset.value);
  });
  // viser names neither its buttons without words nor its logo.
  const NAMES = [
    ["mantine-CloseButton-root", "Close"],
    ["mantine-ColorInput-eyeDropperButton", "Pick a color on the screen"],
    ["mantine-ActionIcon-root", "Settings of the page"],
  ];
  const name = () => {
    for (const [look, words] of NAMES) {
      for (const button of document.querySelectorAll(`button.${look}:not([aria-label])`)) {
        if (!button.textContent.trim()) button.setAttribute("aria-label", words);
      }
    }
    for (const image of document.querySelectorAll("img:not([alt])")) image.alt = "";
  };
  // viser's text and color fields have other ids than their labels say.
  const link = () => {
    for (const label of document.querySelectorAll("p > label[for]")) {
      if (document.getElementById(label.htmlFor)) continue;
      const field = label.parentElement.parentElement.parentElement.querySelector("input, textarea");
      if (field?.id) label.htmlFor = field.id;
    }
  };
  const mend = () => (name(), link());
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
  let touched = false;
  const touch = (event) => {
    if (touched || !(event.target instanceof HTMLCanvasElement)) return;
    touched = true;
    tell("touch");
  };
  for (const name of ["pointerdown", "wheel", "keydown"]) addEventListener(name, touch, { capture: true, passive: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) tell("touch");
})();
