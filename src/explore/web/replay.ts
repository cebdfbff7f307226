// The machine as the recording tells it, at one step. A change carries old and new, or what it replaces is kept when it is
// first walked over; so a step can be taken back as well as made. Where an object is not what a change says it was, the
// recording contradicts itself, and the page says so in place of drawing over it.
import { STATE, Recording, v } from "./recording";

/** One mapping: mm << 48 | address, as the recording has it. A file's page: inode << 48 | index. */
export type Key = bigint;
const LOW48 = 0xffffffffffffn;
export const keyHigh = (key: Key): number => Number(key >> 48n);
export const keyLow = (key: Key): bigint => key & LOW48;

export const ptePresent = (pte: bigint): boolean => (pte & 1n) !== 0n;
/** Not present, of a nonlinear mapping: which page of the file belongs there. */
export const pteIsFile = (pte: bigint): boolean => !ptePresent(pte) && (pte & 0x100n) !== 0n;
export const ptePgoff = (pte: bigint): number => Number(pte >> 9n);
export const pteIsSwap = (pte: bigint): boolean => pte !== 0n && !ptePresent(pte) && !pteIsFile(pte);
export const ptePfn = (pte: bigint): number => Number((pte & 0x000ffffffffff000n) >> 12n);
/** The swap entry in a PTE, as events name it: offset << 5 | type. */
export const pteEntry = (pte: bigint): number => Number(((pte >> 9n) << 5n) | ((pte >> 2n) & 31n));
export const entryType = (entry: number): number => entry % 32;
export const entryOffset = (entry: number): number => Math.floor(entry / 32);
export const entryText = (entry: number): string => `(${entryType(entry)},${entryOffset(entry)})`;

export const NO_LRU = 5;
export const MAPPING_FILE = 1, MAPPING_ANON = 2, MAPPING_KSM = 4;

/** undefined: the recording has not told yet. */
export interface Frame {
  mapcount: number | undefined;
  count: number | undefined;
  flags: number | undefined;
  lru: number | undefined;
  mapping: number | undefined;
  index: number;
  entry: number; // swap entry it is cached under; 0: none
  file: Key; // the file's page that it holds
  inCache: boolean;
}
export interface Zone {
  free: number | undefined;
  marks: (number | undefined)[]; // min, low, high
  areas: number[]; // free blocks by order
  pcp: Map<number, number>; // CPU -> pages
  start: number;
  pages: number;
}

/** A list of frames, newest first. Places are by frame number, so that a page is taken out wherever it stands. */
export class FrameList {
  private readonly next = new Map<number, number>();
  private readonly prev = new Map<number, number>();
  head = -1;
  tail = -1;
  get size(): number {
    return this.next.size;
  }
  has(pfn: number): boolean {
    return this.next.has(pfn);
  }
  /** After `place`; -1: at the head. */
  insert(pfn: number, place: number): void {
    const after = place < 0 ? this.head : this.next.get(place)!;
    this.prev.set(pfn, place);
    this.next.set(pfn, after);
    if (place < 0) this.head = pfn;
    else this.next.set(place, pfn);
    if (after < 0) this.tail = pfn;
    else this.prev.set(after, pfn);
  }
  /** What stood before it. */
  remove(pfn: number): number {
    const before = this.prev.get(pfn);
    if (before === undefined) return -1;
    const after = this.next.get(pfn)!;
    if (before < 0) this.head = after;
    else this.next.set(before, after);
    if (after < 0) this.tail = before;
    else this.prev.set(after, before);
    this.next.delete(pfn);
    this.prev.delete(pfn);
    return before;
  }
  /** The first `many` from the head, or from the tail backwards. */
  some(many: number, from: "head" | "tail"): number[] {
    const out: number[] = [];
    const step = from === "head" ? this.next : this.prev;
    for (let at = from === "head" ? this.head : this.tail; at >= 0 && out.length < many; at = step.get(at)!) out.push(at);
    return out;
  }
}

const KINDS = [
  "pte", "mapcount", "page_count", "page_flags", "page_mapping", "lru", "lru_tail", "swap_map", "swap_cache", "page_cache",
  "nr_free", "free_area", "pcp_count", "zone_mark", "zone_span", "rss", "swap_area", "mm_task", "task_comm",
] as const;
type Kind = (typeof KINDS)[number];

