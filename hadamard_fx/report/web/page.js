"use strict";
// Sorting, filtering, and the graph around a product. The page says everything but the graphs without this script.
for (const section of document.querySelectorAll("section.report")) {
  const body = section.querySelector("table.products tbody");
  if (!body) continue;
  const rows = Array.from(body.rows, (row) => ({ row, text: row.textContent.toLowerCase(), data: row.dataset }));
  const control = (name) => section.querySelector(`[data-filter="${name}"]`);
  const shown = section.querySelector("output");

  const filter = () => {
    const words = control("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const role = control("role").value, scheme = control("scheme").value, changed = control("changed").checked;
    let count = 0;
    for (const { row, text, data } of rows) {
      const fits = (!role || data.role === role) && (!scheme || data.scheme === scheme)
        && (!changed || row.classList.contains("rewritten")) && words.every((word) => text.includes(word));
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} products shown`;
  };
  let waiting = 0;
  section.querySelector(".filters").addEventListener("input", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(filter);
  });
  section.querySelector(".filters").hidden = false;
  filter();

  const compare = new Intl.Collator("en", { numeric: true }).compare;
  for (const button of section.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex;
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = ({ row }) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const keyed = rows.map((entry) => [key(entry), entry.row]);
      if (head.classList.contains("number")) {
        keyed.sort((a, b) => sign * ((a[0] === "" ? Infinity : +a[0]) - (b[0] === "" ? Infinity : +b[0]) || 0));
      } else keyed.sort((a, b) => sign * compare(a[0], b[0]));
      body.append(...keyed.map(([, row]) => row));
    });
  }

  const stored = section.querySelector("script.graphs");
  if (!stored) continue;
  let graphs = null;
  const place = section.querySelector(".graph");
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button.show-graph");
    if (!button) return;
    graphs ??= JSON.parse(stored.textContent);
    const heading = document.createElement("h3");
    const [layer, role] = button.closest("tr").cells;
    heading.textContent = `The graph around ${role.textContent} of ${layer.textContent}`;
    place.replaceChildren(heading);
    for (const side of ["before", "after"]) {
      place.append(...picture(side, around(graphs[side], button.dataset.node, side === "after")));
    }
    const close = document.createElement("button");
    close.textContent = "back to the product";
    close.addEventListener("click", () => { place.replaceChildren(); button.focus(); });
    place.append(close);
    place.focus();
  });
}

// Nodes as [name, op, inputs, value, product]: those of the product and their neighbours, in the order of the graph.
function around(nodes, product, after) {
  const own = new Set(nodes.filter((n) => n[0] === product || (after && n[4] === product)).map((n) => n[0]));
  const users = new Map();
  for (const node of nodes) for (const input of node[2]) users.set(input, [...(users.get(input) ?? []), node[0]]);
  const inputs = new Map(nodes.map((n) => [n[0], n[2]]));
  const chosen = new Set(own);
  for (const next of [inputs, users]) {  // up from it, then down: never to the other readers of what it reads
    let edge = [...own];
    for (let step = 0; step < 2; step++) {
      const found = edge.flatMap((name) => next.get(name) ?? []).filter((name) => !chosen.has(name));
      edge = [...new Set(found)].slice(0, 12);
      edge.forEach((name) => chosen.add(name));
    }
  }
  return { own, nodes: nodes.filter((n) => chosen.has(n[0])) };
}

function picture(side, { own, nodes }) {
  const make = (kind, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const heading = document.createElement("strong");
  heading.textContent = side === "before" ? "Before" : "After";
  const place = new Map(), filled = [];
  for (const [name, , inputs] of nodes) {
    const column = Math.max(-1, ...inputs.filter((i) => place.has(i)).map((i) => place.get(i)[0])) + 1;
    filled[column] = (filled[column] ?? 0) + 1;
    place.set(name, [column, filled[column] - 1]);
  }
  const across = 190, down = 52, width = filled.length * across, height = Math.max(1, ...filled.map((n) => n ?? 0)) * down;
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.setAttribute("aria-label", `The graph ${side} the passes, as listed below`);
  for (const [name, , inputs] of nodes) {
    const [column, row] = place.get(name), x = column * across + 4, y = row * down + 22;
    for (const input of inputs.filter((i) => place.has(i))) {
      const [c, r] = place.get(input), from = c * across + 170, at = r * down + 22;
      svg.append(make("path", { class: "edge", d: `M${from} ${at} C${from + 16} ${at} ${x - 16} ${y} ${x} ${y}` }));
    }
  }
  for (const [name, op, , value] of nodes) {
    const [column, row] = place.get(name), x = column * across + 4, y = row * down + 2;
    const box = make("rect", { class: own.has(name) ? "box made" : "box", x, y, width: 166, height: 40, rx: 5 });
    box.append(make("title", {}, `${name}: ${value}`));
    svg.append(box);
    const short = (text) => (text.length > 25 ? `${text.slice(0, 24)}…` : text);
    svg.append(make("text", { x: x + 6, y: y + 17 }, short(op === "placeholder" ? name : op)));
    svg.append(make("text", { x: x + 6, y: y + 33, class: "quiet" }, short(value)));
  }
  const scroll = (child) => {
    const box = document.createElement("div");
    box.className = "scroll"; box.tabIndex = 0; box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Graph ${side}`);
    box.append(child);
    return box;
  };
  const list = document.createElement("pre");
  list.textContent = nodes.map((n) => `${own.has(n[0]) ? "▸" : " "} ${n[0]} = ${n[1]}(${n[2].join(", ")})  ${n[3]}`).join("\n");
  return [heading, scroll(svg), scroll(list)];
}
