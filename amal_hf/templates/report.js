"use strict";
// The table of examples. All of them are in `data`; only the rows in view are in the document.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.ids.length;
  const $ = (id) => document.getElementById(id);
  const MAX_HEIGHT = 8e6; // pixels; browsers draw no taller boxes, so a longer list scrolls by more than a row a row

  // ---- the data, ready to be searched ----

  const numbers = new Map(
    Object.entries(data.numbers).map(([title, values]) => [title, Float64Array.from(values, (v) => (v === null ? NaN : v))])
  );
  const weights = new Map(data.losses.map((name) => [name, numbers.get(`weight: ${name}`)]).filter(([, values]) => values));
  const largest = new Map([...weights.values()].map((values) => [values, values.reduce((a, b) => (b > a ? b : a), 0)]));
  const texts = Object.values(data.texts);
  const marks = new Uint8Array(count);
  const className = (number) => (number < 0 ? "" : data.classes[number] ?? String(number));
  const text = (row) => texts.map((column) => column[row]).join(" ¦ ");

  let searched = null;
  function haystack() {
    searched ??= data.ids.map((id, row) => `${id} ${text(row)}`.toLowerCase());
    return searched;
  }

  // Which rules vote on a row, as places in `fired`, all rows after one another: those of row r from start[r] on.
  const { start, fired } = (() => {
    const start = new Uint32Array(count + 1);
    if (!data.rules) return { start, fired: [] };
    for (const rows of data.rules.rows) for (const row of rows) start[row + 1] += 1;
    for (let row = 0; row < count; row += 1) start[row + 1] += start[row];
    const next = start.slice();
    const fired = new Array(start[count]);
    data.rules.rows.forEach((rows, rule) =>
      rows.forEach((row, place) => {
        const vote = data.rules.votes[rule][place];
        fired[next[row]++] = { rule, name: data.rules.names[rule], vote, weight: data.rules.weights[rule][place] };
      })
    );
    return { start, fired };
  })();
  const votesOn = (row) => fired.slice(start[row], start[row + 1]);
  const ruleNames = (row) => votesOn(row).map((vote) => vote.name).join(", ");

  // ---- columns ----

  const shown = (value) => (Number.isNaN(value) ? "" : value.toFixed(3));
  const classColumn = (title, values) => ({ title, kind: "class", of: (row) => className(values[row]) });
  const numberColumns = [...numbers].map(([title, values]) => ({ title, kind: "number", values, of: (row) => values[row] }));
  const isWeight = (column) => [...weights.values()].includes(column.values);
  const columns = [
    { title: "marked", kind: "mark", of: (row) => marks[row] },
    texts.length ? { title: "text", kind: "text", of: text } : null,
    { title: "example_id", kind: texts.length ? "id" : "text", of: (row) => data.ids[row] },
    ...numberColumns.filter(isWeight),
    data.labels && classColumn("label", data.labels),
    data.truth && classColumn("truth", data.truth),
    data.guesses && classColumn("student", data.guesses),
    ...numberColumns.filter((column) => !isWeight(column)),
    data.rules && { title: "rules", kind: "rules", of: ruleNames },
  ].filter(Boolean);

  // ---- sorting: one order for each column, kept; what is not known comes last ----

  const orders = new Map();
  function ordered(column) {
    if (column.kind === "mark" || !orders.has(column)) orders.set(column, orderOf(column));
    return orders.get(column);
  }
  function orderOf(column) {
    const values = column.values ?? Array.from({ length: count }, (_, row) => column.of(row));
    const unknown = (row) => values[row] === "" || Number.isNaN(values[row]);
    const rows = Uint32Array.from({ length: count }, (_, row) => row);
    const known = rows.filter((row) => !unknown(row));
    known.sort((a, b) => (values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : a - b));
    return { known, rest: rows.filter(unknown) };
  }

  let sorting = { column: columns.find((c) => c.values === [...weights.values()][0]) ?? columns[1], descending: false };

  // ---- filtering ----

  const comparisons = new Map([
    ["student ≠ label", data.guesses && data.labels && ((row) => data.guesses[row] >= 0 && data.labels[row] >= 0 && data.guesses[row] !== data.labels[row])],
    ["label ≠ truth", data.truth && data.labels && ((row) => data.truth[row] >= 0 && data.labels[row] >= 0 && data.truth[row] !== data.labels[row])],
    ["rules disagree", data.rules && ((row) => new Set(votesOn(row).map((vote) => vote.vote)).size > 1)],
  ].filter(([, test]) => test));

  function wanted() {
    const tests = [];
    const query = $("query").value.trim().toLowerCase();
    if (query) {
      const hay = haystack();
      tests.push((row) => hay[row].includes(query));
    }
    const label = $("label").value;
    if (label !== "") tests.push((row) => data.labels[row] === Number(label));
    if ($("compare").value) tests.push(comparisons.get($("compare").value));
    if ($("rule").value !== "") {
      const votes = new Uint8Array(count);
      for (const row of data.rules.rows[Number($("rule").value)]) votes[row] = 1;
      tests.push((row) => votes[row]);
    }
    // Of the chosen loss, or of any.
    const meant = $("loss").value ? [weights.get($("loss").value)] : [...weights.values()];
    const from = $("from").value === "" ? -Infinity : Number($("from").value);
    const to = $("to").value === "" ? Infinity : Number($("to").value);
    if ($("loss").value || from > -Infinity || to < Infinity) {
      tests.push((row) => meant.some((values) => values[row] >= from && values[row] <= to)); // never true of NaN
    }
    if ($("marked").checked) tests.push((row) => marks[row]);
    return (row) => tests.every((test) => test(row));
  }

  let selection = new Uint32Array(0);
  function select() {
    const { known, rest } = ordered(sorting.column);
    const test = wanted();
    const first = sorting.descending ? known.slice().reverse() : known;
    selection = Uint32Array.from([...first.filter(test), ...rest.filter(test)]);
    active = 0;
    scroller.scrollTop = 0;
    describe();
    measure();
    draw();
  }

  function describe() {
    const means = [...weights].map(([name, values]) => {
      let sum = 0, known = 0;
      for (const row of selection) if (!Number.isNaN(values[row])) (sum += values[row]), (known += 1);
      return known ? `${name} ${(sum / known).toFixed(3)}` : null;
    }).filter(Boolean);
    const mean = means.length ? `; mean weight: ${means.join(", ")}` : "";
    $("count").textContent = `${selection.length.toLocaleString("en")} of ${count.toLocaleString("en")} examples${mean}`;
  }

  // ---- drawing ----

  const scroller = $("scroller"), table = $("rows"), head = table.tHead, body = table.tBodies[0];
  let active = 0, visible = 1, first = 0, chosen = -1;

  function element(name, content, classes) {
    const made = document.createElement(name);
    if (content !== undefined) made.textContent = content;
    if (classes) made.className = classes;
    return made;
  }

  function drawHead() {
    const row = element("tr");
    const widths = { mark: 4.5, text: matchMedia("(max-width: 60rem)").matches ? 15 : 24, id: 6.5, class: 8.5, number: 5.8, rules: 14 };
    $("space").style.minWidth = `${columns.reduce((sum, column) => sum + widths[column.kind], 0)}rem`;
    for (const column of columns) {
      const cell = element("th", undefined, column.kind);
      const sorted = column === sorting.column;
      cell.scope = "col";
      cell.style.width = `${widths[column.kind]}rem`;
      cell.setAttribute("aria-sort", sorted ? (sorting.descending ? "descending" : "ascending") : "none");
      const button = element("button", column.title + (sorted ? (sorting.descending ? " ▼" : " ▲") : ""));
      button.type = "button";
      button.title = `Sort by ${column.title}`;
      button.addEventListener("click", () => sortBy(column));
      cell.append(button);
      row.append(cell);
    }
    head.replaceChildren(row);
  }

  function sortBy(column) {
    sorting = { column, descending: sorting.column === column && !sorting.descending };
    drawHead();
    head.rows[0].cells[columns.indexOf(column)].firstChild.focus();
    select();
  }

  function cellOf(column, row, place) {
    const cell = element("td", undefined, column.kind);
    const value = column.of(row);
    if (column.kind === "mark") {
      const box = element("input");
      box.type = "checkbox";
      box.checked = Boolean(value);
      box.tabIndex = place === active ? 0 : -1;
      box.setAttribute("aria-label", `mark ${data.ids[row]}`);
      box.addEventListener("change", () => (marks[row] = box.checked ? 1 : 0));
      cell.append(box);
    } else if (column.kind === "text") {
      const button = element("button", value === "" ? "(empty)" : value, value === "" ? "empty" : "");
      button.type = "button";
      button.tabIndex = place === active ? 0 : -1;
      button.addEventListener("click", () => choose(place));
      cell.append(button);
    } else if (column.kind === "number") {
      cell.textContent = shown(value);
      if (largest.get(column.values)) {
        cell.classList.add("weight");
        cell.style.backgroundSize = `${(100 * (value || 0)) / largest.get(column.values)}% 100%`;
      }
    } else {
      const differs = column.title === "student" && data.labels && value !== "" && value !== className(data.labels[row]);
      cell.textContent = differs ? `≠ ${value}` : value;
      cell.classList.toggle("differs", Boolean(differs));
      cell.title = value;
    }
    return cell;
  }

  function draw() {
    const reach = scroller.scrollHeight - scroller.clientHeight;
    const last = Math.max(selection.length - visible, 0);
    first = reach > 0 ? Math.round((scroller.scrollTop / reach) * last) : 0;
    const focused = body.contains(document.activeElement) && document.activeElement.tagName === "BUTTON";
    const rows = [];
    for (let place = first; place < Math.min(first + visible, selection.length); place += 1) {
      const row = selection[place];
      const line = element("tr", undefined, row === chosen ? "chosen" : "");
      line.setAttribute("aria-rowindex", place + 2);
      line.append(...columns.map((column) => cellOf(column, row, place)));
      rows.push(line);
    }
    body.replaceChildren(...rows);
    table.setAttribute("aria-rowcount", selection.length + 1);
    const buttons = [...body.querySelectorAll("button")];
    const current = buttons.find((button) => button.tabIndex === 0);
    if (!current && buttons.length) buttons[0].tabIndex = 0;
    if (focused && current) current.focus({ preventScroll: true });
  }

  function measure() {
    const line = body.rows[0]?.offsetHeight || 32;
    visible = Math.max(1, Math.floor((scroller.clientHeight - head.offsetHeight) / line));
    $("space").style.height = `${Math.min(selection.length * line, MAX_HEIGHT) + head.offsetHeight}px`;
  }

  function choose(place) {
    active = place;
    chosen = selection[place];
    draw();
    const details = $("details");
    const pairs = columns.filter((c) => !["mark", "text", "rules"].includes(c.kind)).map((c) => {
      const value = c.of(chosen);
      return [c.title, c.kind === "number" ? (Number.isNaN(value) ? "" : value.toFixed(4)) : value];
    });
    const facts = tableOf(pairs);
    const votes = votesOn(chosen).map((v) => [v.name, `${className(v.vote)}${v.weight === null ? "" : `, weight ${v.weight.toFixed(3)}`}`]);
    details.replaceChildren(
      element("h3", `Example ${data.ids[chosen]}`),
      ...Object.entries(data.texts).map(([, column]) => element("p", column[chosen], "whole")),
      facts,
      ...(votes.length ? [element("h3", "Votes of rules"), tableOf(votes)] : [])
    );
  }

  function tableOf(pairs) {
    const made = element("table");
    for (const [name, value] of pairs) {
      const row = made.insertRow();
      const heading = element("th", name);
      heading.scope = "row";
      row.append(heading, element("td", value));
    }
    return made;
  }

  // ---- keyboard: one row is reached by Tab, the arrows move among all ----

  function move(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: visible, PageUp: -visible, Home: -count, End: count };
    if (!(event.key in steps) || !selection.length) return;
    event.preventDefault();
    active = Math.min(Math.max(active + steps[event.key], 0), selection.length - 1);
    const last = Math.max(selection.length - visible, 1);
    const reach = scroller.scrollHeight - scroller.clientHeight;
    if (active < first) scroller.scrollTop = (active / last) * reach;
    else if (active >= first + visible) scroller.scrollTop = ((active - visible + 1) / last) * reach;
    draw();
    const current = [...body.querySelectorAll("button")].find((button) => button.tabIndex === 0);
    current?.focus({ preventScroll: true });
  }

  // ---- export ----

  function quoted(value) {
    // A spreadsheet would run a cell of text that begins like a formula.
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value ?? "");
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function csv() {
    const parts = columns.filter((column) => column.kind !== "text" || !texts.length).map((c) => ({ title: c.title, of: c.of }));
    parts.splice(1, 0, ...Object.entries(data.texts).map(([title, column]) => ({ title, of: (row) => column[row] })));
    const lines = [parts.map((part) => quoted(part.title)).join(",")];
    for (const row of selection) {
      lines.push(parts.map((part) => {
        const value = part.of(row);
        return Number.isNaN(value) ? "" : quoted(value);
      }).join(","));
    }
    return lines.join("\r\n") + "\r\n";
  }

  function download() {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "selection.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ---- begin ----

  function offer(id, options) {
    for (const [value, title] of options) {
      const option = element("option", title);
      option.value = value;
      $(id).append(option);
    }
    $(id).closest("label").hidden = !options.length;
  }

  offer("label", data.labels ? data.classes.map((name, number) => [number, name]) : []);
  offer("compare", [...comparisons.keys()].map((name) => [name, name]));
  offer("rule", data.rules ? data.rules.names.map((name, number) => [number, name]) : []);
  offer("loss", [...weights.keys()].map((name) => [name, name]));
  for (const id of ["from", "to"]) $(id).closest("label").hidden = !weights.size;

  let waiting = 0;
  $("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 60);
  });
  // Before the first letter is typed, so that the first search is as quick as the next.
  $("query").addEventListener("focus", haystack, { once: true });
  $("filters").addEventListener("reset", () => setTimeout(select));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("export").addEventListener("click", download);
  for (const button of document.querySelectorAll("[data-rule]")) {
    button.addEventListener("click", () => {
      $("rule").value = data.rules.names.indexOf(button.dataset.rule);
      select();
      $("examples").scrollIntoView();
      $("rule").focus({ preventScroll: true });
    });
  }
  body.addEventListener("keydown", move);
  let frame = 0;
  scroller.addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  });
  new ResizeObserver(() => (measure(), draw())).observe(scroller);
  drawHead();
  select();
  measure();
  draw();
})();
