"use strict";

// What the page holds: the groups in their order, and each image by its place in page.images.
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page").textContent);
const keyOf = (id, kept) => JSON.stringify([id, kept]);
const textOf = (element) =>
  [...element.querySelectorAll(".id, .captions li")].map((part) => part.textContent).join("\n").toLowerCase();

const groups = [...document.querySelectorAll(".group")].map((element) => ({
  element,
  size: Number(element.dataset.size),
  farthest: Number(element.dataset.farthest),
  doubt: Number(element.dataset.doubt),
  place: Number(element.dataset.place),
  text: textOf(element),
  families: [...element.querySelectorAll(".family")],
  images: [...element.querySelectorAll(".dropped")].map((figure) => {
    const [id, kept, stage, distance] = page.images[Number(figure.dataset.place)];
    return { figure, key: keyOf(id, kept), stage, distance };
  }),
}));
const images = new Map(groups.flatMap((group) => group.images.map((image) => [image.key, image])));
let current = null;

// Decisions: [id, kept id] as JSON -> "accept" or "reject". They outlive the page where the browser allows it.
let decisions = new Map();
const undoable = [];

function load() {
  try {
    decisions = new Map(Object.entries(JSON.parse(localStorage.getItem(page.key) ?? "{}")));
    save();
  } catch {
    byId("unsaved").hidden = false;
  }
}

function save() {
  try {
    localStorage.setItem(page.key, JSON.stringify(Object.fromEntries(decisions)));
  } catch {
    byId("unsaved").hidden = false;
  }
}

function put(changes) {
  for (const [key, decision] of changes) {
    if (decision) decisions.set(key, decision);
    else decisions.delete(key);
  }
  save();
  draw(changes.map(([key]) => key));
}

function decide(keys, decision) {
  const changes = keys.filter((key) => decisions.get(key) !== decision).map((key) => [key, decision]);
  if (!changes.length) return;
  undoable.push(changes.map(([key]) => [key, decisions.get(key)]));
  put(changes);
}

function undo() {
  const changes = undoable.pop();
  if (changes) put(changes);
  say(changes ? `Undone: ${changes.length} ${changes.length === 1 ? "decision" : "decisions"}.` : "Nothing to undo.");
}

function draw(keys) {
  for (const key of keys) {
    const figure = images.get(key)?.figure;
    if (!figure) continue;
    const decision = decisions.get(key);
    if (decision) figure.dataset.decision = decision;
    else delete figure.dataset.decision;
    for (const button of figure.querySelectorAll("[data-decide]")) {
      button.setAttribute("aria-pressed", String(button.dataset.decide === decision));
    }
  }
  const here = [...images.keys()].map((key) => decisions.get(key));
  const count = (decision) => here.filter((found) => found === decision).length.toLocaleString("en");
  const decided = here.filter(Boolean).length;
  byId("decided").textContent = decided.toLocaleString("en");
  byId("accepted").textContent = count("accept");
  byId("rejected").textContent = count("reject");
  byId("progress").value = decided;
  byId("export").disabled = byId("clear").disabled = !decisions.size;
  byId("undo").disabled = !undoable.length;
  if (byId("undecided").checked) filter();
}

// Filters choose images by stage and distance, and groups by all the rest.
const bound = (id, otherwise) => (byId(id).value === "" ? otherwise : Number(byId(id).value));

function filter() {
  const stage = byId("stage").value;
  const text = byId("text").value.toLowerCase();
  const undecided = byId("undecided").checked;
  const [near, far] = [bound("near", -Infinity), bound("far", Infinity)];
  const [least, most] = [bound("least", 0), bound("most", Infinity)];
  const anyDistance = near === -Infinity && far === Infinity;
  let shown = 0;
  for (const group of groups) {
    for (const image of group.images) {
      const inside = image.distance === null ? anyDistance : image.distance >= near && image.distance <= far;
      image.figure.hidden = !(inside && (!stage || image.stage === stage));
    }
    const found = visible(group);
    group.element.hidden =
      (!found.length && (stage !== "" || !anyDistance || undecided)) ||
      (undecided && found.every((image) => decisions.has(image.key))) ||
      group.size < least || group.size > most || !group.text.includes(text);
    const hidden = group.images.length - found.length;
    const note = group.element.querySelector(".filtered");
    note.hidden = !hidden;
    note.textContent = `${hidden} more hidden by the filters; the group's buttons leave them alone.`;
    for (const family of group.families) {
      const dropped = [...family.querySelectorAll(".dropped")];
      family.hidden = dropped.length > 0 && dropped.every((figure) => figure.hidden);
    }
    if (!group.element.hidden) shown += 1;
  }
  byId("shown").textContent = shown.toLocaleString("en");
  byId("nothing").hidden = shown > 0 || !groups.length;
}

const visible = (group) => group.images.filter((image) => !image.figure.hidden);

function sort() {
  const orders = {
    size: () => 0,
    distance: (a, b) => b.farthest - a.farthest,
    stage: (a, b) => b.doubt - a.doubt || b.farthest - a.farthest,
  };
  groups.sort((a, b) => orders[byId("sort").value](a, b) || a.place - b.place);
  byId("groups").append(...groups.map((group) => group.element));
}

// Walking from group to group.
function mark(group) {
  current?.element.removeAttribute("aria-current");
  current = group;
  group.element.setAttribute("aria-current", "true");
}

