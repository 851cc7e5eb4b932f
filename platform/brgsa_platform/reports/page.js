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
// Plots: each is drawn from the JSON beside it. Its legend has as many columns as fit, and the plot grows by its lines.
const COLUMN = 290, LINE = 29, MARGIN = 10, SHEET = 680;
const plots = [...document.querySelectorAll(".plot")];
const fit = (plot, width) => {
  const names = plot.data.filter(trace => trace.visible !== false && trace.showlegend !== false).length;
  const columns = Math.max(1, Math.min(names, Math.floor(width / COLUMN)));
  const top = MARGIN + LINE * Math.ceil(names / columns);
  const height = Number(plot.dataset.height) + top;
  plot.style.height = height + "px";
  Plotly.relayout(plot, { width, height, "legend.entrywidth": 1 / columns - 0.01, "margin.t": top });
};
const fitAll = width => plots.forEach(plot => fit(plot, width ?? plot.parentElement.clientWidth));
for (const plot of plots) {
  const told = JSON.parse(document.getElementById(plot.id + "-data").textContent);
  Plotly.newPlot(plot, told.data, told.layout, { displayModeBar: false });
  const choice = document.getElementById(plot.id + "-choice");
  if (!choice) continue;
  const choose = () => {
    const shown = told.data.map(trace => choice.value === "" || String(trace.meta) === choice.value);
    Plotly.restyle(plot, { visible: shown });
    fit(plot, plot.parentElement.clientWidth);
  };
  choice.addEventListener("change", choose);
  choose();
}
fitAll();
addEventListener("resize", () => fitAll());
// On paper nothing is folded, and a plot is no wider than the sheet.
const folded = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => { folded.forEach(one => { one.dataset.open = one.open; one.open = true; }); fitAll(SHEET); });
addEventListener("afterprint", () => { folded.forEach(one => { one.open = one.dataset.open === "true"; }); fitAll(); });
document.documentElement.dataset.ready = "yes";
