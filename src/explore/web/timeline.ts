// The bottom: the run from left to right, by steps or by the machine's clock; what happened, and four plots. Counted from the
// recording once for each scale.
import { LRU_NAMES } from "weir-schema";
import { Recording, STATE, v } from "./recording";
import { timeText } from "./text";

export type Scale = "steps" | "time";
const TRACKS: { name: string; states: string[]; style: string }[] = [
  { name: "faults", states: ["fault"], style: "--ink-2" },
  { name: "reclaim", states: ["reclaim_start", "scan_lru"], style: "--plot-2" },
  { name: "swap out", states: ["swap_write"], style: "--plot-1" },
  { name: "swap in", states: ["swap_read"], style: "--plot-3" },
  { name: "writeback", states: ["writeback_start", "write_dirty"], style: "--plot-4" },
  { name: "kills", states: ["oom_kill"], style: "--bad" },
];
interface Line {
  name: string;
  style: string;
  dash: number[];
  values: Float64Array; // at the end of a bin; NaN: not told yet
}
interface Plot {
  name: string;
  lines: Line[];
}
const BINS = 800;

export interface Series {
  scale: Scale;
  start: number;
  end: number;
  marks: Uint32Array[]; // per track: events a bin
  plots: Plot[];
}

/** Where event i lies, 0 to 1. */
export function placeOf(rec: Recording, s: Series, i: number): number {
  if (s.scale === "steps") return rec.count > 1 ? Math.max(0, i) / (rec.count - 1) : 0;
  return s.end > s.start ? ((i < 0 ? s.start : rec.time[i]!) - s.start) / (s.end - s.start) : 0;
}
/** The first event there. Times rise but for threads that overtake by a little. */
export function eventAt(rec: Recording, s: Series, part: number): number {
  part = Math.max(0, Math.min(1, part));
  if (s.scale === "steps") return Math.round(part * (rec.count - 1));
  const time = s.start + part * (s.end - s.start);
  let low = 0, high = rec.count - 1;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (rec.time[mid]! < time) low = mid + 1;
    else high = mid;
  }
  return low;
}

export function series(rec: Recording, scale: Scale): Series {
  const n = rec.count;
  const start = n > 0 ? rec.time[0]! : 0;
  let end = start;
  for (let i = 0; i < n; ++i) if (rec.time[i]! > end) end = rec.time[i]!;
  const column = (): Float64Array => new Float64Array(BINS).fill(NaN);
  const marks = TRACKS.map(() => new Uint32Array(BINS));
  const s: Series = { scale, start, end, marks, plots: [] };
  const trackOf = rec.states.map((name) => TRACKS.findIndex((t) => t.states.includes(name)));
  const number = (name: string): number => rec.states.indexOf(name);
  const [nrFree, mark, lru, swapMap, fault] = ["nr_free", "zone_mark", "lru", "swap_map", "fault"].map(number);
  const whole = rec.complete;
  const free = new Map<number, number>();
  const wmarks = [0, 1, 2].map(() => new Map<number, number>());
  const lines = { free: column(), marks: [column(), column(), column()], lru: [column(), column(), column(), column()], slots: column(), faults: column() };
  const lists = [0, 0, 0, 0, 0];
  let slots = 0;
  const sum = (m: Map<number, number>): number => [...m.values()].reduce((a, b) => a + b, 0);
  const take = (i: number, bin: number, quiet: boolean): void => {
    const kind = rec.kind[i]! - STATE;
    if (kind < 0) return;
    const t = trackOf[kind]!;
    if (t >= 0 && !quiet) marks[t]![bin]!++;
    if (kind === fault) lines.faults[bin] = (Number.isNaN(lines.faults[bin]!) ? 0 : lines.faults[bin]!) + 1;
    else if (kind === nrFree) {
      free.set(Number(v(rec, i, 0)), Number(v(rec, i, 2)));
      lines.free[bin] = sum(free);
    } else if (kind === mark) {
      const subject = Number(v(rec, i, 0));
      wmarks[subject & 255]?.set(subject >> 8, Number(v(rec, i, 2)));
      wmarks.forEach((m, k) => (lines.marks[k]![bin] = sum(m)));
    } else if (kind === lru && whole) {
      const from = Number(v(rec, i, 1)), to = Number(v(rec, i, 2));
      if (from < 5) lists[from]!--;
      if (to < 5) lists[to]!++;
      for (const l of [from, to]) if (l < 4) lines.lru[l]![bin] = lists[l]!;
    } else if (kind === swapMap && whole) {
      slots += (v(rec, i, 2) !== 0n ? 1 : 0) - (v(rec, i, 1) !== 0n ? 1 : 0);
      lines.slots[bin] = slots;
    }
  };
  for (let i = 0; i < n; ++i) {
    const bin = Math.min(BINS - 1, Math.floor(placeOf(rec, s, i) * BINS));
    const left = rec.leftOut.get(i);
    if (left !== undefined) for (let k = left.from; k < left.to; ++k) take(k, bin, true);
    take(i, bin, false);
  }
  for (const values of [lines.free, ...lines.marks, ...lines.lru, lines.slots])
    for (let b = 1; b < BINS; ++b) if (Number.isNaN(values[b]!)) values[b] = values[b - 1]!;
  for (let b = 0; b < BINS; ++b) if (Number.isNaN(lines.faults[b]!)) lines.faults[b] = 0;
  const line = (name: string, style: string, values: Float64Array, dash: number[] = []): Line => ({ name, style, dash, values });
  s.plots = [
    { name: "free pages", lines: [line("free", "--plot-1", lines.free), ...["min", "low", "high"].map((name, k) => line(name, k === 0 ? "--bad" : "--ink-2", lines.marks[k]!, [[1, 2], [3, 2], [6, 2]][k]!))] },
    { name: "LRU lists", lines: lines.lru.map((values, k) => line(LRU_NAMES[k]!.replace("LRU_", "").toLowerCase().replace("_", " "), k < 2 ? "--plot-1" : "--plot-2", values, k % 2 === 0 ? [3, 2] : [])) },
    { name: "swap used", lines: [line("used", "--plot-4", lines.slots)] },
    { name: "faults", lines: [line("faults", "--ink-2", lines.faults)] },
  ];
  return s;
}

