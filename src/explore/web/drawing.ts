// The documents' own drawing, alive: processes -> page-table entries -> frames -> swap slots, and the page cache beside them, of
// what hangs together with this step and with the object that is followed. Nothing that the recording has not told is drawn.
import { Recording, isState, stateName, v } from "./recording";
import { Key, MAPPING_ANON, MAPPING_FILE, NO_LRU, Replay, entryText, keyHigh, keyLow, pteEntry, pteIsSwap, ptePfn, ptePresent } from "./replay";
import { Kind, ObjectId, Objects, processName } from "./objects";
import { flagNames, hex, lruText, oldText, pteText, swapMapText } from "./text";

const SVG = "http://www.w3.org/2000/svg";

export interface Pointing {
  followed: ObjectId | undefined;
  onPick(object: ObjectId): void;
  onPoint(object: ObjectId | undefined): void;
}

export function el(name: string, attributes: Record<string, string | number>, text?: string): SVGElement {
  const e = document.createElementNS(SVG, name) as SVGElement;
  for (const [k, value] of Object.entries(attributes)) e.setAttribute(k, String(value));
  if (text !== undefined) e.textContent = text;
  return e;
}

interface Scene {
  mms: number[];
  ptes: Key[];
  pfns: number[];
  stores: ObjectId[]; // swap slots, then file pages
}

/** The objects to draw: the followed one, those of this step, what the last steps changed; and what hangs together with them. */
function scene(rec: Recording, replay: Replay, objects: Objects, followed: ObjectId | undefined, rows: number): Scene {
  const ptes = new Set<Key>(), pfns = new Set<number>(), stores = new Set<ObjectId>(), mms = new Set<number>();
  const take = (id: ObjectId): void => {
    const n = objects.number(id);
    switch (objects.kind(id)) {
      case "pte": if (ptes.size < rows) ptes.add(objects.key(id)); break;
      case "pfn": if (pfns.size < rows) pfns.add(n); break;
      case "slot": case "file": if (stores.size < rows) stores.add(id); break;
      case "mm": if (n !== 0 && mms.size < rows) mms.add(n); break;
      default:
    }
  };
  const related = (): void => {
    for (const pfn of [...pfns]) {
      for (const key of replay.mappers.get(pfn) ?? []) take(objects.keyed("pte", key));
      const f = replay.frames.get(pfn);
      if (f !== undefined && f.entry !== 0) take(objects.id("slot", f.entry));
      if (f !== undefined && f.inCache) take(objects.keyed("file", f.file));
    }
    for (const id of [...stores]) {
      if (objects.kind(id) === "slot") {
        for (const key of replay.holders.get(objects.number(id)) ?? []) take(objects.keyed("pte", key));
        const pfn = replay.swapCache.get(objects.number(id));
        if (pfn !== undefined) take(objects.id("pfn", pfn));
      } else {
        const pfn = replay.pageCache.get(objects.key(id));
        if (pfn !== undefined) take(objects.id("pfn", pfn));
      }
    }
    for (const key of [...ptes]) {
      const pte = replay.ptes.get(key) ?? 0n;
      if (ptePresent(pte)) take(objects.id("pfn", ptePfn(pte)));
      else if (pteIsSwap(pte)) take(objects.id("slot", pteEntry(pte)));
    }
  };
  const now = replay.at - 1;
  if (followed !== undefined) {
    take(followed);
    related();
    related();
    // Where it was not long ago, so that one sees it go.
    const life = objects.life(followed);
    let last = 0;
    while (last < life.length && life[last]! <= now) ++last;
    for (let k = last - 1; k >= Math.max(0, last - 12); --k) for (const id of objects.at(life[k]!)) take(id);
  }
  for (const id of objects.at(now)) take(id);
  const meant = now >= 0 ? meantBy(rec, replay, objects, now) : undefined;
  if (meant !== undefined) take(meant.object);
  related();
  const enough = followed !== undefined ? 0 : Math.ceil(rows / 2);
  for (let i = now, looked = 0; i >= 0 && looked < 600; --i, ++looked) {
    if (ptes.size >= enough) break;
    if (!isState(rec, i)) continue;
    const of = objects.at(i);
    // A page of the kernel's own (tables, slabs) is drawn only where the step is about it.
    if (!of.some((id) => objects.kind(id) === "pte" || objects.kind(id) === "slot" || objects.kind(id) === "file")) continue;
    for (const id of of) take(id);
    related();
  }
  related();
  for (const key of ptes) mms.add(keyHigh(key));
  if (ptes.size === 0) // nothing is mapped here: then who there is, the largest first
    for (const [mm, pids] of [...replay.owners].sort((a, b) => (replay.rss.get(b[0]) ?? 0) - (replay.rss.get(a[0]) ?? 0) || a[0] - b[0]))
      if (pids.size > 0 && mms.size < rows) mms.add(mm);
  const sortedPtes = [...ptes].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  // Frames and slots stand beside the entries that mean them.
  const beside = (row: (key: Key) => boolean): number => {
    const at = sortedPtes.findIndex(row);
    return at < 0 ? 1e6 : at;
  };
  const pfnRow = (pfn: number): number => beside((key) => ptePresent(replay.ptes.get(key) ?? 0n) && ptePfn(replay.ptes.get(key)!) === pfn);
  const storeRow = (id: ObjectId): number =>
    objects.kind(id) === "slot" ? beside((key) => pteIsSwap(replay.ptes.get(key) ?? 0n) && pteEntry(replay.ptes.get(key)!) === objects.number(id)) : 2e6;
  return {
    mms: [...mms].sort((a, b) => a - b),
    ptes: sortedPtes,
    pfns: [...pfns].sort((a, b) => pfnRow(a) - pfnRow(b) || a - b),
    stores: [...stores].sort((a, b) => storeRow(a) - storeRow(b) || a - b),
  };
}