function go(group) {
  if (!group) return;
  mark(group);
  document.documentElement.style.setProperty("--bar", `${barHeight()}px`);
  group.element.focus({ preventScroll: true });
  group.element.scrollIntoView({ block: "start" });
}

function step(by) {
  const seen = groups.filter((group) => !group.element.hidden || group === current);
  const place = seen.indexOf(current);
  if (place < 0) return go(seen.find((group) => group.element.getBoundingClientRect().bottom > barHeight()) ?? seen[0]);
  return go(seen.slice(by > 0 ? place + 1 : 0, by > 0 ? undefined : place).at(by > 0 ? 0 : -1));
}

const barHeight = () => byId("bar").getBoundingClientRect().height + 12;

function decideGroup(group, decision) {
  if (!group || group.element.hidden) return;
  decide(visible(group).map((image) => image.key), decision);
  if (group.element.hidden) step(1);
}

// CSV after RFC 4180: every value is quoted, so that no id can break a row.
const quoted = (value) => `"${value.replaceAll('"', '""')}"`;

function exported() {
  const elsewhere = [...decisions.keys()].filter((key) => !images.has(key));
  const keys = [...[...images.keys()].filter((key) => decisions.has(key)), ...elsewhere];
  const rows = keys.map((key) => [...JSON.parse(key), decisions.get(key)].map(quoted).join(","));
  return ["id,kept_id,decision", ...rows, ""].join("\r\n");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "text/csv;charset=utf-8" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`Exported ${decisions.size} ${decisions.size === 1 ? "decision" : "decisions"} to decisions.csv.`);
}

function records(text) {
  const value = /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|\r|\n|$)/y;
  const rows = [[]];
  while (value.lastIndex < text.length) {
    const start = value.lastIndex;
    const found = value.exec(text);
    if (!found) throw new Error(`not a CSV, at record ${rows.length}: ${text.slice(start, start + 40)}`);
    rows.at(-1).push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (found[3] !== ",") rows.push([]);
    else if (value.lastIndex === text.length) rows.at(-1).push("");
  }
  return rows.filter((row) => row.length > 1 || row[0]);
}

function imported(text) {
  const [header = [], ...rows] = records(text.replace(/^\uFEFF/, ""));
  const places = ["id", "kept_id", "decision"].map((column) => {
    if (!header.includes(column)) throw new Error(`the column "${column}" is missing`);
    return header.indexOf(column);
  });
  const found = new Map();
  for (const [place, row] of rows.entries()) {
    const [id, kept, decision] = places.map((column) => row[column]);
    const key = keyOf(id, kept);
    const problem =
      row.length !== header.length ? `${row.length} values for ${header.length} columns`
      : decision !== "accept" && decision !== "reject" ? `"${decision}" is neither "accept" nor "reject"`
      : (found.get(key) ?? decision) !== decision ? `"${decision}" contradicts an earlier row on "${id}"`
      : null;
    if (problem) throw new Error(`record ${place + 2}: ${problem}`);
    found.set(key, decision);
  }
  return found;
}

async function upload(file) {
  try {
    const found = imported(await file.text());
    const replaced = [...found].filter(([key, decision]) => (decisions.get(key) ?? decision) !== decision).length;
    const elsewhere = [...found.keys()].filter((key) => !images.has(key)).length;
    undoable.push([...found.keys()].map((key) => [key, decisions.get(key)]));
    put([...found]);
    say(
      `Imported ${found.size} decisions from ${file.name}` +
      (replaced ? `; ${replaced} replaced one made here` : "") +
      (elsewhere ? `; ${elsewhere} concern images not on this page and are exported with the rest` : "") + ".",
    );
  } catch (error) {
    say(`${file.name}: nothing was imported: ${error.message}.`);
  }
}

function say(text) {
  byId("message").textContent = text;
}

async function copy(button) {
  const [id] = page.images[Number(button.closest("figure").dataset.place)];
  try {
    await navigator.clipboard.writeText(id);
  } catch {
    const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: id }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied ${id}`);
}

// What the buttons, fields and keys do.
const buttons = {
  export: download,
  import: () => byId("file").click(),
  undo,
  clear: () => {
    if (confirm(`Forget all ${decisions.size} decisions?`)) decide([...decisions.keys()], undefined);
  },
  everything: () => {
    byId("filters").reset();
    sort();
    filter();
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const element = event.target.closest(".group");
  const group = groups.find((found) => found.element === element);
  if (group) mark(group);
  if (!button) return;
  if (button.matches(".copy")) copy(button);
  else if (button.dataset.decideGroup) decideGroup(group, button.dataset.decideGroup);
  else if (button.dataset.decide) {
    const { key } = group.images.find((image) => image.figure.contains(button));
    decide([key], decisions.get(key) === button.dataset.decide ? undefined : button.dataset.decide);
  } else buttons[button.id]?.();
});

const keys = {
  j: () => step(1),
  k: () => step(-1),
  a: () => decideGroup(current, "accept"),
  r: () => decideGroup(current, "reject"),
  u: undo,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  keys[event.key.toLowerCase()]?.();
});

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", (event) => {
  if (event.target.id === "sort") sort();
  filter();
});
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) upload(event.target.files[0]);
  event.target.value = "";
});

byId("bar").hidden = false;
if (matchMedia("(max-width: 640px)").matches) byId("choose").open = false;
load();
draw([...decisions.keys()]);
sort();
filter();
