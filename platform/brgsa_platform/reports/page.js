"use strict";
// Tables: a click on a title sorts by it, another one turns the order round. What is not measured stays last.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.classList.contains("number");
    const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : isNumber;
    const key = row => row.cells[at].dataset.by;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const order = isNumber ? key(a) - key(b) : key(a).localeCompare(key(b));
      return down ? -order : order;
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  }));
}
// Plots: each is drawn from the JSON beside it.
const config = { responsive: true, displayModeBar: false };
for (const plot of document.querySelectorAll(".plot")) {
  const told = JSON.parse(document.getElementById(plot.id + "-data").textContent);
  Plotly.newPlot(plot, told.data, told.layout, config);
  const choice = document.getElementById(plot.id + "-choice");
  if (!choice) continue;
  const choose = () => {
    const shown = told.data.map(trace => choice.value === "" || String(trace.meta) === choice.value);
    Plotly.restyle(plot, { visible: shown });
  };
  choice.addEventListener("change", choose);
  choose();
}
// On paper nothing is folded, and a plot is no wider than the sheet.
const SHEET = 680;
const folded = [...document.querySelectorAll("details")];
const fit = (width, height) => document.querySelectorAll(".plot").forEach(plot => {
  plot.style.height = plot.offsetHeight * height + "px";  // names need more lines on a sheet
  Plotly.relayout(plot, { width, height: width && plot.offsetHeight, autosize: !width });
});
addEventListener("beforeprint", () => { folded.forEach(one => { one.dataset.open = one.open; one.open = true; }); fit(SHEET, 1.25); });
addEventListener("afterprint", () => { folded.forEach(one => { one.open = one.dataset.open === "true"; }); fit(null, 1 / 1.25); });
document.documentElement.dataset.ready = "yes";
