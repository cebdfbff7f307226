// What events are about: pages, slots, entries, tasks, each with a number, so that the life of one is found quickly.
import { ENTER, LEAVE, STATE, Recording, v } from "./recording";
import { Key, Replay, entryOffset, entryType, keyHigh, keyLow, pteEntry, pteIsSwap, ptePfn, ptePresent } from "./replay";

export type Kind = "pte" | "pfn" | "slot" | "mm" | "zone" | "task" | "file";
const KINDS: readonly Kind[] = ["pte", "pfn", "slot", "mm", "zone", "task", "file"];
/** number * 8 + kind. PTEs and file pages are numbered as they come. */
export type ObjectId = number;

const MOST = 4; // objects that one event names

export class Objects {
  private readonly keys: Key[] = [];
  private readonly numbers = new Map<Key, number>();
  private readonly of: Float64Array; // MOST an event; -1: none
  private readonly lives = new Map<ObjectId, Int32Array>();

  constructor(rec: Recording) {
    this.of = new Float64Array(MOST * rec.count).fill(-1);
    const kinds = rec.states;
    const depth = new Map<number, number>();
    for (let i = 0; i < rec.count; ++i) {
      let n = 0;
      const add = (id: ObjectId): void => {
        for (let k = 0; k < n; ++k) if (this.of[MOST * i + k] === id) return;
        if (n < MOST) this.of[MOST * i + n++] = id;
      };
      const tid = rec.tid[i]!;
      const kind = rec.kind[i]!;
      if (kind < STATE) {
        // A task's life is what it was asked to do: its outermost calls.
        const d = depth.get(tid) ?? 0;
        if (kind === ENTER && d === 0) add(this.id("task", tid));
        if (kind === ENTER) depth.set(tid, d + 1);
        else if (kind === LEAVE) depth.set(tid, Math.max(0, d - 1));
        continue;
      }
      this.named(kinds[kind - STATE]!, v(rec, i, 0), v(rec, i, 1), v(rec, i, 2), add);
    }
  }

  private named(name: string, s: bigint, before: bigint, after: bigint, add: (id: ObjectId) => void): void {
    const n = Number(s);
    switch (name) {
      case "pte":
        add(this.keyed("pte", s));
        for (const pte of [after, before])
          if (ptePresent(pte)) add(this.id("pfn", ptePfn(pte)));
          else if (pteIsSwap(pte)) add(this.id("slot", pteEntry(pte)));
        if (keyHigh(s) !== 0) add(this.id("mm", keyHigh(s)));
        return;
      case "mapcount": case "page_count": case "page_mapping": case "lru": case "lru_tail": case "page_flags": case "page_alloced":
      case "page_freed": case "buddy_find": case "buddy_remove": case "buddy_split": case "buddy_merge": case "pcp_hit":
      case "drop_clean": case "write_dirty": case "page_keep": case "page_dirtied": case "slab_new": case "slab_object":
        return add(this.id("pfn", n));
      case "swap_map": case "frontswap": return add(this.id("slot", n));
      case "swap_slot":
        add(this.id("slot", n));
        if (after !== 0n) add(this.id("pfn", Number(after)));
        return;
      case "swap_cache": case "page_cache":
        add(name === "swap_cache" ? this.id("slot", n) : this.keyed("file", s));
        for (const p of [after, before]) if (p !== 0n) add(this.id("pfn", Number(p) - 1));
        return;
      case "swap_write": case "swap_read":
        add(this.id("slot", n));
        return add(this.id("pfn", Number(before)));
      case "io_done": case "map_in": return add(this.id("pfn", Number(before)));
      case "page_cache_read": return add(this.id("pfn", Number(after)));
      case "nr_free": case "watermark": case "watermark_low": case "zonelist": case "pcp_miss": return add(this.id("zone", n));
      case "free_area": case "zone_mark": return add(this.id("zone", n >> 8));
      case "pcp_count": return add(this.id("zone", Math.floor(n / 65536)));
      case "rss": return add(this.id("mm", n));
      case "mm_task": return add(this.id("mm", n));
    }
  }

  id(kind: Kind, n: number): ObjectId {
    return n * 8 + KINDS.indexOf(kind);
  }
  keyed(kind: "pte" | "file", key: Key): ObjectId {
    let n = this.numbers.get(key);
    if (n === undefined) {
      n = this.keys.length;
      this.keys.push(key);
      this.numbers.set(key, n);
    }
    return this.id(kind, n);
  }
  kind(id: ObjectId): Kind {
    return KINDS[id % 8]!;
  }
  number(id: ObjectId): number {
    return Math.floor(id / 8);
  }
  key(id: ObjectId): Key {
    return this.keys[this.number(id)]!;
  }

