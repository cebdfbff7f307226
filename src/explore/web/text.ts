// What an event says: in the kernel's names, and in one plain sentence.
import { BOOKKEEPING, FAULT_BITS, FUNCTION_WORDS, LRU_NAMES, MEANS, PAGE_FLAGS, RESULT_TEXTS, STATE_TEXTS, STATE_WORDS } from "weir-schema";
import { ENTER, LEAVE, Recording, STATE, stateName, v } from "./recording";
import { Replay, entryText, keyHigh, keyLow, pteEntry, pteIsFile, pteIsSwap, ptePfn, ptePgoff, ptePresent } from "./replay";
import { processName } from "./objects";

export const hex = (n: bigint | number): string => "0x" + n.toString(16);

export function pteText(pte: bigint): string {
  if (pte === 0n) return "none";
  if (pteIsFile(pte)) return `page ${ptePgoff(pte)} of the file`;
  if (pteIsSwap(pte)) return "swap " + entryText(pteEntry(pte));
  let text = `pfn ${ptePfn(pte)} ${(pte & 2n) !== 0n ? "rw" : "ro"}`;
  if ((pte & 0x40n) !== 0n) text += " dirty";
  if ((pte & 0x20n) !== 0n) text += " young";
  if ((pte & 0x200n) !== 0n) text += " special";
  if ((pte & 4n) === 0n) text += " kernel";
  return text;
}
export const lruText = (list: number): string => LRU_NAMES[list] ?? "none";
export const flagNames = (flags: number): string[] => bits(BigInt(flags), PAGE_FLAGS);
export const flagsText = (flags: number): string => flagNames(flags).join("|") || "none";

function bits(value: bigint, names: readonly string[]): string[] {
  const out: string[] = [];
  for (let bit = 0; value !== 0n; ++bit, value >>= 1n) if ((value & 1n) !== 0n) out.push(names[bit] || `bit${bit}`);
  return out;
}

/** swap_map as people read it: users, and whether the cache has a copy. Under 2.6.20 the cache is a user like others. */
export function swapMapText(rec: Recording, map: number): string {
  if (rec.facts.get("kernel") === "2.6.20") return map === 0 ? "0, free" : map === 0x8000 ? "bad" : `${map}`;
  if (map === 0) return "0, free";
  if (map === 0x3f) return "bad";
  return `${map & 0x3f}${(map & 0x80) !== 0 ? "+" : ""}${(map & 0x40) !== 0 ? " + cache" : ""}`;
}

function valueText(style: string, value: bigint): string {
  const split = /^(hi|lo)(\d+):?(.*)$/.exec(style);
  if (split) {
    const n = BigInt(split[2]!);
    return valueText(split[3]!, split[1] === "hi" ? value >> n : value & ((1n << n) - 1n));
  }
  switch (style) {
    case "": return value.toString();
    case "x": return hex(value);
    case "i": return BigInt.asIntN(64, value).toString();
    case "p": return value === 0n ? "none" : `pfn ${value - 1n}`;
    case "pte": return pteText(value);
    case "entry": return entryText(Number(value));
    case "lru": return lruText(Number(value));
    case "flags": return flagsText(Number(value));
    case "vmf": return bits(value, FAULT_BITS).join("|") || "ok";
    case "c": {
      let out = "";
      for (let c = value; c !== 0n; c >>= 8n) out += String.fromCharCode(Number(c & 255n));
      return out.replace(/[^ -~]/g, "?");
    }
    default: return style.slice(1).split(",")[Number(value)] ?? value.toString();
  }
}

/** The text of a state change, without its name. */
export function stateText(rec: Recording, i: number): string {
  const name = stateName(rec, i);
  if (name === "swap_map")
    return `${entryText(Number(v(rec, i, 0)))}: ${swapMapText(rec, Number(v(rec, i, 1)))} → ${swapMapText(rec, Number(v(rec, i, 2)))}`;
  if (name === "page_flags") {
    const old = Number(v(rec, i, 1)), now = Number(v(rec, i, 2));
    const changes = [...flagNames(now & ~old).map((f) => `+${f}`), ...flagNames(old & ~now).map((f) => `−${f}`)];
    return `pfn ${v(rec, i, 0)}: ${changes.join(" ")}`;
  }
  return (STATE_TEXTS[name] ?? "{s}: {b} -> {a}")
    .replace(/\{([sba])(?::([^}]*))?\}/g, (_, which: string, style: string | undefined) =>
      valueText(style ?? "", v(rec, i, which === "s" ? 0 : which === "b" ? 1 : 2)))
    .replaceAll("->", "→");
}

/** What the object was before this change; empty where that says nothing. */
export function oldText(rec: Recording, i: number): string {
  const before = v(rec, i, 1);
  switch (stateName(rec, i)) {
    case "pte": return pteText(before);
    case "swap_map": return swapMapText(rec, Number(before));
    case "mapcount": return `_mapcount ${before}`;
    case "page_count": return `_count ${before}`;
    case "lru": return lruText(Number(before));
    case "page_flags": return flagsText(Number(before));
    case "swap_cache": case "page_cache": return before === 0n ? "not cached" : `pfn ${before - 1n}`;
    case "rss": return `${before} pages`;
    default: return "";
  }
}

