// Requests of the page beside viser's own: an element with data-do is a control, and the first touch of the scene is
// told. The header makes a browser ask before it sends such a request from another page, which the server refuses.
(() => {
  const tell = (action, value = "") =>
    fetch(`do/${action}?${encodeURIComponent(value)}`, { headers: { "X-Gscfd": "1" } }).catch(() => {});
  addEventListener("click", (event) => {
    const control = event.target.closest?.("[data-do]");
    if (control) tell(control.dataset.do, control.dataset.value);
  });
  // viser's text and color fields have other ids than their labels say.
  const link = () => {
    for (const label of document.querySelectorAll("p > label[for]")) {
      if (document.getElementById(label.htmlFor)) continue;
      const field = label.parentElement.parentElement.parentElement.querySelector("input, textarea");
      if (field?.id) label.htmlFor = field.id;
    }
  };
  new MutationObserver(link).observe(document.documentElement, { childList: true, subtree: true });
  let touched = false;
  const touch = (event) => {
    if (touched || !(event.target instanceof HTMLCanvasElement)) return;
    touched = true;
    tell("touch");
  };
  for (const name of ["pointerdown", "wheel", "keydown"]) addEventListener(name, touch, { capture: true, passive: true });
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) tell("touch");
})();
