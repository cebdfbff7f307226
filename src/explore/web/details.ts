// The right side: one object decoded, bit by bit, and the machine around it: lists in their order, swap map, zones.
import { GLOSSARY } from "weir-schema";
import { Recording } from "./recording";
import { MAPPING_ANON, MAPPING_FILE, MAPPING_KSM, Replay, entryText, entryType, keyHigh, keyLow, pteEntry, pteIsFile, pteIsSwap, ptePfn, ptePgoff, ptePresent } from "./replay";
import { ObjectId, Objects, processName } from "./objects";
import { flagNames, hex, lruText, pteText, swapMapText } from "./text";

export type Pick = (object: ObjectId) => void;

export function node(tag: string, attributes: Record<string, string> = {}, ...inside: (Node | string)[]): HTMLElement {
  const e = document.createElement(tag);
  for (const [k, value] of Object.entries(attributes)) e.setAttribute(k, value);
  e.append(...inside);
  return e;
}
/** A word that the glossary knows says what it means. */
export function word(text: string): Node {
  const means = GLOSSARY[text];
  return means === undefined ? document.createTextNode(text) : node("abbr", { title: means, tabindex: "0" }, text);
}
type Row = [string, Node | string];
function table(rows: Row[]): HTMLElement {
  return node("table", {}, ...rows.map(([head, text]) => node("tr", {}, node("th", { scope: "row" }, word(head)), node("td", {}, text))));
}
function objectLink(objects: Objects, id: ObjectId, text: string, pick: Pick): HTMLElement {
  const b = node("button", { type: "button", class: "link", "data-object": objects.text(id) }, text);
  b.addEventListener("click", () => pick(id));
  return b;
}
function several(parts: HTMLElement[], none: string): Node | string {
  if (parts.length === 0) return none;
  const span = node("span");
  parts.forEach((p, n) => span.append(...(n > 0 ? [", ", p] : [p])));
  return span;
}

const PTE_BITS: [number, string, string][] = [
  [11, "SD", "soft dirty"], [9, "SP", "special"], [6, "D", "dirty"], [5, "A", "accessed"], [2, "US", "user"], [1, "RW", "writable"], [0, "P", "present"],
];

function pteBits(pte: bigint): HTMLElement {
  const cells = PTE_BITS.map(([bit, short, name]) => {
    const on = ((pte >> BigInt(bit)) & 1n) !== 0n;
    return node("span", { class: on ? "bit on" : "bit", title: `bit ${bit}, ${name}: ${on ? 1 : 0}` }, short, node("b", {}, on ? "1" : "0"));
  });
  const middle = ptePresent(pte) ? `pfn ${ptePfn(pte)}` : pteIsSwap(pte) ? entryText(pteEntry(pte)) : pteIsFile(pte) ? `page ${ptePgoff(pte)}` : "0";
  return node("div", { class: "bits", role: "img", "aria-label": pteText(pte) }, node("span", { class: "bit wide on" }, ptePresent(pte) ? "63…12" : "63…9, 6…2", node("b", {}, middle)),
    ...(ptePresent(pte) || pte === 0n ? cells : cells.slice(-1)));
}