const LABEL = 104;

export function paint(canvas: HTMLCanvasElement, s: Series): void {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const c = canvas.getContext("2d");
  if (c === null) return;
  c.scale(scale, scale);
  const css = getComputedStyle(document.documentElement);
  const color = (name: string): string => css.getPropertyValue(name).trim();
  const left = labelWidth(canvas), room = width - left;
  c.font = "10.5px system-ui, sans-serif";
  c.textBaseline = "middle";
  const small = height < 110;
  const band = small ? 10 : 11;
  TRACKS.forEach((track, k) => {
    const y = k * band;
    c.fillStyle = color("--ink-2");
    c.globalAlpha = 1;
    c.fillText(track.name, 2, y + band / 2);
    c.fillStyle = color("--line");
    c.fillRect(left, y + band - 1, room, 0.5);
    c.fillStyle = color(track.style);
    for (let b = 0; b < BINS; ++b) {
      const many = s.marks[k]![b]!;
      if (many === 0) continue;
      c.globalAlpha = Math.min(1, 0.45 + many / 12);
      c.fillRect(left + (b / BINS) * room, y + 1.5, Math.max(k === 5 ? 3 : 1.2, room / BINS), band - 3);
    }
  });
  c.globalAlpha = 1;
  const top = TRACKS.length * band + 4;
  const plots = small ? s.plots.slice(0, 1) : s.plots;
  const each = (height - top - 13) / plots.length;
  plots.forEach((plot, k) => {
    const y = top + k * each, h = each - 5;
    const most = plot.lines.reduce((a, l) => l.values.reduce((x, value) => (value > x ? value : x), a), 1);
    c.fillStyle = color("--ink-2");
    c.setLineDash([]);
    c.fillText(plot.name, 2, y + h / 2);
    if (!small) {
      c.textAlign = "right";
      c.fillText(String(most), left - 4, y + 5);
      c.textAlign = "left";
    }
    c.strokeStyle = color("--line");
    c.lineWidth = 0.5;
    c.strokeRect(left, y, room - 0.5, h);
    for (const line of plot.lines) {
      c.strokeStyle = color(line.style);
      c.setLineDash(line.dash);
      c.lineWidth = 1.2;
      c.beginPath();
      let drawing = false;
      for (let b = 0; b < BINS; ++b) {
        const value = line.values[b]!;
        if (Number.isNaN(value)) continue;
        const px = left + ((b + 1) / BINS) * room, py = y + h - (value / most) * (h - 2);
        if (drawing) c.lineTo(px, py);
        else c.moveTo(px, py);
        drawing = true;
      }
      c.stroke();
    }
  });
  c.setLineDash([]);
  c.fillStyle = color("--ink-2");
  c.textAlign = "left";
  c.fillText(s.scale === "time" ? timeText(s.start) : "step 1", left, height - 6);
  c.textAlign = "right";
  c.fillText(s.scale === "time" ? timeText(s.end) : "last step", width - 1, height - 6);
  c.textAlign = "left";
}

export const labelWidth = (canvas: HTMLCanvasElement): number => (canvas.clientWidth < 600 ? 62 : LABEL);

/** What the lines of the plots are, for the legend. */
export function legend(s: Series): { name: string; style: string; dash: boolean }[] {
  return s.plots.slice(0, 2).flatMap((p) => p.lines.map((l) => ({ name: l.name, style: l.style, dash: l.dash.length > 0 })));
}
