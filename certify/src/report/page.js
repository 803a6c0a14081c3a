"use strict";
// Each cell knows its column's name, which narrow screens show beside it.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
  for (const row of table.tBodies[0].rows) {
    for (const cell of row.cells) cell.dataset.label = heads[cell.cellIndex];
  }
}
// The page is made in the order of the constants.
for (const head of document.querySelectorAll("#runs th")) {
  if (head.textContent === "L ≤") head.setAttribute("aria-sort", "ascending");
}
// A click on a header sorts by its column, a second click reverses the order. Cells without a value come last.
for (const button of document.querySelectorAll("#runs th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = head.cellIndex;
    const number = head.classList.contains("number");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = number ? Number(x) - Number(y) : x.localeCompare(y);
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
// A link to a run opens it.
const open = () => {
  const run = document.getElementById(location.hash.slice(1));
  if (run instanceof HTMLDetailsElement) {
    run.open = true;
    run.scrollIntoView();
  }
};
addEventListener("hashchange", open);
open();
