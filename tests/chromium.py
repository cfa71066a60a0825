"""Chromium, for the tests that look at a page: its path, or None, and the flags that draw without a GPU."""

from __future__ import annotations

import os
import shutil

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FAINT = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = channels(color).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if ((channels(color)[3] ?? 1) > 0.5) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return [...document.querySelectorAll("body *")].filter((e) => e.offsetParent && own(e)).filter((element) => {
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05) < 4.5;
  }).map((element) => element.textContent.trim());
}"""
"""JavaScript: the texts of a page whose contrast is below 4.5 to 1 (WCAG 2)."""
NAMELESS = """() =>
  [...document.querySelectorAll("button, [role=button], a, input, textarea, img")]
    .filter((e) => e.offsetParent && !e.ariaHidden && !e.ariaLabel && !e.title && !e.textContent.trim())
    .filter((e) => !e.hasAttribute("alt") && !e.closest("label"))
    .filter((e) => !(e.id && document.querySelector(`label[for="${e.id}"]`))).map((e) => e.outerHTML)"""
"""JavaScript: the controls and pictures of a page that have no name."""