export function argumentsText(rec: Recording, i: number): string {
  return rec.sites[rec.site[i]!]!.args
    .slice(0, 3)
    .map((name, n) => {
      const value = v(rec, i, n as 0 | 1 | 2);
      return `${name.replace(/^.*?(\w+)_?(?:\([^()]*\))?$/, "$1")}=${value < 4096n ? value : hex(value)}`;
    })
    .join(", ");
}

/** What a call returned; empty where the function did not say. */
export function resultText(rec: Recording, leave: number): string {
  return v(rec, leave, 1) === 1n ? valueText(RESULT_TEXTS[functionName(rec, leave)] ?? "i", v(rec, leave, 0)) : "";
}

export const functionName = (rec: Recording, i: number): string => rec.sites[rec.site[i]!]!.fn;
export const isBookkeeping = (rec: Recording, i: number): boolean => rec.kind[i]! >= STATE && BOOKKEEPING.includes(stateName(rec, i));

/** One sentence for the step, without a full stop where the words have none. */
export function plainWords(rec: Recording, replay: Replay, i: number): string {
  const kind = rec.kind[i]!;
  if (kind === LEAVE) return "";
  if (kind === ENTER) return FUNCTION_WORDS[functionName(rec, i)] ?? MEANS[functionName(rec, i)] ?? "";
  const name = stateName(rec, i);
  const [s, before, after] = [v(rec, i, 0), v(rec, i, 1), v(rec, i, 2)];
  switch (name) {
    case "pte": {
      const who = `${processName(replay, keyHigh(s))}'s ${hex(keyLow(s))}`;
      if (ptePresent(after) && before === 0n) return `${who} has memory now: frame ${ptePfn(after)}`;
      if (ptePresent(after) && pteIsSwap(before)) return `${who} is back from slot ${entryText(pteEntry(before))}, in frame ${ptePfn(after)}`;
      if (ptePresent(after) && ptePresent(before) && ptePfn(after) !== ptePfn(before))
        return `${who} means frame ${ptePfn(after)} from now on, no longer ${ptePfn(before)}`;
      if (ptePresent(after)) return rightsChange(who, before, after);
      if (pteIsFile(after)) return `${who} is page ${ptePgoff(after)} of the file; the next access faults`;
      if (pteIsFile(before)) return `${who} is no page of the file any more`;
      if (pteIsSwap(after)) return `${who} is no longer in memory: its entry names slot ${entryText(pteEntry(after))}, and the next access faults`;
      if (ptePresent(before)) return `${who} has no frame for the moment: nobody can use frame ${ptePfn(before)} through it`;
      return `${who} lets go of slot ${entryText(pteEntry(before))}`;
    }
    case "mapcount":
      return after === 0n ? `nobody maps frame ${s} any more` : `${after} page-table ${after === 1n ? "entry maps" : "entries map"} frame ${s}`;
    case "swap_map":
      if (after === 0n) return `slot ${entryText(Number(s))} is free again`;
      return `${STATE_WORDS["swap_map"]}`;
    case "swap_cache":
      return after !== 0n ? `frame ${after - 1n} is found under slot ${entryText(Number(s))}: whoever needs the slot reads and writes it once`
        : `slot ${entryText(Number(s))} and frame ${before - 1n} have nothing to do with each other any more`;
    case "page_cache":
      return after !== 0n ? `frame ${after - 1n} holds page ${keyLow(s)} of file ${keyHigh(s)} for whoever reads or maps it`
        : `page ${keyLow(s)} of file ${keyHigh(s)} is not in memory any more`;
    case "lru":
      if (after === 5n) return `reclaim or the allocator has taken frame ${s} off its list`;
      if (before === 5n) return `frame ${s} is on ${lruText(Number(after))}: reclaim will find it there, oldest first`;
      return before % 2n < after % 2n && after < 4n ? `frame ${s} has been used: it moves to the active list`
        : `frame ${s} moves from ${lruText(Number(before))} to ${lruText(Number(after))}`;
    default: return STATE_WORDS[name] ?? "";
  }
}

function rightsChange(who: string, before: bigint, after: bigint): string {
  const gone = before & ~after, come = after & ~before;
  if ((gone & 2n) !== 0n) return `${who} is read-only now: the next store faults, and finds out whether to copy`;
  if ((come & 2n) !== 0n) return `${who} may be written to`;
  if ((come & 0x40n) !== 0n) return `the CPU notes that ${who} has been written to`;
  if ((come & 0x20n) !== 0n) return `the CPU notes that ${who} has been used`;
  if ((gone & 0x20n) !== 0n) return `${who} counts as unused until the CPU uses it again`;
  return `the rights of ${who} change`;
}

export const timeText = (ns: number): string =>
  ns < 1e3 ? `${ns} ns` : ns < 1e6 ? `${(ns / 1e3).toFixed(1)} µs` : ns < 1e9 ? `${(ns / 1e6).toFixed(3)} ms` : `${(ns / 1e9).toFixed(6)} s`;
export const sentence = (text: string): string => {
  const s = text.charAt(0).toUpperCase() + text.slice(1);
  return s === "" || /[.!?]$/.test(s) ? s : s + ".";
};