export class Replay {
  at = 0; // events [0, at) have happened
  readonly ptes = new Map<Key, bigint>();
  readonly frames = new Map<number, Frame>();
  readonly swapMap = new Map<number, number>();
  readonly swapCache = new Map<number, number>(); // entry -> pfn
  readonly pageCache = new Map<Key, number>(); // file page -> pfn
  readonly zones = new Map<number, Zone>();
  readonly lists = new Map<number, FrameList>(); // zone * 8 + list
  readonly rss = new Map<number, number>();
  readonly areas = new Map<number, number>(); // swap area -> slots
  readonly owners = new Map<number, Set<number>>(); // mm -> pids
  readonly comms = new Map<number, string>(); // pid -> name
  readonly mappers = new Map<number, Set<Key>>(); // pfn -> PTEs
  readonly holders = new Map<number, Set<Key>>(); // entry -> PTEs
  /** Where the recording contradicts itself: event -> what. */
  readonly contradictions = new Map<number, string>();
  private readonly kinds: (Kind | undefined)[];
  private readonly zoneLists: boolean;
  private readonly undo: Float64Array;
  private readonly undoNames = new Map<number, string | undefined>();
  private walked = 0; // events below it have been checked

  constructor(readonly rec: Recording) {
    const known = new Set<string>(KINDS);
    this.kinds = rec.states.map((name) => (known.has(name) ? (name as Kind) : undefined));
    this.zoneLists = ["2.6.20", "3.x"].includes(rec.facts.get("kernel") ?? "");
    this.undo = new Float64Array(rec.kind.length);
    const before = rec.leftOut.get(0);
    if (before !== undefined) this.through(before.from, before.to);
    if (!rec.complete) this.prime();
  }
  /** What remains of the events that were left out. */
  private through(from: number, to: number): void {
    for (let i = from; i < to; ++i) {
      const kind = this.kindAt(i);
      if (kind !== undefined) this.put(kind, i, 2);
    }
  }

  /** A recording that begins in the middle of a run: what an object was before its first change stands in that change. */
  private prime(): void {
    const process = /^(\d+) (\d+) (.*)$/.exec(this.rec.facts.get("process") ?? "");
    if (process !== null) {
      this.ownersOf(Number(process[1])).add(Number(process[2]));
      this.comms.set(Number(process[2]), process[3]!);
    }
    const seen = new Set<string>();
    for (let i = 0; i < this.rec.count; ++i) {
      const kind = this.kindAt(i);
      if (kind === undefined || kind === "page_mapping" || kind === "lru_tail" || kind === "zone_span" || kind === "task_comm") continue;
      const key = `${kind} ${v(this.rec, i, 0)}`;
      if (seen.has(key)) continue;
      seen.add(key);
      if (this.told(kind, i)) continue;
      if (kind === "lru") {
        // Where in the list it stood is not known: behind those that are.
        const old = Number(v(this.rec, i, 1)), pfn = Number(v(this.rec, i, 0));
        this.frame(pfn).lru = old;
        if (old < NO_LRU) {
          const list = this.list(pfn, old);
          list.insert(pfn, list.tail);
        }
      } else if (kind === "mm_task") {
        const pid = Number(v(this.rec, i, 1));
        if (pid !== 0) this.ownersOf(Number(v(this.rec, i, 0))).add(pid);
      } else this.put(kind, i, 1);
    }
  }

  private told(kind: Kind, i: number): boolean {
    const raw = v(this.rec, i, 0);
    const subject = Number(raw);
    switch (kind) {
      case "pte": return this.ptes.has(raw);
      case "mapcount": return this.frames.get(subject)?.mapcount !== undefined;
      case "page_count": return this.frames.get(subject)?.count !== undefined;
      case "page_flags": return this.frames.get(subject)?.flags !== undefined;
      case "lru": return this.frames.get(subject)?.lru !== undefined;
      case "swap_map": return this.swapMap.has(subject);
      case "swap_cache": return this.swapCache.has(subject);
      case "page_cache": return this.pageCache.has(raw);
      case "nr_free": return this.zones.get(subject)?.free !== undefined;
      case "rss": return this.rss.has(subject);
      case "mm_task": return (this.owners.get(subject)?.size ?? 0) > 0;
      default: return false;
    }
  }

  private kindAt(i: number): Kind | undefined {
    const k = this.rec.kind[i]!;
    return k >= STATE ? this.kinds[k - STATE] : undefined;
  }

