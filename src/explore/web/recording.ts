// A recording as its file has it (src/record/README.md), read in the page. Nothing in it is believed: what does not fit its
// place ends the reading, and the page shows what came before and says where it broke.

export const ENTER = 1;
export const LEAVE = 2;
export const STATE = 16;
const EVENT_BYTES = 40;
const VERSION = 1;

export interface Site {
  fn: string;
  file: string;
  args: string[];
}
export interface Task {
  tid: number;
  pid: number;
  comm: string;
}
export interface Note {
  at: number;
  time: number;
  key: string;
  text: string;
}

/** What was left out of the page before an event: how many events, and where among the columns the changes stand that remain. */
export interface LeftOut {
  events: number;
  from: number;
  to: number;
}

/** Events lie in columns: a page of a million events stays small and is walked quickly. Behind the `count` events of the
 * page stand the changes that remain of those that were left out. */
export interface Recording {
  count: number;
  time: Float64Array; // ns
  tid: Int32Array;
  kind: Uint16Array;
  site: Uint16Array;
  value: BigUint64Array; // three an event
  sites: Site[];
  states: string[];
  tasks: Map<number, Task>;
  facts: Map<string, string>;
  notes: Note[];
  first: number; // number of the first event since the start of the run
  gaps: Map<number, number>; // before this event so many are missing
  leftOut: Map<number, LeftOut>; // by the event after it
  complete: boolean; // from boot on: what it has not told of is not there
  problem: string; // empty: whole
}

class Broken extends Error {}

class Reader {
  at = 0;
  private readonly view: DataView;
  private readonly text = new TextDecoder();
  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
  get left(): number {
    return this.bytes.length - this.at;
  }
  private need(n: number): number {
    if (n > this.left) throw new Broken(`it ends at byte ${this.bytes.length}, inside a block`);
    const at = this.at;
    this.at += n;
    return at;
  }
  u16 = () => this.view.getUint16(this.need(2), true);
  u32 = () => this.view.getUint32(this.need(4), true);
  i32 = () => this.view.getInt32(this.need(4), true);
  u64 = () => this.view.getBigUint64(this.need(8), true);
  /** As many of n as there are. */
  upTo(n: number): Uint8Array {
    return this.bytesOf(Math.min(n, this.left));
  }
  bytesOf(n: number): Uint8Array {
    const at = this.need(n);
    return this.bytes.subarray(at, at + n);
  }
  string(n: number): string {
    return this.text.decode(this.bytesOf(n));
  }
  zeroEnded(): string {
    const end = this.bytes.indexOf(0, this.at);
    if (end < 0) throw new Broken("a name has no end");
    const s = this.string(end - this.at);
    this.at += 1;
    return s;
  }
}

