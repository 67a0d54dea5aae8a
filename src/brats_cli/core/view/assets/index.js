// Sorts the table by the column whose head is chosen: down at first for numbers, up for names.
"use strict";
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const column = [...head.parentElement.children].indexOf(head);
    const first = column === 1 ? "ascending" : "descending";
    const second = column === 1 ? "descending" : "ascending";
    const order = head.ariaSort === first ? second : first;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const value = (row) => row.children[column].dataset.value;
    const compare = column === 1
      ? (a, b) => value(a).localeCompare(value(b), undefined, { numeric: true })
      : (a, b) => Number(value(a)) - Number(value(b));
    const body = document.querySelector("tbody");
    const rows = [...body.children];
    const known = rows.filter((row) => value(row) !== "").sort(compare);
    if (order === "descending") known.reverse();
    body.append(...known, ...rows.filter((row) => value(row) === "")); // without a value: last
  });
}