  goTo(step: number): void {
    step = Math.max(0, Math.min(step, this.rec.count));
    while (this.at < step) this.forward();
    while (this.at > step) this.back();
  }
  private forward(): void {
    const i = this.at++;
    const left = i > 0 ? this.rec.leftOut.get(i) : undefined;
    if (left !== undefined) this.through(left.from, left.to);
    const kind = this.kindAt(i);
    if (kind !== undefined) {
      if (i >= this.walked) {
        const wrong = this.check(kind, i);
        if (wrong !== "") this.contradictions.set(i, wrong);
      }
      this.put(kind, i, 2);
    }
    this.walked = Math.max(this.walked, this.at);
  }
  private back(): void {
    const i = --this.at;
    const kind = this.kindAt(i);
    if (kind !== undefined) this.put(kind, i, 1);
    const left = i > 0 ? this.rec.leftOut.get(i) : undefined;
    if (left === undefined) return;
    for (let k = left.to - 1; k >= left.from; --k) {
      const quiet = this.kindAt(k);
      if (quiet !== undefined) this.put(quiet, k, 1);
    }
  }

  frame(pfn: number): Frame {
    let f = this.frames.get(pfn);
    if (f === undefined) {
      const told = this.rec.complete ? 0 : undefined; // a recording from boot on begins with nothing
      f = {
        mapcount: told, count: told, flags: told, lru: told === undefined ? undefined : NO_LRU, mapping: told,
        index: 0, entry: 0, file: 0n, inCache: false,
      };
      this.frames.set(pfn, f);
    }
    return f;
  }
  zone(id: number): Zone {
    let z = this.zones.get(id);
    if (z === undefined)
      this.zones.set(id, (z = { free: undefined, marks: [undefined, undefined, undefined], areas: new Array<number>(11).fill(0), pcp: new Map(), start: 0, pages: 0 }));
    return z;
  }
  zoneOf(pfn: number): number {
    for (const [id, z] of this.zones) if (pfn >= z.start && pfn < z.start + z.pages) return id;
    return 0;
  }
  list(pfn: number, list: number): FrameList {
    const key = (this.zoneLists ? this.zoneOf(pfn) : 0) * 8 + list;
    let l = this.lists.get(key);
    if (l === undefined) this.lists.set(key, (l = new FrameList()));
    return l;
  }
  private ownersOf(mm: number): Set<number> {
    let pids = this.owners.get(mm);
    if (pids === undefined) this.owners.set(mm, (pids = new Set()));
    return pids;
  }

  /** What the change says it was, against what was seen. Empty: they agree, or nothing was known. */
  private check(kind: Kind, i: number): string {
    if (this.rec.gaps.size > 0) return ""; // what is missing explains it
    const raw = v(this.rec, i, 0);
    const subject = Number(raw);
    const old = v(this.rec, i, 1);
    const say = (what: string, have: bigint | number | undefined): string =>
      have === undefined || BigInt(have) === old ? "" : `${what} was ${have}, and this change says it was ${old}`;
    switch (kind) {
      case "pte": return say("the PTE", this.ptes.get(raw) ?? 0n);
      case "mapcount": return say(`_mapcount of pfn ${subject}`, this.frames.get(subject)?.mapcount);
      case "page_count": return say(`_count of pfn ${subject}`, this.frames.get(subject)?.count);
      case "page_flags": return say(`flags of pfn ${subject}`, this.frames.get(subject)?.flags);
      case "lru": return say(`the list of pfn ${subject}`, this.frames.get(subject)?.lru);
      case "swap_map": return say(`swap_map${entryText(subject)}`, this.swapMap.get(subject) ?? 0);
      case "swap_cache": return say(`the swap cache at ${entryText(subject)}`, (this.swapCache.get(subject) ?? -1) + 1);
      case "page_cache": return say("the page cache", (this.pageCache.get(raw) ?? -1) + 1);
      case "nr_free": return say(`nr_free of zone ${subject}`, this.zones.get(subject)?.free);
      case "free_area": return say("the free area", this.zone(subject >> 8).areas[subject & 255]);
      case "pcp_count": return say("the per-CPU count", this.zone(Math.floor(subject / 65536)).pcp.get(subject % 65536) ?? 0);
      default: return "";
    }
  }