  /** Those of event i, what it changes first. */
  at(i: number): ObjectId[] {
    const out: ObjectId[] = [];
    for (let k = 0; k < MOST && i >= 0 && this.of[MOST * i + k]! >= 0; ++k) out.push(this.of[MOST * i + k]!);
    return out;
  }
  /** The events that name it, in order. */
  life(id: ObjectId): Int32Array {
    let found = this.lives.get(id);
    if (found === undefined) {
      const events: number[] = [];
      for (let at = this.of.indexOf(id); at >= 0; at = this.of.indexOf(id, at + 1)) events.push(Math.floor(at / MOST));
      this.lives.set(id, (found = Int32Array.from(events)));
    }
    return found;
  }

  /** How a link and a person name it: "pfn 12", "slot 0,42", "pte 3:0x4000", "file 1:5". */
  text(id: ObjectId): string {
    const kind = this.kind(id);
    const n = this.number(id);
    if (kind === "slot") return `slot ${entryType(n)},${entryOffset(n)}`;
    if (kind === "pte") return `pte ${keyHigh(this.key(id))}:0x${keyLow(this.key(id)).toString(16)}`;
    if (kind === "file") return `file ${keyHigh(this.key(id))}:${keyLow(this.key(id))}`;
    return `${kind} ${n}`;
  }
  parse(text: string): ObjectId | undefined {
    const m = /^(pte|pfn|slot|mm|zone|task|file)[ :]?\(?(0x[0-9a-f]+|\d+)(?:[:,](0x[0-9a-f]+|\d+))?\)?$/i.exec(text.trim());
    if (m === null) return undefined;
    const kind = m[1]!.toLowerCase() as Kind;
    if (kind === "slot") return m[3] === undefined ? undefined : this.id("slot", Number(m[3]) * 32 + Number(m[2]));
    if (kind === "pte" || kind === "file") {
      if (m[3] === undefined) return undefined;
      const key = (BigInt(m[2]!) << 48n) | (BigInt(m[3]) & 0xffffffffffffn);
      const n = this.numbers.get(key);
      return n === undefined ? undefined : this.id(kind, n);
    }
    return this.id(kind, Number(m[2]));
  }
}

/** A process as people call it. */
export function processName(replay: Replay, mm: number): string {
  const pids = [...(replay.owners.get(mm) ?? [])];
  if (pids.length === 0) return mm === 0 ? "kernel" : `mm ${mm}`;
  return pids.map((pid) => replay.comms.get(pid) || `pid ${pid}`).join(", ");
}

// ---- Calls -----------------------------------------------------------------------------------------------------------

/** The calls of each thread, in columns: what event i lies in, or is. */
export interface Calls {
  parent: Int32Array; // event -> enter event of the call around it; -1: none in the recording
  leave: Int32Array; // enter event -> its leave event; count: it still runs at the end; -1: not an enter
  enter: Int32Array; // leave event -> its enter event; -1: it began before the recording
  depth: Uint16Array; // calls around it
}

export function calls(rec: Recording): Calls {
  const n = rec.count;
  const out: Calls = { parent: new Int32Array(n).fill(-1), leave: new Int32Array(n).fill(-1), enter: new Int32Array(n).fill(-1), depth: new Uint16Array(n) };
  const top = new Map<number, number>(); // tid -> enter event
  for (let i = 0; i < n; ++i) {
    const tid = rec.tid[i]!;
    let now = top.get(tid) ?? -1;
    const kind = rec.kind[i]!;
    if (kind === LEAVE) {
      // Calls whose leave is missing end with the one around them.
      let own = now;
      while (own >= 0 && rec.site[own] !== rec.site[i]) own = out.parent[own]!;
      if (own < 0) continue;
      for (; now !== own; now = out.parent[now]!) out.leave[now] = i;
      out.leave[own] = i;
      out.enter[i] = own;
      out.parent[i] = out.parent[own]!;
      out.depth[i] = out.depth[own]!;
      top.set(tid, out.parent[own]!);
      continue;
    }
    out.parent[i] = now;
    out.depth[i] = now < 0 ? 0 : out.depth[now]! + 1;
    if (kind === ENTER) {
      out.leave[i] = n;
      top.set(tid, i);
    }
  }
  return out;
}
