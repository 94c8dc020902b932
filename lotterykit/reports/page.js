"use strict";
// The report's page works without this script; with it tables sort and filter, and charts answer the mouse.
(() => {
  const PAGE = 100;
  const make = (tag, text, attributes) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    return element;
  };
  const plain = (text) => text.toLowerCase();
  const number = (text) => {
    const found = /^[+−-]?[\d.,]+(e[+-]?\d+)?/i.exec(text.trim());
    return found ? Number(found[0].replaceAll(",", "").replace("−", "-")) : NaN;
  };
  // numbers before words, what is missing last in either direction
  const compare = (a, b, down) => {
    const lost = (v) => v === null || v === "" || v === "–" || Number.isNaN(v);
    if (lost(a) || lost(b)) return lost(a) - lost(b);
    const order = typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === typeof b ? a.localeCompare(b, "en", { numeric: true }) : typeof a === "number" ? -1 : 1;
    return down ? -order : order;
  };
  const sortable = (header, name, sort) => {
    const button = make("button", name, { type: "button", class: "sort" });
    header.replaceChildren(button);
    button.addEventListener("click", () => sort(header));
  };
  const turn = (headers, header) => {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    return down;
  };
  const searchBox = (label, changed) => {
    const box = make("input", undefined, { type: "search", placeholder: label, "aria-label": label });
    box.addEventListener("input", () => changed(box.value));
    return box;
  };
  const holds = (text, words) => words.every((word) => text.includes(word));
  const wordsOf = (text) => plain(text).split(/\s+/).filter(Boolean);

  // Tables of means: their rows are in the page, and are moved and hidden.
  for (const table of document.querySelectorAll("table.means")) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    const value = (row, column) => {
      const text = (row.cells[column].firstChild || { textContent: "" }).textContent;
      const found = number(text);
      return Number.isNaN(found) ? text : found;
    };
    headers.forEach((header, column) => sortable(header, header.textContent, () => {
      const down = turn(headers, header);
      table.classList.add("sorted");
      body.append(...rows.slice().sort((a, b) => compare(value(a, column), value(b, column), down)));
    }));
    if (rows.length > 8) {
      const texts = rows.map((row) => plain(row.textContent));
      table.parentElement.before(searchBox("Filter these rows", (text) => {
        const words = wordsOf(text);
        rows.forEach((row, i) => { row.hidden = !holds(texts[i], words); });
      }));
    }
  }

  // The table of all results: its columns are data, a page of rows is shown.
  const explorer = document.getElementById("results");
  const told = explorer ? JSON.parse(document.getElementById("all-results").textContent) : { columns: [] };
  const columns = told.columns.map((column) => ({ ...column, plain: (column.words || []).map(plain), filter: null }));
  const count = columns.length ? (columns[0].at || columns[0].values).length : 0;
  const cell = (column, row) => (column.words ? column.words[column.at[row]] : column.values[row]);
  let words = [], shown = [], page = 0, order = Array.from({ length: count }, (_, i) => i);
  let body, state, earlier, later;

  const range = (text) => {
    const value = "([+-]?(?:\\d+\\.?\\d*|\\.\\d+)(?:e[+-]?\\d+)?)";
    const bounds = new RegExp(`^\\s*(<=|>=|<|>|=)?\\s*${value}\\s*(?:\\.\\.\\s*${value})?\\s*$`, "i").exec(text);
    if (!bounds || (bounds[1] && bounds[3])) return undefined;
    const low = Number(bounds[2]), high = Number(bounds[3]);
    const test = bounds[3] ? (v) => v >= low && v <= high
      : { "<": (v) => v < low, "<=": (v) => v <= low, ">": (v) => v > low, ">=": (v) => v >= low }[bounds[1]]
      || ((v) => v === low);
    return (v) => v !== null && test(v);
  };
  const matches = (row) => {
    for (const column of columns) {
      if (column.filter && !column.filter(column.words ? column.at[row] : column.values[row])) return false;
    }
    return words.every((word) => columns.some((column) => (column.words
      ? column.plain[column.at[row]].includes(word)
      : column.values[row] !== null && String(column.values[row]).includes(word))));
  };
  const render = () => {
    const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    body.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
      const line = make("tr");
      for (const column of columns) {
        const value = cell(column, row);
        line.append(make("td", value === null ? "–" : String(value), column.words ? { class: "word" } : {}));
      }
      return line;
    }));
    const from = shown.length ? page * PAGE + 1 : 0;
    state.textContent = `${from} to ${Math.min((page + 1) * PAGE, shown.length)} of ${shown.length}`
      + (shown.length < count ? ` (filtered from ${count})` : "");
    earlier.disabled = page === 0;
    later.disabled = page === last;
  };
  const refresh = () => { shown = order.filter(matches); page = 0; render(); };

  const columnFilter = (column) => {
    if (column.words && column.words.length <= 300) {
      const choice = make("select", undefined, { "aria-label": `only ${column.name}` });
      choice.append(make("option", "all", { value: "" }));
      column.words.map((word, place) => [word, place])
        .sort((a, b) => compare(number(a[0]) || a[0], number(b[0]) || b[0], false))
        .forEach(([word, place]) => choice.append(make("option", word, { value: place })));
      choice.addEventListener("change", () => {
        const wanted = Number(choice.value);
        column.filter = choice.value === "" ? null : (at) => at === wanted;
        refresh();
      });
      return choice;
    }
    const example = column.words ? "text" : "> 0.9";
    const box = make("input", undefined, { type: "text", placeholder: example, "aria-label": `only ${column.name}` });
    box.addEventListener("input", () => {
      const text = plain(box.value.trim());
      const test = column.words ? (at) => column.plain[at].includes(text) : range(text);
      column.filter = text === "" ? null : test || null;
      box.setAttribute("aria-invalid", String(text !== "" && !test));
      refresh();
    });
    return box;
  };

  if (explorer) {
    const table = make("table", undefined, { class: "all" });
    const head = table.createTHead();
    const names = head.insertRow(), filters = head.insertRow();
    filters.className = "filters";
    const headers = columns.map((column) => {
      const kind = column.words ? { class: "word" } : {};
      const header = make("th", undefined, { scope: "col", ...kind });
      sortable(header, column.name, () => {
        const down = turn(headers, header);
        order.sort((a, b) => compare(cell(column, a), cell(column, b), down) || a - b);
        refresh();
      });
      const place = make("td", undefined, kind);
      column.box = columnFilter(column);
      place.append(column.box);
      filters.append(place);
      return header;
    });
    names.append(...headers);
    body = table.createTBody();
    const scroll = make("div", undefined, { class: "scroll" });
    scroll.append(table);
    const bar = make("div", undefined, { class: "bar" });
    state = make("output");
    earlier = make("button", "Earlier", { type: "button" });
    later = make("button", "Later", { type: "button" });
    const reset = make("button", "Show all", { type: "button" });
    earlier.addEventListener("click", () => { page -= 1; render(); });
    later.addEventListener("click", () => { page += 1; render(); });
    const search = searchBox("Filter all results", (text) => { words = wordsOf(text); refresh(); });
    const clear = () => {
      words = [];
      search.value = "";
      for (const column of columns) { column.filter = null; column.box.value = ""; column.box.removeAttribute("aria-invalid"); }
    };
    reset.addEventListener("click", () => { clear(); refresh(); });
    bar.append(search, earlier, later, reset, state);
    explorer.querySelector(".plain").replaceWith(bar, scroll);
    refresh();
    explorer.addEventListener("only", (event) => {
      clear();
      for (const column of columns) {
        const place = column.words ? column.words.indexOf(event.detail[column.name]) : -1;
        if (place < 0) continue;
        column.box.value = column.box.tagName === "SELECT" ? String(place) : column.words[place];
        column.filter = (at) => at === place;
      }
      refresh();
    });
  }

  // Charts: the marker nearest to the mouse tells its row; a click shows the results behind it.
  const REACH = 14;
  const tip = make("div", undefined, { id: "tip", role: "status", hidden: "" });
  document.body.append(tip);
  const rowsOf = new Map();
  for (const row of document.querySelectorAll("tr[data-row]")) rowsOf.set(row.dataset.row, row);
  let current = [], lit = [];
  const light = (marks) => {  // several where they lie on each other
    for (const element of lit) element.classList.remove("lit");
    current = marks;
    lit = [...marks, ...marks.map((mark) => rowsOf.get(mark.dataset.row)).filter(Boolean)];
    for (const element of lit) element.classList.add("lit");
    tip.hidden = !marks.length;
    tip.textContent = marks.map((mark) => mark.told).join("\n\n");
  };
  for (const svg of document.querySelectorAll(".paper svg")) {
    const marks = [...svg.querySelectorAll("use.mark")];
    for (const mark of marks) {  // else the browser's own tip would come on top
      const title = mark.querySelector("title");
      mark.told = title.textContent;
      title.remove();
    }
    const nearest = (event) => {
      const found = marks.map((mark) => {
        const box = mark.getBoundingClientRect();
        const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
        return { mark, away };
      }).sort((a, b) => a.away - b.away);
      if (!found.length || found[0].away > REACH) return [];
      return found.filter(({ away }) => away - found[0].away < 2).slice(0, 6).map(({ mark }) => mark);
    };
    svg.addEventListener("pointermove", (event) => {
      const found = nearest(event);
      if (found.length !== current.length || found.some((mark) => !current.includes(mark))) light(found);
      svg.style.cursor = found.some((mark) => mark.dataset.setting) ? "pointer" : "";
      if (!found.length) return;
      const left = Math.min(event.pageX + 14, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${event.pageY + 16}px`;
    });
    svg.addEventListener("pointerleave", () => light([]));
    svg.addEventListener("click", (event) => {
      const mark = nearest(event).find((one) => one.dataset.setting);
      if (!mark || !explorer) return;
      const { setting, method, asked, sweep } = mark.dataset;
      explorer.dispatchEvent(new CustomEvent("only", { detail: { setting: told.settings[setting], method, asked, sweep } }));
      explorer.scrollIntoView();
    });
  }
  document.documentElement.dataset.ready = "yes";
})();
