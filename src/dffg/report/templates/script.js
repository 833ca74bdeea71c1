"use strict";
const root = document.documentElement;
const theme = document.querySelector(".theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light theme" : "Dark theme"; };
theme.hidden = false;
theme.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); };
system.onchange = nameTheme;
nameTheme();

const valueIn = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
const compare = (one, other) => one.localeCompare(other, "en", { numeric: true });
const compareNumbers = (one, other) => one - other;
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.onclick = ({ target }) => {
    const head = target.closest("button")?.closest("th");
    if (!head) return;
    const order = head.ariaSort === "ascending" ? -1 : 1;
    const by = head.classList.contains("number") ? compareNumbers : compare;
    for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
    head.ariaSort = order > 0 ? "ascending" : "descending";
    const keys = [...table.tBodies[0].rows].map((row) => [valueIn(row, head.cellIndex), row]);
    keys.sort(([one], [other]) => (one === "") - (other === "") || order * by(one, other));
    table.tBodies[0].append(...keys.map(([, row]) => row));
  };
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.onclick = async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
  };
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