  /** The object of event i becomes what the event says: which = 1 the old value, 2 the new one. */
  private put(kind: Kind, i: number, which: 1 | 2): void {
    const raw = v(this.rec, i, 0);
    const subject = Number(raw);
    const value = v(this.rec, i, which);
    const n = Number(value);
    const keep = <K>(map: Map<K, number>, key: K): void => {
      if (n === 0) map.delete(key);
      else map.set(key, n);
    };
    switch (kind) {
      case "pte": this.setPte(raw, value); break;
      case "mapcount": this.frame(subject).mapcount = n; break;
      case "page_count": this.frame(subject).count = n; break;
      case "page_flags": this.frame(subject).flags = n; break;
      case "page_mapping": {
        const f = this.frame(subject);
        if (which === 2) {
          this.undo[i] = (f.mapping ?? 7) + 8 * f.index;
          f.index = Number(v(this.rec, i, 1));
          f.mapping = n;
        } else {
          f.index = Math.floor(this.undo[i]! / 8);
          f.mapping = this.undo[i]! % 8 === 7 ? undefined : this.undo[i]! % 8;
        }
        break;
      }
      case "lru": {
        const from = Number(v(this.rec, i, which === 2 ? 1 : 2));
        if (which === 2) {
          this.undo[i] = from < NO_LRU ? this.list(subject, from).remove(subject) : -1;
          if (n < NO_LRU && !this.list(subject, n).has(subject)) this.list(subject, n).insert(subject, -1);
        } else {
          if (from < NO_LRU) this.list(subject, from).remove(subject);
          if (n < NO_LRU) this.list(subject, n).insert(subject, this.undo[i]!);
        }
        this.frame(subject).lru = n;
        break;
      }
      case "lru_tail": {
        const list = this.list(subject, Number(v(this.rec, i, 1)));
        if (!list.has(subject)) break;
        const before = list.remove(subject);
        if (which === 2) this.undo[i] = before;
        list.insert(subject, which === 2 ? list.tail : this.undo[i]!);
        break;
      }
      case "swap_map": keep(this.swapMap, subject); break;
      case "swap_cache": {
        const had = this.swapCache.get(subject);
        if (had !== undefined) this.frame(had).entry = 0;
        if (n === 0) this.swapCache.delete(subject);
        else {
          this.swapCache.set(subject, n - 1);
          this.frame(n - 1).entry = subject;
        }
        break;
      }
      case "page_cache": {
        const had = this.pageCache.get(raw);
        if (had !== undefined) this.frame(had).inCache = false;
        if (n === 0) this.pageCache.delete(raw);
        else {
          this.pageCache.set(raw, n - 1);
          const f = this.frame(n - 1);
          f.file = raw;
          f.inCache = true;
        }
        break;
      }
      case "nr_free": this.zone(subject).free = n; break;
      case "free_area": this.zone(subject >> 8).areas[subject & 255] = n; break;
      case "pcp_count": this.zone(Math.floor(subject / 65536)).pcp.set(subject % 65536, n); break;
      case "zone_mark": this.zone(subject >> 8).marks[subject & 255] = n; break;
      case "zone_span": {
        const z = this.zone(subject);
        z.start = which === 2 ? Number(v(this.rec, i, 1)) : 0;
        z.pages = which === 2 ? n : 0;
        break;
      }
      case "rss": keep(this.rss, subject); break;
      case "swap_area": this.areas.set(subject, n); break;
      case "mm_task": {
        const gone = Number(v(this.rec, i, which === 2 ? 1 : 2));
        const pids = this.ownersOf(subject);
        if (gone !== 0) pids.delete(gone);
        if (n !== 0) pids.add(n);
        break;
      }
      case "task_comm": {
        if (which === 2) {
          if (!this.undoNames.has(i)) this.undoNames.set(i, this.comms.get(subject));
          this.comms.set(subject, text16(v(this.rec, i, 1), v(this.rec, i, 2)));
        } else {
          const old = this.undoNames.get(i);
          if (old === undefined) this.comms.delete(subject);
          else this.comms.set(subject, old);
        }
        break;
      }
    }
  }

  private setPte(key: Key, pte: bigint): void {
    const old = this.ptes.get(key) ?? 0n;
    if (ptePresent(old)) this.mappers.get(ptePfn(old))?.delete(key);
    else if (pteIsSwap(old)) this.holders.get(pteEntry(old))?.delete(key);
    if (pte === 0n) this.ptes.delete(key);
    else this.ptes.set(key, pte);
    if (ptePresent(pte)) add(this.mappers, ptePfn(pte), key);
    else if (pteIsSwap(pte)) add(this.holders, pteEntry(pte), key);
  }
}

function add<K, T>(map: Map<K, Set<T>>, key: K, value: T): void {
  const set = map.get(key);
  if (set === undefined) map.set(key, new Set([value]));
  else set.add(value);
}

/** A name of up to 16 bytes, as two numbers. */
function text16(first: bigint, second: bigint): string {
  const bytes: number[] = [];
  for (let word of [first, second]) for (let k = 0; k < 8; ++k, word >>= 8n) bytes.push(Number(word & 255n));
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(new Uint8Array(end < 0 ? bytes : bytes.slice(0, end)));
}
