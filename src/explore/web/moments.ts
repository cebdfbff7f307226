// The moments that the documents tell of, where the recording has them: in the whole run, or in one object's life.
import { ENTER, Recording, STATE, v } from "./recording";
import { pteIsSwap, ptePresent } from "./replay";

export interface Moment {
  name: string;
  event: number;
}
type Test = (s: bigint, before: bigint, after: bigint) => boolean;
const always: Test = () => true;

/** Each state, or call, with the moments that it may be: what is asked, and whether every one counts or only the first. */
const MOMENTS: [state: string, name: string, test: Test, all?: true][] = [
  ["page_cache", "A file's page is cached", (_s, _b, after) => after !== 0n],
  ["fault", "A fault", always],
  ["pte", "First memory of an address", (s, before, after) => s >> 48n !== 0n && before === 0n && ptePresent(after)],
  ["mapcount", "A frame is shared", (_s, before, after) => before === 1n && after === 2n],
  ["mapcount", "Three entries, one frame", (_s, before, after) => before === 2n && after === 3n],
  ["dirty_pause", "A writer is slowed down", always],
  ["write_dirty", "A dirty file page is written", always],
  ["drop_clean", "A clean file page is dropped", always],
  ["reclaim_start", "Reclaim begins", always],
  ["swap_slot", "A swap slot is taken", always],
  ["pte", "An entry names a slot", (_s, before, after) => !pteIsSwap(before) && pteIsSwap(after)],
  ["swap_write", "Swapped out", always],
  ["swap_read", "Read back from swap", always],
  ["pte", "Back in memory", (_s, before, after) => pteIsSwap(before) && ptePresent(after)],
  ["cow_user_page()", "Copied on write", always],
  ["reclaim_fruitless", "Reclaim finds nothing", always],
  ["oom_select", "A victim is chosen", always, true],
  ["oom_kill", "Killed", always, true],
];
const MOST = 16;
const CALL = 0x10000;

export function moments(rec: Recording, events: Int32Array | undefined): Moment[] {
  // Kinds of events; calls stand behind them by their place in the sources.
  const byKind = new Map<number, number[]>();
  MOMENTS.forEach(([what], k) => {
    const kinds = what.endsWith("()") ? rec.sites.flatMap((site, n) => (site.fn === what.slice(0, -2) ? [CALL + n] : [])) : [STATE + rec.states.indexOf(what)];
    for (const kind of kinds) if (kind >= STATE) byKind.set(kind, [...(byKind.get(kind) ?? []), k]);
  });
  const seen = new Set<number>();
  const out: Moment[] = [];
  const count = events?.length ?? rec.count;
  for (let at = 0; at < count && out.length < MOST; ++at) {
    const i = events !== undefined ? events[at]! : at;
    const kinds = byKind.get(rec.kind[i] === ENTER ? CALL + rec.site[i]! : rec.kind[i]!);
    if (kinds === undefined) continue;
    for (const k of kinds) {
      const [, name, test, all] = MOMENTS[k]!;
      if (seen.has(k) && !all) continue;
      // Each kill is one moment, whichever of the two says so.
      if (!test(v(rec, i, 0), v(rec, i, 1), v(rec, i, 2))) continue;
      seen.add(k);
      out.push({ name, event: i });
    }
  }
  return out;
}