/** Throws an Error for what is not a recording of this version. */
export function parse(bytes: Uint8Array): Recording {
  const r = new Reader(bytes);
  const magic = bytes.length >= 16 ? r.string(8) : "";
  if (magic !== "weirrec\n") throw new Error("this is not a weir recording");
  const version = r.u32();
  if (version !== VERSION || r.u32() !== EVENT_BYTES)
    throw new Error(`this recording has version ${version}; this page reads version ${VERSION}`);

  const sites: Site[] = [{ fn: "?", file: "", args: [] }];
  let states: string[] = [];
  const tasks = new Map<number, Task>();
  const facts = new Map<string, string>();
  const notes: Note[] = [];
  const chunks: Uint8Array[] = [];
  const changes: Uint8Array[] = [];
  const leftOut = new Map<number, LeftOut>();
  let changed = 0;
  let skipped = 0;
  let count = 0;
  let first = -1;
  const gaps = new Map<number, number>();
  let missing = 0;
  let problem = "it was cut short: the end mark is missing";
  try {
    while (r.left > 0) {
      const tag = r.string(4);
      const size = r.u32();
      const cut = size > r.left;
      if (cut && tag !== "EVNT") throw new Broken(`it ends at byte ${bytes.length}, inside a block`);
      const block = new Reader(r.upTo(size)); // whole events of a cut block are good
      switch (tag) {
        case "STAT":
          states = [];
          while (block.left > 0) states.push(block.zeroEnded());
          break;
        case "SITE": {
          const id = block.u16();
          if (id !== sites.length) throw new Broken(`function number ${id} is out of order`);
          const fn = block.zeroEnded();
          const file = block.zeroEnded();
          sites.push({ fn, file, args: splitArguments(block.zeroEnded()) });
          break;
        }
        case "TASK": {
          const tid = block.i32();
          const pid = block.i32();
          const comm = block.string(16).replace(/\0[^]*$/, "");
          tasks.set(tid, { tid, pid, comm });
          break;
        }
        case "FACT":
          while (block.left > 0) {
            const k = block.u16();
            const v = block.u16();
            const key = block.string(k);
            if (!facts.has(key)) facts.set(key, block.string(v));
            else block.bytesOf(v);
          }
          break;
        case "NOTE": {
          const at = Number(block.u64());
          const time = Number(block.u64());
          const k = block.u32();
          const t = block.u32();
          const key = block.string(k);
          notes.push({ at, time, key, text: block.string(t) });
          break;
        }
        case "EVNT": {
          const number = Number(block.u64());
          if (first < 0) first = number;
          const gap = number - first - missing - skipped - count;
          if (gap < 0) throw new Broken("events are out of turn");
          if (gap > 0) gaps.set(count, gap);
          missing += gap;
          const whole = Math.floor(block.left / EVENT_BYTES);
          chunks.push(block.bytesOf(whole * EVENT_BYTES));
          count += whole;
          if (cut || block.left > 0) throw new Broken(`it ends at byte ${bytes.length}, inside a block of events`);
          break;
        }
        case "SKIP": {
          const events = Number(block.u64());
          const whole = Math.floor(block.left / EVENT_BYTES);
          changes.push(block.bytesOf(whole * EVENT_BYTES));
          leftOut.set(count, { events, from: changed, to: changed + whole });
          changed += whole;
          if (count > 0) skipped += events;
          break;
        }
        case "DONE":
          problem = "";
          break;
        default: // a later version's: passed over
      }
      if (tag === "DONE") break;
    }
  } catch (e) {
    if (!(e instanceof Broken)) throw e;
    problem = e.message;
  }

  if (problem !== "") problem = facts.get("problem") ?? problem;

  const rec: Recording = {
    count: 0,
    time: new Float64Array(count + changed),
    tid: new Int32Array(count + changed),
    kind: new Uint16Array(count + changed),
    site: new Uint16Array(count + changed),
    value: new BigUint64Array(3 * (count + changed)),
    sites,
    states,
    tasks,
    facts,
    notes,
    first: Math.max(first, 0),
    gaps,
    leftOut: new Map(),
    complete: gaps.size === 0 && Math.max(first, 0) === (leftOut.get(0)?.events ?? 0),
    problem,
  };
  const read = (chunk: Uint8Array): boolean => {
    const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    for (let at = 0; at < chunk.length; at += EVENT_BYTES) {
      const i = rec.count;
      const kind = view.getUint16(at + 12, true);
      const site = view.getUint16(at + 14, true);
      const known = kind === ENTER || kind === LEAVE || (kind >= STATE && kind - STATE < states.length);
      if (!known || site >= sites.length) {
        rec.problem = `event ${rec.first + i} names a function or state that the recording does not have`;
        return false;
      }
      rec.time[i] = Number(view.getBigUint64(at, true));
      rec.tid[i] = view.getInt32(at + 8, true);
      rec.kind[i] = kind;
      rec.site[i] = site;
      for (let v = 0; v < 3; ++v) rec.value[3 * i + v] = view.getBigUint64(at + 16 + 8 * v, true);
      rec.count = i + 1;
    }
    return true;
  };
  // Where one is damaged what comes after it is not shown.
  const whole = chunks.every(read);
  const shown = rec.count;
  if (whole) changes.every(read);
  for (const [at, left] of leftOut)
    if (at < shown && whole && shown + left.to <= rec.count) rec.leftOut.set(at, { events: left.events, from: shown + left.from, to: shown + left.to });
  rec.count = shown;
  return rec;
}

/** "a, f(b, c)" -> ["a", "f(b, c)"]. */
function splitArguments(text: string): string[] {
  const out: string[] = [];
  let depth = 0;
  let begin = 0;
  for (let i = 0; i <= text.length; ++i) {
    const c = text[i];
    if (c === "(" || c === "[" || c === "{") ++depth;
    else if (c === ")" || c === "]" || c === "}") --depth;
    else if ((c === "," && depth === 0) || c === undefined) {
      const piece = text.slice(begin, i).trim();
      if (piece !== "") out.push(piece);
      begin = i + 1;
    }
  }
  return out;
}

export const stateName = (rec: Recording, i: number): string => rec.states[rec.kind[i]! - STATE] ?? "?";
export const isState = (rec: Recording, i: number): boolean => rec.kind[i]! >= STATE;
export const v = (rec: Recording, i: number, which: 0 | 1 | 2): bigint => rec.value[3 * i + which]!;
export const taskName = (rec: Recording, tid: number): string => rec.tasks.get(tid)?.comm || `thread ${tid}`;