export function objectDetails(into: Element, rec: Recording, r: Replay, objects: Objects, id: ObjectId | undefined, pick: Pick): void {
  if (id === undefined) {
    into.replaceChildren(node("p", { class: "dim" }, "This step is about no single object."));
    return;
  }
  const n = objects.number(id);
  const link = (kind: "pfn" | "slot" | "mm", number: number, text: string): HTMLElement => objectLink(objects, objects.id(kind, number), text, pick);
  const keys = (set: Set<bigint> | undefined): Node | string =>
    several([...(set ?? [])].slice(0, 10).map((key) => objectLink(objects, objects.keyed("pte", key), `${processName(r, keyHigh(key))} ${hex(keyLow(key))}`, pick)), "nobody");
  switch (objects.kind(id)) {
    case "pte": {
      const key = objects.key(id);
      const pte = r.ptes.get(key) ?? 0n;
      const rows: Row[] = [["address", hex(keyLow(key))], ["process", link("mm", keyHigh(key), processName(r, keyHigh(key)))], ["value", hex(pte)]];
      if (ptePresent(pte)) rows.push(["frame", link("pfn", ptePfn(pte), `pfn ${ptePfn(pte)}`)]);
      if (pteIsSwap(pte)) rows.push(["swap entry", link("slot", pteEntry(pte), entryText(pteEntry(pte)))], ["swap_map", swapMapText(rec, r.swapMap.get(pteEntry(pte)) ?? 0)]);
      into.replaceChildren(node("p", { class: "what" }, word("page-table entry")), pteBits(pte), table(rows));
      return;
    }
    case "pfn": {
      const f = r.frames.get(n);
      if (f === undefined) return into.replaceChildren(node("p", { class: "what" }, `frame ${n}`), node("p", { class: "dim" }, "The recording has not told of it yet."));
      const told = (x: number | undefined): string => (x === undefined ? "not told yet" : String(x));
      const mapping = f.mapping === undefined ? "not told yet" : f.mapping === MAPPING_ANON ? "anon_vma" : f.mapping === MAPPING_KSM ? "stable node (KSM)"
        : f.mapping === MAPPING_FILE ? (f.inCache ? `file ${keyHigh(f.file)}` : "address_space") : "none";
      const flags = node("div", { class: "flags" }, ...(f.flags === undefined ? ["not told yet"] : flagNames(f.flags).map((name) => node("span", { class: "flag" }, `PG_${name}`))));
      into.replaceChildren(node("p", { class: "what" }, word("frame"), ` ${n}, physical ${hex(n * 4096)}`), flags, table([
        ["_count", told(f.count)], ["_mapcount", f.mapcount === undefined ? "not told yet" : `${f.mapcount} mapping${f.mapcount === 1 ? "" : "s"}`],
        ["mapping", mapping], ["index", f.mapping === undefined || f.mapping === 0 ? "–" : hex(f.index)],
        ["LRU list", f.lru === undefined ? "not told yet" : lruText(f.lru)],
        ["swap cache", f.entry !== 0 ? link("slot", f.entry, entryText(f.entry)) : "no"],
        ["page cache", f.inCache ? objectLink(objects, objects.keyed("file", f.file), `file ${keyHigh(f.file)}, index ${keyLow(f.file)}`, pick) : "no"],
        ["mapped by", keys(r.mappers.get(n))],
      ]));
      return;
    }
    case "slot": {
      const cached = r.swapCache.get(n);
      into.replaceChildren(node("p", { class: "what" }, word("swap slot"), ` ${entryText(n)}`), table([
        ["swap_map", swapMapText(rec, r.swapMap.get(n) ?? 0)], ["swap cache", cached !== undefined ? link("pfn", cached, `pfn ${cached}`) : "no"], ["held by", keys(r.holders.get(n))],
      ]));
      return;
    }
    case "file": {
      const pfn = r.pageCache.get(objects.key(id));
      into.replaceChildren(node("p", { class: "what" }, `page ${keyLow(objects.key(id))} of file ${keyHigh(objects.key(id))}`), table([
        ["page cache", pfn !== undefined ? link("pfn", pfn, `pfn ${pfn}`) : "not in memory"],
      ]));
      return;
    }
    case "mm": {
      const pids = [...(r.owners.get(n) ?? [])];
      into.replaceChildren(node("p", { class: "what" }, `address space ${n}`), table([
        ["process", pids.map((pid) => `${r.comms.get(pid) ?? ""} (pid ${pid})`).join(", ") || "none any more"], ["resident", `${r.rss.get(n) ?? 0} pages`],
      ]));
      return;
    }
    case "zone": {
      const z = r.zones.get(n);
      into.replaceChildren(node("p", { class: "what" }, `zone ${n}`), table([["free pages", String(z?.free ?? "not told yet")], ["pages", z && z.pages > 0 ? `${z.pages}, from pfn ${z.start}` : "not told yet"]]));
      return;
    }
    case "task":
      into.replaceChildren(node("p", { class: "what" }, `task ${n}: ${rec.tasks.get(n)?.comm ?? ""}`), node("p", { class: "dim" }, "Its life below: what it asked of the kernel."));
  }
}

const CELLS = 26;

