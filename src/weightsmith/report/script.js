"use strict";
(() => {
  const tip = document.getElementById("tip");

  function show(text, event) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
    const top = event.clientY + 18 + box.height > innerHeight ? event.clientY - 12 - box.height : event.clientY + 18;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  }

  function inside(svg, event) {
    return new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  }

  // A map: row, column, what is measured, and the value of the cell at the pointer.
  function cellText(map, event) {
    const here = inside(map, event), [left, top, width, height] = map.dataset.at.split(" ").map(Number);
    map.told ??= {
      rows: JSON.parse(map.dataset.r), columns: JSON.parse(map.dataset.c),
      values: map.dataset.v.split(";").map((row) => row.split("|")),
    };
    const { rows, columns, values } = map.told;
    const i = Math.floor((here.y - top) / height), j = Math.floor((here.x - left) / width);
    const mark = map.querySelector(".mark"), found = i in rows && j in columns;
    mark.setAttribute("x", found ? left + j * width : -99);
    mark.setAttribute("y", found ? top + i * height : 0);
    return found ? rows[i] + ", " + columns[j] + "\n" + map.dataset.m + ": " + values[i][j] : "";
  }

  // Lines: the values of all of them at the nearest place.
  function placeText(svg, event) {
    const here = inside(svg, event);
    svg.places ??= JSON.parse(svg.dataset.x);
    const at = Math.round((here.x - svg.dataset.from) / svg.dataset.step);
    if (at < 0 || at >= svg.places.length) return "";
    const cross = svg.querySelector(".cross"), x = Number(svg.dataset.from) + at * svg.dataset.step;
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    const rows = [...svg.querySelectorAll("g[data-y]")].map((line) => {
      line.values ??= line.dataset.y.split("|");
      return line.dataset.n + ": " + line.values[at];
    });
    const shown = rows.length > 14 ? [rows.at(-1), ...rows.slice(0, 12), "and " + (rows.length - 13) + " more"] : rows;
    return [svg.places[at], ...shown].join("\n");
  }

  // A title is shown at once, in the page's own tip, in place of the browser's.
  function titleText(target) {
    for (let at = target; at && at.localName !== "svg"; at = at.parentNode) {
      const title = at.querySelector?.(":scope > title");
      if (title) {
        at.told = title.textContent;
        title.remove();
      }
      if (at.told) return at.told;
    }
    return "";
  }

  function hover(event) {
    const target = event.target, svg = target.closest?.("svg");
    let text = "";
    if (svg) {
      if (svg.dataset.x) text = placeText(svg, event);
      else if (svg.dataset.at) text = cellText(svg, event);
      else text = titleText(target);
    }
    if (text) show(text, event);
    else tip.hidden = true;
  }
  document.addEventListener("pointermove", hover);
  document.addEventListener("pointerdown", hover);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  function key(row, at) {
    const cell = row.cells[at];
    if (cell.dataset.v === undefined) return cell.textContent;
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  }

  const words = new Intl.Collator("en", { numeric: true });

  function sort(table, at, down) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, i) => [key(row, at), i, row]);
    rows.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === "number" ? a - b : words.compare(a, b);
      return (down ? -order : order) || i - j;
    });
    body.append(...rows.map(([, , row]) => row));
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      if (i === at) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, at) => {
      cell.firstElementChild.addEventListener("click", () => {
        const old = cell.getAttribute("aria-sort");
        sort(table, at, old ? old === "ascending" : cell.classList.contains("n"));
      });
    });
  }

  for (const input of document.querySelectorAll(".filter input")) {
    const part = input.closest("div"), rows = [...part.querySelector("table").tBodies[0].rows];
    const told = input.nextElementSibling;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let left = 0;
      for (const row of rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
        left += !row.hidden;
      }
      told.textContent = left.toLocaleString("en") + " rows";
    });
  }
})();
