// Requests of the page beside viser's own: an element with data-do is a control, and the first touch of the scene is
// told. The header makes a browser ask before it sends such a request from another page, which the server refuses.
(() => {
  const tell = (action, value = "") =>
    fetch(`do/${action}?${encodeURIComponent(value)}`, { headers: { "X-Gscfd": "1" } }).catch(() => {});
  const control = (element) => element?.closest?.("[data-do]");
  const act = ({ dataset }) => tell(dataset.do, dataset.value);
  addEventListener("click", (event) => {
    const clicked = control(event.target);
    if (clicked) act(clicked);
  });
  // The server writes a control anew when its words change. A press that began on the old one has no click then, and the
  // keyboard's focus would be gone.
  const same = (one, other) => one?.dataset.do === other.dataset.do && one.dataset.value === other.dataset.value;
  let pressed = null;
  let focused = null;
  addEventListener("pointerdown", (event) => (pressed = control(event.target)), true);
  addEventListener("pointerup", (event) => {
    const released = control(document.elementFromPoint(event.clientX, event.clientY));
    if (pressed && !pressed.isConnected && same(released, pressed)) act(released);
    pressed = null;
  }, true);
  addEventListener("focusin", (event) => (focused = control(event.target)));
  addEventListener("focusout", () => setTimeout(() => {
    if (focused?.isConnected && document.activeElement !== focused) focused = null;
  }));
  const refocus = () => {
    if (!focused || focused.isConnected || document.activeElement !== document.body) return;
    const again = [...document.querySelectorAll("[data-do]")].find((one) => same(one, focused));
    focused = null;
    again?.focus({ preventScroll: true });
  };
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
  // viser's folders open at a click on their heading, which the keyboard does not reach.
  const HEADING = "div.mantine-Paper-root[style*='cursor: pointer']:has(> svg[class*='tabler-icon-chevron'])";
  const unfold = () => {
    for (const heading of document.querySelectorAll(HEADING)) {
      heading.tabIndex = 0;
      heading.setAttribute("role", "button");
      heading.setAttribute("aria-expanded", Boolean(heading.querySelector("svg[class*='chevron-up']")));
    }
  };
  addEventListener("keydown", (event) => {
    if (!["Enter", " "].includes(event.key) || !event.target.matches?.(HEADING)) return;
    event.preventDefault();
    event.target.click();
  });
  // viser's questions have no way out for Escape: theirs is the last button.
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") [...document.querySelectorAll(".mantine-Modal-root button")].at(-1)?.click();
  });
  // viser sends at most one message in 50 ms, the newest: a submit or a press would take the place of the letters typed
  // just before it. Timers end in the order of their times, so after this one the letters are sent.
  const SENT = 60;
  let typing = 0;
  addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => (typing = 0), SENT);
  }, true);
  const afterTyping = (kind, selector, repeat) => addEventListener(kind, (event) => {
    const element = event.target.closest?.(selector);
    if (!typing || !element) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    setTimeout(() => element.isConnected && repeat(element), SENT);
  }, true);
  afterTyping("submit", "form", (form) => form.requestSubmit());
  afterTyping("click", "button", (button) => button.click());
  // On a tablet, two panels leave no room for the scene: the left one begins folded. A phone has none at the sides.
  let folded = !matchMedia("(min-width: 36.01em) and (max-width: 66em)").matches;
  const fold = () => {
    const left = !folded && document.querySelector("[data-dock-region-collapse=left]");
    if (left) folded = true, left.click();
  };
  const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", ..."wasdqe"];  // the keys by which viser moves
  let touched = false;
  const touch = (event) => {
    const moves = event.target === document.body && MOVES.includes(event.key);
    if (touched || !(moves || event.target instanceof HTMLCanvasElement)) return;
    touched = true;
    tell("touch");
  };
  for (const name of ["pointerdown", "wheel", "keydown"]) addEventListener(name, touch, { capture: true, passive: true });
  // A page outlives its server. The next one at the address has other controls, and its turntable turns.
  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches && tell("still");
  let turntable = null;
  const greet = () => {
    const found = [...document.querySelectorAll("label[for]")].find((label) => label.textContent === "Turntable")?.htmlFor;
    if (!found || found === turntable) return;
    if (turntable) touched = false, still();
    turntable = found;
  };
  still();
  const mend = () => (name(), link(), unfold(), refocus(), fold(), greet());
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
})();