/** Lists, map and zones as they are now. `marked`: frames and slots of this step or followed. */
export function machineDetails(into: Element, rec: Recording, r: Replay, objects: Objects, marked: Set<ObjectId>, pick: Pick): void {
  const out: Node[] = [];
  const cell = (id: ObjectId, text: string, title: string, style: string): HTMLElement => {
    const b = node("button", { type: "button", tabindex: "-1", class: `cell ${style}${marked.has(id) ? " marked" : ""}`, title, "aria-label": title, "data-object": objects.text(id) }, text);
    b.addEventListener("click", () => pick(id));
    return b;
  };
  out.push(node("h3", {}, word("LRU lists"), node("small", {}, " newest first")));
  const listKeys = [...r.lists.keys()].filter((key) => r.lists.get(key)!.size > 0).sort((a, b) => a - b);
  if (listKeys.length === 0) out.push(node("p", { class: "dim" }, "empty"));
  for (const key of listKeys) {
    const list = r.lists.get(key)!;
    const name = lruText(key % 8).replace("LRU_", "").toLowerCase().replace("_", " ");
    const strip = node("div", { class: "strip" });
    const frame = (pfn: number): HTMLElement => cell(objects.id("pfn", pfn), "", `pfn ${pfn}, ${name}`, (r.frames.get(pfn)?.flags ?? 0) & 8 ? "dirty" : "");
    const all = list.size <= CELLS;
    const head = list.some(all ? CELLS : CELLS / 2 - 1, "head");
    const tail = all ? [] : list.some(CELLS / 2 - 1, "tail").reverse();
    strip.append(...head.map(frame));
    if (!all) {
      const between = [...marked].filter((id) => objects.kind(id) === "pfn" && list.has(objects.number(id)) && !head.includes(objects.number(id)) && !tail.includes(objects.number(id)));
      strip.append(node("i", {}, "…"), ...between.slice(0, 3).flatMap((id) => [frame(objects.number(id)), node("i", {}, "…")]));
    }
    strip.append(...tail.map(frame));
    out.push(node("div", { class: "list" }, node("span", {}, r.lists.size > 0 && key >= 8 ? `zone ${Math.floor(key / 8)} ` : "", name), node("b", {}, String(list.size)), strip));
  }
  if (!rec.complete) out.push(node("p", { class: "dim" }, "The recording begins in the middle of the run: only pages that it names are counted."));

  out.push(node("h3", {}, word("swap_map"), node("small", {}, " users of each slot")));
  const used = [...r.swapMap.keys()].sort((a, b) => entryType(a) - entryType(b) || a - b);
  const total = [...r.areas.values()].reduce((a, b) => a + b, 0);
  const wanted = [...marked].filter((id) => objects.kind(id) === "slot").map((id) => objects.number(id));
  const near = wanted.length > 0 ? used.findIndex((e) => e >= wanted[0]!) : 0;
  const from = Math.max(0, Math.min(Math.max(near, 0) - 20, used.length - 48));
  const grid = node("div", { class: "strip slots" }, ...used.slice(from, from + 48).map((entry) => {
    const map = r.swapMap.get(entry)!;
    const text = rec.facts.get("kernel") === "2.6.20" ? (map === 0x8000 ? "×" : String(map)) : map === 0x3f ? "×" : String(map & 0x3f);
    return cell(objects.id("slot", entry), text, `slot ${entryText(entry)}: ${swapMapText(rec, map)}`, r.swapCache.has(entry) ? "cached" : "");
  }));
  out.push(node("p", { class: "line-of" }, `${used.length}${total > 0 ? ` of ${total}` : ""} slots used, `, word("swap cache"), ` ${r.swapCache.size} pages`));
  if (used.length > 0) out.push(grid);

  for (const [id, z] of [...r.zones].sort((a, b) => a[0] - b[0])) {
    out.push(node("h3", {}, `zone ${id}`, node("small", {}, z.pages > 0 ? ` ${z.pages} pages` : "")));
    const marks = z.marks;
    const high = marks[2] ?? 0;
    const scale = Math.max(high * 2.5, 1);
    const part = (x: number): string => `${Math.min(100, (x / scale) * 100).toFixed(1)}%`;
    const bar = node("div", { class: "bar", role: "img", "aria-label": `${z.free ?? "unknown"} pages free; watermarks min ${marks[0] ?? "?"}, low ${marks[1] ?? "?"}, high ${marks[2] ?? "?"}` },
      node("div", { class: z.free !== undefined && marks[1] !== undefined && z.free < marks[1] ? "fill short" : "fill", style: `width:${part(z.free ?? 0)}` }));
    ["min", "low", "high"].forEach((name, k) => {
      if (marks[k] !== undefined) bar.append(node("span", { class: "mark", style: `left:${part(marks[k]!)}`, title: `${name} ${marks[k]}` }));
    });
    out.push(node("p", { class: "line-of" }, word("free pages"), ` ${z.free ?? "?"}; `, word("watermark"), ` min ${marks[0] ?? "?"}, low ${marks[1] ?? "?"}, high ${marks[2] ?? "?"}`), bar);
    out.push(node("table", { class: "orders" }, node("tr", {}, node("th", { scope: "row" }, word("order")), ...z.areas.map((_, k) => node("th", { scope: "col" }, String(k)))),
      node("tr", {}, node("th", { scope: "row" }, word("free area")), ...z.areas.map((blocks) => node("td", {}, String(blocks))))));
    if (z.pcp.size > 0) out.push(node("p", { class: "line-of" }, word("per-CPU lists"), " ", [...z.pcp].sort((a, b) => a[0] - b[0]).map(([cpu, pages]) => `${cpu}: ${pages}`).join(", ")));
  }
  into.replaceChildren(...out);
}