/** What an event means that names no object of the drawing itself: a fault's entry, the process that gets points or dies. */
function meantBy(rec: Recording, replay: Replay, objects: Objects, i: number): { object: ObjectId; text: string } | undefined {
  if (!isState(rec, i)) return undefined;
  const name = stateName(rec, i);
  const pid = name.startsWith("fault") ? rec.tasks.get(rec.tid[i]!)?.pid ?? 0 : /^oom_|^task_exit$/.test(name) ? Number(v(rec, i, 0)) : 0;
  const mm = pid === 0 ? undefined : [...replay.owners].find(([, pids]) => pids.has(pid))?.[0];
  if (mm === undefined) return undefined;
  if (name.startsWith("fault")) return { object: objects.keyed("pte", (BigInt(mm) << 48n) | (v(rec, i, 0) & 0xfffffffff000n)), text: "" };
  return { object: objects.id("mm", mm), text: name === "oom_points" ? `${v(rec, i, 2)} points` : { oom_select: "chosen", oom_kill: "killed", oom_reap: "reaped" }[name] ?? "ends" };
}

export function draw(svg: SVGSVGElement, rec: Recording, replay: Replay, objects: Objects, pointing: Pointing): void {
  svg.replaceChildren();
  const now = replay.at - 1;
  const changed = new Map<ObjectId, string>(); // object -> what it was
  if (now >= 0 && isState(rec, now)) {
    const of = objects.at(now);
    const main = of[0];
    for (const id of of) if (objects.kind(id) !== "mm") changed.set(id, "");
    if (main !== undefined) changed.set(main, oldText(rec, now));
  }
  const meant = now >= 0 ? meantBy(rec, replay, objects, now) : undefined;
  if (meant !== undefined) changed.set(meant.object, "");
  const room = Math.max(svg.parentElement?.clientWidth ?? 640, 320) - 8;
  const narrow = room < 480;
  const H = 74, GAP = 12;
  const rows = narrow ? 3 : Math.max(4, Math.min(8, Math.floor(((svg.parentElement?.clientHeight ?? 0) - 30) / (H + GAP))));
  const s = scene(rec, replay, objects, pointing.followed, rows);
  // Wide: columns from left to right. Narrow: the same from top to bottom, as the documents have it.
  const groups: { kind: string; head: string; ids: ObjectId[] }[] = [
    { kind: "mm", head: "process", ids: s.mms.map((mm) => objects.id("mm", mm)) },
    { kind: "pte", head: "page-table entry", ids: s.ptes.map((key) => objects.keyed("pte", key)) },
    { kind: "pfn", head: "frame", ids: s.pfns.map((pfn) => objects.id("pfn", pfn)) },
    { kind: "store", head: narrow ? "swap slot · page cache" : "slot · page cache", ids: s.stores },
  ];
  const most = Math.max(1, ...groups.map((g) => g.ids.length));
  const places = new Map<ObjectId, { x: number; y: number; w: number }>();
  const gutter = Math.max(18, Math.min(44, room * 0.05));
  const shares = [0.17, 0.27, 0.27, 0.29];
  const columnWidth = (c: number): number => (room - 3 * gutter) * shares[c]!;
  const columnX = (c: number): number => shares.slice(0, c).reduce((a, x) => a + x, 0) * (room - 3 * gutter) + c * gutter + 2;
  // Wide: each box stands beside those that mean it, and none on another.
  const rowsOf = narrow ? [] : levels(s, replay, objects, groups.map((g) => g.ids));
  const deepest = Math.max(1, ...rowsOf.flatMap((column) => column.map((y) => y + 1)));
  const boxWidth = (c: number): number => (narrow ? Math.min((room - 3 * 6) / Math.min(most, 3) - 1, 180) : columnWidth(c) - 4);
  const height = narrow ? 4 * (H + 44) : 24 + deepest * (H + GAP);
  svg.setAttribute("viewBox", `0 0 ${room} ${height}`);
  svg.setAttribute("width", String(room));
  svg.setAttribute("height", String(height));
  // Under the heads, which stay readable.
  const edges = el("g", { class: "edges" });
  svg.append(edges);
  groups.forEach((g, c) => {
    if (c > 0 && groups.slice(1).every((other) => other.ids.length === 0)) return;
    svg.append(el("text", narrow ? { x: 2, y: c * (H + 44) + 12, class: "head" } : { x: columnX(c), y: 13, class: "head" }, g.head));
  });
  if (groups.every((g) => g.ids.length === 0)) {
    svg.append(el("text", { x: 2, y: 50, class: "head" }, "No entry, frame or slot has changed yet."));
    return;
  }
  const onlyProcesses = s.ptes.length + s.pfns.length + s.stores.length === 0;
  const across = Math.max(1, Math.floor((room + 8) / 138));
  if (onlyProcesses && !narrow) groups[0]!.ids.forEach((id, n) =>
    places.set(id, { x: 2 + (n % across) * 138, y: 22 + Math.floor(n / across) * (H + GAP), w: 130 }));
  else groups.forEach((g, c) => {
    g.ids.forEach((id, n) => {
      places.set(id, narrow
        ? { x: 2 + n * (boxWidth(c) + 6), y: c * (H + 44) + 18, w: boxWidth(c) }
        : { x: columnX(c), y: 22 + rowsOf[c]![n]! * (H + GAP), w: boxWidth(c) });
    });
  });
  const link = (from: ObjectId, to: ObjectId, kind: string): void => {
    const a = places.get(from), b = places.get(to);
    if (a === undefined || b === undefined) return;
    const hot = changed.has(from) && changed.get(from) !== undefined && (kind !== "own") ? " changed" : "";
    let d: string;
    if (narrow) {
      const [x1, y1, x2, y2] = [a.x + a.w / 2, a.y + H, b.x + b.w / 2, b.y];
      d = `M${x1} ${y1}C${x1} ${(y1 + y2) / 2} ${x2} ${(y1 + y2) / 2} ${x2} ${y2 - 4}`;
    } else {
      const [x1, y1, x2, y2] = [a.x + a.w, a.y + H / 2, b.x, b.y + H / 2];
      // Past a column straight on, and only then to its end.
      const bend = Math.max(x1, x2 - 2.2 * gutter);
      d = `M${x1} ${y1}H${bend}C${(bend + x2) / 2} ${y1} ${(bend + x2) / 2} ${y2} ${x2 - 5} ${y2}`;
    }
    edges.append(el("path", { d, class: kind + hot, "marker-end": kind === "cached" || kind === "own" ? "" : `url(#tip${hot ? "-hot" : ""})` }));
  };
  for (const key of s.ptes) {
    const id = objects.keyed("pte", key);
    link(objects.id("mm", keyHigh(key)), id, "own");
    const pte = replay.ptes.get(key) ?? 0n;
    if (ptePresent(pte)) link(id, objects.id("pfn", ptePfn(pte)), "means");
    else if (pteIsSwap(pte)) link(id, objects.id("slot", pteEntry(pte)), "means out");
  }
  for (const pfn of s.pfns) {
    const f = replay.frames.get(pfn);
    if (f === undefined) continue;
    if (f.entry !== 0) link(objects.id("pfn", pfn), objects.id("slot", f.entry), "cached");
    if (f.inCache) link(objects.id("pfn", pfn), objects.keyed("file", f.file), "cached");
  }
  svg.append(tips());
  for (const g of groups) for (const id of g.ids) svg.append(box(rec, replay, objects, id, places.get(id)!, H, changed, meant?.object === id ? meant.text : "", pointing));
}

