// The page: reads the recording that it carries, and lets one walk through it.
import { GLOSSARY } from "weir-schema";
import { ENTER, LEAVE, Recording, isState, parse, stateName, taskName, v } from "./recording";
import { Replay, keyHigh, keyLow } from "./replay";
import { Calls, ObjectId, Objects, calls, processName } from "./objects";
import { draw } from "./drawing";
import { machineDetails, node, objectDetails } from "./details";
import { Moment, moments } from "./moments";
import { Scale, Series, eventAt, labelWidth, legend, paint, placeOf, series } from "./timeline";
import { argumentsText, functionName, hex, isBookkeeping, plainWords, resultText, sentence, stateText, timeText } from "./text";

const $ = <T extends Element = HTMLElement>(id: string): T => document.getElementById(id) as unknown as T;
const LINE = 21;

// Newer than the types of Debian's compiler.
declare class DecompressionStream {
  constructor(format: "deflate");
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
}

/** Inflates what the command has put into the page. */
async function recordingBytes(): Promise<Uint8Array> {
  const packed = Uint8Array.from(atob($("recording").textContent!.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Explorer {
  private readonly replay: Replay;
  private readonly objects: Objects;
  private readonly calls: Calls;
  private lines = new Int32Array(0); // each line's event; -1 - tid: the heading of a task
  private lineOf = new Int32Array(0); // event -> the line that shows it
  private allChanges = false;
  private data: Series;
  private step = 0; // events [0, step) have happened
  private followed: ObjectId | undefined;
  private pointed: ObjectId | undefined;
  private hits: number[] = [];
  private moments: Moment[] = [];
  private readonly wrong: [number, string][];

  constructor(private readonly rec: Recording) {
    this.objects = new Objects(rec);
    this.calls = calls(rec);
    this.replay = new Replay(rec);
    this.replay.goTo(rec.count); // the whole log is held against itself before anything is drawn
    this.wrong = [...this.replay.contradictions];
    this.data = series(rec, "steps");
    this.layLines();
    this.setUp();
    if (!this.fromLink()) this.goTo(this.firstStep(), "jump");
  }

  // ---- lines: calls, changes and returns in order, under headings of their tasks
  private layLines(): void {
    const rec = this.rec;
    const lines: number[] = [];
    this.lineOf = new Int32Array(rec.count).fill(-1);
    let tid = Number.NaN;
    for (let i = 0; i < rec.count; ++i) {
      const shown = this.hasLine(i);
      if (shown && (rec.tid[i] !== tid || rec.leftOut.has(i))) {
        tid = rec.tid[i]!;
        lines.push(-1 - i - 1);
      }
      if (shown) lines.push(i);
      // A leaf's return is said on its own line; bookkeeping on the line before it.
      const enter = rec.kind[i] === LEAVE ? this.calls.enter[i]! : -1;
      this.lineOf[i] = !shown && enter >= 0 ? this.lineOf[enter]! : lines.length - 1;
    }
    this.lines = Int32Array.from(lines);
  }
  private hasLine(i: number): boolean {
    if (this.rec.kind[i] === LEAVE) {
      const enter = this.calls.enter[i]!;
      return enter >= 0 && this.lineOf[i - 1] !== this.lineOf[enter];
    }
    return this.allChanges || !isBookkeeping(this.rec, i);
  }
  private firstStep(): number {
    const first = moments(this.rec, undefined)[0];
    return first !== undefined ? first.event + 1 : Math.min(1, this.rec.count);
  }

  // ---- moving
  goTo(step: number, how: "walk" | "jump" = "walk"): void {
    this.step = Math.max(0, Math.min(Math.floor(step), this.rec.count));
    this.replay.goTo(this.step);
    this.show(how);
    this.toLink();
  }
  private toLink(): void {
    const parts = [`step=${this.step}`];
    if (this.followed !== undefined) parts.push(`follow=${this.objects.text(this.followed).replace(" ", ":")}`);
    if (this.allChanges) parts.push("all");
    if (this.data.scale === "time") parts.push("time");
    try {
      history.replaceState(null, "", `#${parts.join("&")}`);
    } catch {
      location.hash = parts.join("&"); // where a page from disk may not
    }
  }
  /** False where the address names no step. */
  private fromLink(): boolean {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!/^\d+$/.test(asked.get("step") ?? "")) return false;
    if (asked.has("all") !== this.allChanges) this.setAllChanges(asked.has("all"));
    if (asked.has("time") !== (this.data.scale === "time")) this.setScale(asked.has("time") ? "time" : "steps");
    this.followed = this.objects.parse(asked.get("follow") ?? "");
    this.setMoments();
    this.goTo(Number(asked.get("step")), "jump");
    return true;
  }
  private get now(): number {
    return this.step - 1;
  }
  /** The next event with a line of its own, or a leaf's return where that is asked for. */
  private along(direction: 1 | -1): number {
    let i = this.now + direction;
    while (i >= 0 && i < this.rec.count && this.lines[this.lineOf[i]!] !== i) i += direction;
    return i < 0 ? 0 : i >= this.rec.count ? this.rec.count : i + 1;
  }
  private over(): number {
    const i = this.now;
    if (i < 0) return 1;
    if (this.rec.kind[i] === ENTER) return Math.min(this.calls.leave[i]! + 1, this.rec.count);
    for (let j = i + 1; j < this.rec.count; ++j) if (this.rec.tid[j] === this.rec.tid[i] && this.lines[this.lineOf[j]!] === j) return j + 1;
    return this.rec.count;
  }
  private overBack(): number {
    const i = this.now;
    if (i < 0) return 0;
    if (this.rec.kind[i] === LEAVE && this.calls.enter[i]! >= 0) return this.calls.enter[i]! + 1;
    for (let j = i - 1; j >= 0; --j)
      if (this.rec.tid[j] === this.rec.tid[i] && this.lines[this.lineOf[j]!] === j)
        return (this.rec.kind[j] === LEAVE && this.calls.enter[j]! >= 0 ? this.calls.enter[j]! : j) + 1;
    return 0;
  }
  private out(): number {
    const parent = this.now < 0 ? -1 : this.calls.parent[this.now]!;
    return parent < 0 ? this.over() : Math.min(this.calls.leave[parent]! + 1, this.rec.count);
  }
  private get object(): ObjectId | undefined {
    return this.followed ?? this.objects.at(this.now)[0];
  }
  private change(direction: 1 | -1): number {
    const object = this.object;
    if (object === undefined) return this.step;
    const life = this.objects.life(object);
    const next = direction > 0 ? life.find((i) => i > this.now) : last(life, (i) => i < this.now);
    return next === undefined ? this.step : next + 1;
  }
  do(what: string): void {
    const moment = (direction: 1 | -1): number => {
      const next = direction > 0 ? this.moments.find((m) => m.event > this.now) : last(this.moments, (m) => m.event < this.now);
      return next === undefined ? this.step : next.event + 1;
    };
    switch (what) {
      case "first": return this.goTo(0, "jump");
      case "last": return this.goTo(this.rec.count, "jump");
      case "step": return this.goTo(this.along(1));
      case "back": return this.goTo(this.along(-1));
      case "over": return this.goTo(this.over());
      case "over-back": return this.goTo(this.overBack());
      case "out": return this.goTo(this.out());
      case "next-change": return this.goTo(this.change(1), "jump");
      case "previous-change": return this.goTo(this.change(-1), "jump");
      case "next-moment": return this.goTo(moment(1), "jump");
      case "previous-moment": return this.goTo(moment(-1), "jump");
      case "follow": return this.object === undefined ? undefined : this.pick(this.object);
      case "all": this.setAllChanges(!this.allChanges); return this.goTo(this.step, "jump");
      case "scale": this.setScale(this.data.scale === "time" ? "steps" : "time"); return this.goTo(this.step);
      case "theme": return this.theme();
      case "help": return this.help();
    }
  }
  /** Follows an object; again: no longer. */
  pick(object: ObjectId): void {
    this.followed = this.followed === object ? undefined : object;
    this.setMoments();
    this.show("walk");
    this.toLink();
  }
  private setAllChanges(all: boolean): void {
    this.allChanges = all;
    document.querySelector("[data-do=all]")!.setAttribute("aria-pressed", String(all));
    this.layLines();
  }
  private setScale(scale: Scale): void {
    this.data = series(this.rec, scale);
    document.querySelector("[data-do=scale]")!.textContent = scale === "time" ? "by clock" : "by steps";
    paint($<HTMLCanvasElement>("plots"), this.data);
  }
  private setMoments(): void {
    this.moments = moments(this.rec, this.followed === undefined ? undefined : this.objects.life(this.followed));
  }

  // ---- showing
  private show(how: "walk" | "jump"): void {
    this.showTree(how);
    this.showWords();
    this.showPicture();
    this.showLife();
    this.showPlace();
  }
  private lineText(n: number): HTMLElement {
    const event = this.lines[n]!;
    if (event < 0) {
      const first = -1 - event - 1;
      const tid = this.rec.tid[first]!;
      const left = this.rec.leftOut.get(first);
      const text = left === undefined ? "" : `… ${left.events.toLocaleString("en")} ${left.events === 1 ? "event" : "events"} left out`;
      if (left !== undefined && first > 0 && this.rec.tid[first - 1] === tid) return node("div", { class: "line task" }, text);
      return node("div", { class: "line task" }, text === "" ? "" : `${text}; `, `${taskName(this.rec, tid)} (task ${tid}), ${timeText(this.rec.time[first]!)}`);
    }
    const depth = Math.min(this.calls.depth[event]!, 60);
    const indent = "  ".repeat(depth);
    const e = node("div", { class: "line" });
    if (this.rec.kind[event] === ENTER) {
      const args = argumentsText(this.rec, event);
      e.append(node("span", { class: "arrow" }, `${indent}|-->`), functionName(this.rec, event), node("span", { class: "file" }, ` //(${this.rec.sites[this.rec.site[event]!]!.file})`));
      e.title = `${functionName(this.rec, event)}(${args})`;
      if (event === this.now) e.append(node("span", { class: "arguments" }, args === "" ? "" : `  ${args}`));
      const leave = this.calls.leave[event]!;
      const result = leave >= 0 && leave < this.rec.count ? resultText(this.rec, leave) : "";
      if (leave === this.now) e.append(node("span", { class: "returns" }, result === "" ? " returns" : ` returns ${result}`));
      else if (leave === this.rec.count) e.append(node("span", { class: "file" }, " …runs to the end"));
    } else if (this.rec.kind[event] === LEAVE) {
      e.classList.add("leave");
      const result = resultText(this.rec, event);
      e.append(`${indent}|<--${functionName(this.rec, event)}${result === "" ? "" : ` = ${result}`}`);
    } else {
      e.classList.add("state");
      e.append(node("span", { class: "arrow" }, `${indent}|   `), `${stateName(this.rec, event)} ${stateText(this.rec, event)}`);
      e.title = stateText(this.rec, event);
      if (this.replay.contradictions.has(event)) e.classList.add("wrong");
    }
    return e;
  }
  private get currentLine(): number {
    return this.now >= 0 ? this.lineOf[this.now]! : -1;
  }
  private showTree(how: "walk" | "jump"): void {
    const box = $("lines");
    $("room").style.height = `${this.lines.length * LINE}px`;
    if (this.currentLine >= 0) {
      const top = this.currentLine * LINE;
      if (how === "jump" || top < box.scrollTop + LINE || top > box.scrollTop + box.clientHeight - 3 * LINE)
        box.scrollTop = Math.max(0, top - box.clientHeight / 2.5);
      // Deep calls stay readable: the line's own beginning is in sight.
      const indent = this.now >= 0 ? this.calls.depth[this.now]! * 14 : 0;
      if (indent < box.scrollLeft || indent > box.scrollLeft + box.clientWidth * 0.3) box.scrollLeft = Math.max(0, indent - 40);
    }
    this.paintLines();
  }
  private paintLines(): void {
    const box = $("lines");
    const from = Math.max(0, Math.floor(box.scrollTop / LINE) - 8);
    const to = Math.min(this.lines.length, Math.ceil((box.scrollTop + box.clientHeight) / LINE) + 8);
    const shown: HTMLElement[] = [];
    for (let n = from; n < to; ++n) {
      const e = this.lineText(n);
      e.style.top = `${n * LINE}px`;
      e.id = `line-${n}`;
      e.setAttribute("role", "option");
      e.setAttribute("aria-selected", String(n === this.currentLine));
      if (n === this.currentLine) e.classList.add("now");
      const event = this.lines[n]!;
      if (event >= 0) e.addEventListener("click", () => this.goTo(event + 1));
      shown.push(e);
    }
    $("room").replaceChildren(...shown);
    if (this.currentLine >= from && this.currentLine < to) box.setAttribute("aria-activedescendant", `line-${this.currentLine}`);
    else box.removeAttribute("aria-activedescendant");
  }
  private showWords(): void {
    const i = this.now;
    const p = $("words"), name = $("step-name");
    if (i < 0) {
      name.textContent = "Before the first event";
      p.textContent = "Press the right arrow key to step on, ? for all keys.";
    } else {
      const task = taskName(this.rec, this.rec.tid[i]!);
      const kind = this.rec.kind[i]!;
      name.replaceChildren(node("span", { class: "who" }, task), " ",
        kind === ENTER ? `${functionName(this.rec, i)}()` : kind === LEAVE ? `${functionName(this.rec, i)}() returns` : `${stateName(this.rec, i)} ${stateText(this.rec, i)}`);
      const words = plainWords(this.rec, this.replay, i);
      p.textContent = words !== "" ? sentence(words)
        : kind === ENTER ? `${task} calls ${functionName(this.rec, i)} of ${this.rec.sites[this.rec.site[i]!]!.file}.`
        : kind === LEAVE ? `Back in ${this.calls.parent[i]! >= 0 ? functionName(this.rec, this.calls.parent[i]!) : "the task itself"}.` : "";
    }
    const problems: string[] = [];
    if (this.rec.problem !== "") problems.push(`The recording is broken: ${this.rec.problem}. What came before is shown.`);
    const here = this.replay.contradictions.get(i);
    if (here !== undefined) problems.push(`The recording contradicts itself in this step: ${here}.`);
    else if (this.wrong.length > 0) problems.push(`The recording contradicts itself in ${this.wrong.length} ${this.wrong.length === 1 ? "step" : "steps"}, first in step ${this.wrong[0]![0] + 1}: ${this.wrong[0]![1]}.`);
    const gap = this.rec.gaps.get(i);
    if (gap !== undefined) problems.push(`Before this step ${gap} events are missing: they were overwritten while the recording was written.`);
    const alert = $("problem");
    alert.hidden = problems.length === 0;
    if (alert.textContent !== problems.join(" ")) alert.textContent = problems.join(" ");
  }
  private showPicture(): void {
    const focused = document.activeElement?.closest("#drawing [data-object]")?.getAttribute("data-object");
    draw($<SVGSVGElement>("drawing"), this.rec, this.replay, this.objects, {
      followed: this.followed,
      onPick: (object) => this.pick(object),
      onPoint: (object) => {
        this.pointed = object;
        this.showObject();
      },
    });
    if (focused) [...document.querySelectorAll<SVGElement>("#drawing [data-object]")].find((e) => e.dataset.object === focused)?.focus();
    this.showObject();
    const marked = new Set(this.objects.at(this.now));
    if (this.followed !== undefined) marked.add(this.followed);
    machineDetails($("machine"), this.rec, this.replay, this.objects, marked, (object) => this.pick(object));
  }
  private showObject(): void {
    objectDetails($("object"), this.rec, this.replay, this.objects, this.pointed ?? this.object, (object) => this.pick(object));
  }
  private nameOf(object: ObjectId): string {
    if (this.objects.kind(object) !== "pte") return this.objects.text(object);
    const key = this.objects.key(object);
    return `${processName(this.replay, keyHigh(key))}'s ${hex(keyLow(key))}`;
  }
  private showLife(): void {
    const object = this.object;
    const title = $("life-title"), list = $("life");
    const follow = $("follow");
    list.replaceChildren();
    title.textContent = object === undefined ? "Life" : `Life of ${this.nameOf(object)}`;
    follow.hidden = object === undefined;
    follow.textContent = this.followed === undefined ? "Follow" : "Let go";
    follow.setAttribute("aria-pressed", String(this.followed !== undefined));
    if (object === undefined) return;
    const life = this.objects.life(object);
    let at = life.findIndex((i) => i > this.now);
    if (at < 0) at = life.length;
    const from = Math.max(0, at - 9), to = Math.min(life.length, from + 24);
    if (from > 0) list.append(node("li", { class: "dim" }, `${from} earlier`));
    for (const i of life.subarray(from, to)) {
      const text = isState(this.rec, i) ? `${stateName(this.rec, i)} ${stateText(this.rec, i)}` : `${functionName(this.rec, i)}()`;
      const b = node("button", { type: "button", class: "link" }, node("span", { class: "number" }, String(i + 1)), text);
      b.addEventListener("click", () => this.goTo(i + 1, "jump"));
      list.append(node("li", i === this.now ? { class: "now", "aria-current": "step" } : {}, b));
    }
    if (to < life.length) list.append(node("li", { class: "dim" }, `${life.length - to} later`));
  }
  private showPlace(): void {
    const time = this.now >= 0 ? this.rec.time[this.now]! : this.data.start;
    $("where").textContent = `step ${this.step} of ${this.rec.count}, ${timeText(time)}`;
    const canvas = $<HTMLCanvasElement>("plots");
    const left = labelWidth(canvas);
    $("cursor").style.left = `${left + placeOf(this.rec, this.data, this.now) * (canvas.clientWidth - left)}px`;
    const slider = $("timeline");
    slider.setAttribute("aria-valuemax", String(this.rec.count));
    slider.setAttribute("aria-valuenow", String(this.step));
    slider.setAttribute("aria-valuetext", `step ${this.step}, ${timeText(time)}`);
    const bar = $("moments");
    const current = last(this.moments, (m) => m.event <= this.now);
    bar.replaceChildren(...this.moments.map((m) => {
      const b = node("button", { type: "button", ...(m === current ? { "aria-current": "step" } : {}), title: `step ${m.event + 1}` }, m.name);
      b.addEventListener("click", () => this.goTo(m.event + 1, "jump"));
      return b;
    }));
    const button = bar.querySelector<HTMLElement>("[aria-current]");
    if (button !== null) bar.scrollLeft = button.offsetLeft - bar.clientWidth / 2;
  }

  // ---- finding
  private find(query: string): number[] {
    const q = query.trim();
    if (/^(step|#)\s*\d+$/.test(q)) return [Math.min(Number(q.replace(/\D+/g, "")), this.rec.count) - 1];
    const object = this.objects.parse(q.replace(/^swap\b/, "slot").replace(/,\s+/, ","));
    if (object !== undefined) return [...this.objects.life(object)];
    const out: number[] = [];
    const exact: number[] = []; // a whole name before names that it is a part of
    const address = /^0x[0-9a-f]+$/i.test(q) ? BigInt(q) : undefined;
    const task = [...this.rec.tasks.values()].find((t) => t.comm === q || `task ${t.comm}` === q);
    for (let i = 0; i < this.rec.count && out.length < 100_000; ++i) {
      const state = isState(this.rec, i);
      if (address !== undefined) {
        const page = address & ~0xfffn;
        if (state ? stateName(this.rec, i) === "pte" ? keyLow(v(this.rec, i, 0)) === (page & 0xffffffffffffn) : (v(this.rec, i, 0) & ~0xfffn) === page && stateName(this.rec, i).startsWith("fault")
          : this.rec.kind[i] === ENTER && (v(this.rec, i, 0) & ~0xfffn) === page) out.push(i);
      } else if (task !== undefined) {
        if (this.rec.tid[i] === task.tid && this.calls.depth[i] === 0 && this.rec.kind[i] === ENTER) out.push(i);
      } else {
        const name = this.rec.kind[i] === ENTER ? functionName(this.rec, i) : state ? stateName(this.rec, i) : "";
        if (name === q && name !== "") exact.push(i);
        else if (q.length > 2 && name.includes(q)) out.push(i);
      }
    }
    return exact.length > 0 ? exact : out;
  }
  private search(direction: 1 | -1, fresh: boolean): void {
    const query = $<HTMLInputElement>("query").value;
    if (fresh) this.hits = query.trim() === "" ? [] : this.find(query);
    if (this.hits.length === 0) {
      $("found").textContent = query.trim() === "" ? "" : "not in this recording";
      return;
    }
    const hit = direction > 0 ? this.hits.find((i) => i > this.now) : last(this.hits, (i) => i < this.now);
    const at = hit === undefined ? -1 : this.hits.indexOf(hit);
    const n = at >= 0 ? at : direction > 0 ? 0 : this.hits.length - 1;
    $("found").textContent = `${n + 1} of ${this.hits.length}`;
    this.goTo(this.hits[n]! + 1, "jump");
  }

  // ---- set-up
  private setUp(): void {
    const rec = this.rec;
    const title = rec.facts.get("scenario") ?? "A recorded run";
    document.title = `${title}: weir explore`;
    $("title").textContent = title;
    $("facts").textContent = [
      rec.facts.has("kernel") ? `kernel ${rec.facts.get("kernel")}` : "", rec.facts.has("seed") ? `seed ${rec.facts.get("seed")}` : "",
      rec.facts.has("ram_pages") ? `${rec.facts.get("ram_pages")} pages of RAM` : "", `${rec.count.toLocaleString("en")} events${rec.leftOut.size > 0 || rec.first > 0 ? ", a part of the run" : ""}`,
    ].filter((s) => s !== "").join(" · ");
    $("lines").addEventListener("scroll", () => this.paintLines());
    for (const b of document.querySelectorAll<HTMLElement>("[data-do]")) b.addEventListener("click", () => this.do(b.dataset.do!));
    $<HTMLFormElement>("search").addEventListener("submit", (e) => {
      e.preventDefault();
      this.search(1, true);
    });
    $("help-close").addEventListener("click", () => $<HTMLDialogElement>("help").close());
    if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.dataset.theme = "dark";
    const timeline = $("timeline");
    const scrub = (e: PointerEvent): void => {
      const canvas = $<HTMLCanvasElement>("plots");
      const left = labelWidth(canvas);
      const box = canvas.getBoundingClientRect();
      this.goTo(eventAt(rec, this.data, (e.clientX - box.left - left) / (box.width - left)) + 1, "jump");
    };
    timeline.addEventListener("pointerdown", (e) => {
      timeline.setPointerCapture(e.pointerId);
      scrub(e);
    });
    timeline.addEventListener("pointermove", (e) => {
      if (timeline.hasPointerCapture(e.pointerId)) scrub(e);
    });
    addEventListener("keydown", (e) => this.key(e));
    const again = (): void => {
      paint($<HTMLCanvasElement>("plots"), this.data);
      this.show("walk");
    };
    addEventListener("resize", again);
    addEventListener("hashchange", () => this.fromLink());
    paint($<HTMLCanvasElement>("plots"), this.data);
    $("legend").replaceChildren(...legend(this.data).map((l) => node("span", {}, node("i", { style: `border-top-color:var(${l.style});border-top-style:${l.dash ? "dashed" : "solid"}` }), l.name)));
    $("keys").replaceChildren(...KEYS.map(([key, meaning]) => node("tr", {}, node("th", { scope: "row" }, ...key.split(" ").map((k) => (k === "/" && key !== "/" ? " " : node("kbd", {}, k)))), node("td", {}, meaning))));
    $("glossary").replaceChildren(...Object.entries(GLOSSARY).flatMap(([term, meaning]) => [node("dt", {}, term), node("dd", {}, meaning)]));
    this.setMoments();
  }
  private theme(): void {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    paint($<HTMLCanvasElement>("plots"), this.data);
  }
  private help(): void {
    const dialog = $<HTMLDialogElement>("help");
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }
  private key(e: KeyboardEvent): void {
    if (e.ctrlKey || e.altKey || e.metaKey) return;
    if (document.activeElement instanceof HTMLInputElement) {
      if (e.key === "Escape") document.activeElement.blur();
      return;
    }
    if ($<HTMLDialogElement>("help").open && e.key !== "?") return;
    const actions: Record<string, () => void> = {
      ArrowRight: () => this.do("step"), ArrowLeft: () => this.do("back"), ArrowUp: () => this.do("out"),
      ArrowDown: () => this.do(e.shiftKey ? "over-back" : "over"),
      Home: () => this.do("first"), End: () => this.do("last"),
      PageDown: () => this.goTo(this.step + 100, "jump"), PageUp: () => this.goTo(this.step - 100, "jump"),
      n: () => this.do("next-change"), p: () => this.do("previous-change"), m: () => this.do("next-moment"), M: () => this.do("previous-moment"),
      o: () => this.do("follow"), a: () => this.do("all"), c: () => this.do("scale"), t: () => this.do("theme"),
      "/": () => $<HTMLInputElement>("query").focus(), "?": () => this.do("help"),
      f: () => this.search(1, false), F: () => this.search(-1, false),
    };
    const action = actions[e.key];
    if (action === undefined) return;
    e.preventDefault();
    action();
  }

  // ---- what tests ask
  get state(): object {
    return {
      step: this.step, count: this.rec.count, followed: this.followed === undefined ? null : this.objects.text(this.followed),
      contradictions: this.wrong.map(([i, text]) => [i + 1, text]), problem: this.rec.problem, all: this.allChanges, scale: this.data.scale,
      moments: this.moments.map((m) => [m.name, m.event + 1]),
    };
  }
  /** The number of a step's event since the start of the run. */
  number(step: number): number {
    let n = this.rec.first + step - 1;
    for (const [at, left] of this.rec.leftOut) if (at > 0 && at < step) n += left.events;
    for (const [at, missing] of this.rec.gaps) if (at < step) n += missing;
    return n;
  }
  /** Everything that is drawn from, at a step, in the form of tests/support/machine_look.hpp. */
  dump(step: number): object {
    this.replay.goTo(step);
    const r = this.replay;
    const out = {
      ptes: [...r.ptes].map(([key, pte]) => [key.toString(), pte.toString()]),
      frames: [...r.frames].filter(([, f]) => f.count !== 0).map(([pfn, f]) => [pfn, f.mapcount, f.count, f.flags, f.mapping]),
      lru: [...r.lists].filter(([, l]) => l.size > 0).map(([key, l]) => [key, l.some(Infinity, "head")]),
      swap_map: [...r.swapMap], swap_cache: [...r.swapCache], page_cache: [...r.pageCache].map(([key, pfn]) => [key.toString(), pfn]),
      zones: [...r.zones].map(([id, z]) => [id, z.free, [...z.areas], [...z.pcp], [...z.marks]]), rss: [...r.rss],
      tasks: [...r.owners].flatMap(([mm, pids]) => [...pids].map((pid) => [pid, `${mm} ${r.comms.get(pid) ?? ""}`])),
    };
    this.replay.goTo(this.step);
    return out;
  }
}

const KEYS: [string, string][] = [
  ["→ / ←", "one step on, one back"], ["↓ / Shift+↓", "over this call, back over it"], ["↑", "out of this call"],
  ["n / p", "next, previous change of the object of this step, or of the one that is followed"],
  ["o", "follow that object, or let it go; in the drawing: Enter on a box"], ["m / M", "next, previous moment"],
  ["/", "find: a function, a state, a task, pfn 12, slot 0,42, 0x4000, step 412"], ["f / F", "next, previous of what was found"],
  ["PageDown / PageUp", "a hundred events"], ["Home / End", "first, last"], ["a", "all changes, or without flags, counts and free lists"],
  ["c", "the bottom by steps, or by the machine's clock"], ["t", "dark or light"], ["?", "this help"],
];

/** The last that passes. */
function last<T>(of: ArrayLike<T>, test: (x: T) => boolean): T | undefined {
  for (let n = of.length - 1; n >= 0; --n) if (test(of[n]!)) return of[n]!;
  return undefined;
}

recordingBytes()
  .then((bytes) => {
    (window as unknown as { explorer: Explorer }).explorer = new Explorer(parse(bytes));
    document.body.classList.add("ready");
  })
  .catch((e: unknown) => {
    const alert = $("problem");
    alert.hidden = false;
    alert.textContent = `This page cannot show its recording: ${e instanceof Error ? e.message : String(e)}.`;
  });
