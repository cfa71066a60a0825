// The gallery of the first page: splats turn while they are in view, the others are pictures.
"use strict";
const MOST = 12;   // browsers keep 16 WebGL contexts of a page
const live = [];   // figures whose page is loaded, the oldest first

function show(figure) {
  const frame = document.createElement("iframe");
  frame.src = figure.dataset.page;
  frame.title = figure.querySelector("img").alt;
  frame.setAttribute("sandbox", "allow-scripts");
  figure.querySelector("div").append(frame);
  live.push(figure);
  if (live.length > MOST) hide(live[0]);
}

function hide(figure) {
  figure.querySelector("iframe").remove();
  live.splice(live.indexOf(figure), 1);
}

const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !live.includes(target)) show(target);
    if (!isIntersecting && live.includes(target)) hide(target);
  }
}, { rootMargin: "100px" });
for (const figure of document.querySelectorAll(".gallery figure")) watcher.observe(figure);