/** Rows of each column's boxes: entries one below the other, the others at the mean of what is linked to them. */
function levels(s: Scene, replay: Replay, objects: Objects, columns: ObjectId[][]): number[][] {
  const pteRow = new Map<Key, number>(s.ptes.map((key, n) => [key, n]));
  const mean = (rows: number[]): number | undefined => (rows.length === 0 ? undefined : rows.reduce((a, x) => a + x, 0) / rows.length);
  const rowsOfPtes = (keys: Iterable<Key>): number[] => [...keys].flatMap((key) => pteRow.get(key) ?? []);
  const spread = (wanted: (number | undefined)[]): number[] => {
    // In the order given; none nearer than one row to the one above it.
    let free = 0;
    return wanted.map((row) => {
      const at = Math.max(free, row ?? free);
      free = at + 1;
      return at;
    });
  };
  const swapped = s.ptes.some((key) => pteIsSwap(replay.ptes.get(key) ?? 0n));
  const mms = spread(s.mms.map((mm) => mean(s.ptes.flatMap((key, n) => (keyHigh(key) === mm ? [n] : [])))));
  const pfns = spread(s.pfns.map((pfn) => mean(rowsOfPtes(replay.mappers.get(pfn) ?? [])) ?? (swapped ? s.ptes.length : undefined)));
  const pfnRow = new Map(s.pfns.map((pfn, n) => [pfn, pfns[n]!]));
  const stores = spread(s.stores.map((id) => {
    const slot = objects.kind(id) === "slot";
    const held = slot ? mean(rowsOfPtes(replay.holders.get(objects.number(id)) ?? [])) : undefined;
    const cached = slot ? replay.swapCache.get(objects.number(id)) : replay.pageCache.get(objects.key(id));
    return held ?? (cached === undefined ? undefined : pfnRow.get(cached));
  }));
  const out = [mms, s.ptes.map((_, n) => n), pfns, stores];
  return columns.map((ids, c) => out[c]!.slice(0, ids.length));
}

function tips(): SVGElement {
  const defs = el("defs", {});
  for (const [id, kind] of [["tip", "tip"], ["tip-hot", "tip hot"]] as const) {
    const marker = el("marker", { id, viewBox: "0 0 8 8", refX: 4, refY: 4, markerWidth: 10, markerHeight: 10, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" });
    marker.append(el("path", { d: "M0 0L8 4L0 8z", class: kind }));
    defs.append(marker);
  }
  return defs;
}

function box(rec: Recording, replay: Replay, objects: Objects, id: ObjectId, place: { x: number; y: number; w: number }, h: number,
  changed: Map<ObjectId, string>, said: string, pointing: Pointing): SVGElement {
  const [style, lines] = content(rec, replay, objects, id);
  if (said !== "") lines.push(said);
  const was = changed.get(id);
  const g = el("g", {
    class: `box ${style}${was !== undefined ? " changed" : ""}${pointing.followed === id ? " followed" : ""}`, tabindex: 0, role: "button",
    "aria-pressed": String(pointing.followed === id), "data-object": objects.text(id),
  });
  g.append(el("rect", { x: place.x, y: place.y, width: place.w, height: h, rx: 5 }));
  const fit = (text: string): string => {
    const most = Math.floor((place.w - 12) / 6.7);
    return text.length <= most ? text : text.slice(0, Math.max(most - 1, 1)) + "…";
  };
  const shown = lines.slice(0, 4);
  if (was) {
    // What it was stands on the line of what it is, or on the last.
    const now = shown.findIndex((text) => was.split(" ")[0] === text.split(" ")[0] && /^_/.test(text));
    if (now >= 0) shown[now] = `${was} → ${shown[now]!.split(" ").slice(1).join(" ")}`;
    else shown[3] = `was ${was}`;
  }
  shown.forEach((text, n) =>
    g.append(el("text", { x: place.x + 7, y: place.y + 17 + 16 * n, class: n === 0 ? "name" : (was && text.includes(was)) || text === said ? "was" : "" }, fit(text))));
  if (was !== undefined) g.append(el("path", { d: `M${place.x + place.w - 13} ${place.y}h13v13z`, class: "corner" }));
  g.append(el("title", {}, [objects.text(id), ...lines, ...(was ? [`was: ${was}`] : [])].join("\n")));
  g.addEventListener("click", () => pointing.onPick(id));
  g.addEventListener("keydown", (e) => {
    const key = (e as KeyboardEvent).key;
    if (key !== "Enter" && key !== " ") return;
    e.preventDefault();
    e.stopPropagation();
    pointing.onPick(id);
  });
  g.addEventListener("pointerenter", () => pointing.onPoint(id));
  g.addEventListener("pointerleave", () => pointing.onPoint(undefined));
  g.addEventListener("focus", () => pointing.onPoint(id));
  g.addEventListener("blur", () => pointing.onPoint(undefined));
  return g;
}

function content(rec: Recording, replay: Replay, objects: Objects, id: ObjectId): [string, string[]] {
  const n = objects.number(id);
  const kind: Kind = objects.kind(id);
  switch (kind) {
    case "mm": {
      const pids = [...(replay.owners.get(n) ?? [])];
      return ["mm", [processName(replay, n), pids.length > 0 ? `pid ${pids.join(", ")}` : "no task", `rss ${replay.rss.get(n) ?? 0}`]];
    }
    case "pte": {
      const key = objects.key(id);
      const pte = replay.ptes.get(key) ?? 0n;
      const [first, ...rest] = pteText(pte).split(/ (?=rw|ro)/);
      return [`pte${pteIsSwap(pte) ? " out" : pte === 0n ? " none" : ""}`, [hex(keyLow(key)), first!, rest.join(" ")]];
    }
    case "pfn": {
      const f = replay.frame(n);
      const free = f.count === 0;
      const use = free ? "free"
        : f.lru !== undefined && f.lru < NO_LRU ? lruText(f.lru).replace("LRU_", "").toLowerCase()
        : f.mapping === MAPPING_ANON ? "anonymous" : f.mapping === MAPPING_FILE ? "file page" : "";
      const flags = f.flags === undefined ? "" : flagNames(f.flags).filter((name) => ["locked", "dirty", "writeback", "referenced"].includes(name)).join(" ");
      return [`pfn${free ? " free" : f.inCache ? " file" : ""}`, [`frame ${n}`, ...(free ? ["free"] : [`_mapcount ${f.mapcount ?? "?"}`, `_count ${f.count ?? "?"}`, [use, flags].filter((t) => t !== "").join(" ")])]];
    }
    case "slot":
      return [`slot${(replay.swapMap.get(n) ?? 0) === 0 ? " free" : ""}`, [`slot ${entryText(n)}`, `swap_map ${swapMapText(rec, replay.swapMap.get(n) ?? 0)}`,
        replay.swapCache.has(n) ? `cached: ${replay.swapCache.get(n)}` : ""]];
    case "file":
      return ["file", [`file ${keyHigh(objects.key(id))}`, `index ${keyLow(objects.key(id))}`, replay.pageCache.has(objects.key(id)) ? "page cache" : "not cached"]];
    default: return ["", [objects.text(id)]];
  }
}
