"""The explorer's page, in Debian's Chromium: what it draws from is what the machine was; every control does what it says."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from explore.browser import Browser, missing

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("WEIR_BUILD_DIR", ROOT / "build" / "debug"))
WEIR = BUILD / "bin" / "weir"
LOOK = BUILD / "tests" / "explore" / "look"
AXE = ROOT / "tests" / "explore" / "node_modules" / "axe-core" / "axe.min.js"
SEED = int(os.environ.get("WEIR_SEED", "1"), 0)

# The parts of the machine as look.cpp writes them; digests by the same FNV-1a.
PARTS = """
const [step, full] = arguments;
const d = explorer.dump(step);
const alive = new Set(d.tasks.map(([, text]) => Number(text.split(" ")[0])));
const order = (a, b) => (BigInt(a[0]) < BigInt(b[0]) ? -1 : 1);
const lines = (rows) => rows.map((row) => row.join(" ") + "\\n").join("");
const numbers = (rows) => lines([...rows].sort((a, b) => a[0] - b[0]));
const zones = (f) => numbers(d.zones.flatMap(f));
const parts = {
  ptes: lines(d.ptes.filter(([key]) => alive.has(Number(BigInt(key) >> 48n))).sort(order)),
  frames: numbers(d.frames), lru: numbers(d.lru.map(([key, pfns]) => [key + ":", ...pfns]).map((row) => row)),
  swap_map: numbers(d.swap_map), swap_cache: numbers(d.swap_cache), page_cache: lines(d.page_cache.sort(order)),
  nr_free: zones(([id, free]) => [[id, free]]), free_area: zones(([id, , areas]) => areas.map((n, k) => [id * 256 + k, n]).filter(([, n]) => n !== 0)),
  pcp: zones(([id, , , pcp]) => pcp.map(([cpu, n]) => [id * 65536 + cpu, n]).filter(([, n]) => n !== 0)),
  marks: zones(([id, , , , marks]) => marks.map((n, k) => [id * 256 + k, n])),
  rss: numbers(d.rss.filter(([mm]) => alive.has(mm))), tasks: numbers(d.tasks),
};
parts.lru = lines([...d.lru].sort((a, b) => a[0] - b[0]).map(([key, pfns]) => [key + ":", ...pfns]));
if (full) return parts;
for (const name of Object.keys(parts)) {
  let a = 0x811c9dc5, b = 0x01234567;
  for (const c of new TextEncoder().encode(parts[name])) {
    a = Math.imul(a ^ c, 16777619);
    b = Math.imul(b ^ c, 16777619);
  }
  const hex = (n) => (n >>> 0).toString(16).padStart(8, "0");
  parts[name] = hex(a) + hex(b);
}
return parts;
"""

# Each sample's scenario, and the part of it that a page shows.
SAMPLES = {
    "001": ["--around", "pswpin:1"],
    "000-swap": ["--around", "pswpin:1"],
    "000-oom": ["--around", "oom_kill:1"],
    "004": ["--around", "oom_kill:1"],
}


@unittest.skipIf(missing(), missing())
class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory(prefix="weir-explore-")
        cls.dir = Path(cls.scratch.name)
        cls.browser = Browser()
        cls.made = {}

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.scratch.cleanup()

    def run_weir(self, *arguments, status=0):
        done = subprocess.run([str(WEIR), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, status, done.stderr)
        return done

    def page(self, name: str) -> Path:
        """The sample's page; made once."""
        out = self.dir / f"{name}.html"
        if name not in self.made:
            recording = self.dir / f"{name}.weir"
            self.run_weir("sim", f"examples/{name}.toml", "--quiet", "--record", recording)
            self.run_weir("explore", recording, "-o", out, *SAMPLES[name])
            recording.unlink()  # of gigabytes
            self.made[name] = out
        return out

    def tearDown(self):
        self.assertEqual(self.browser.errors(), [], "the console is silent")

    # ---- exact
    def check_sample(self, name: str):
        self.browser.open(self.page(name))
        state = self.browser.state()
        self.assertEqual(state["problem"], "")
        self.assertEqual(state["contradictions"], [])
        draw = random.Random(SEED)
        steps = sorted(draw.sample(range(1, state["count"] + 1), min(200, state["count"])))
        numbers = [self.browser.js("return explorer.number(arguments[0])", step) for step in steps]
        print(f"{name}: {state['count']} events in the page, {len(steps)} steps, WEIR_SEED={SEED}")
        asked, told = self.dir / "numbers", self.dir / "looks"
        # After each, and after the event behind it.
        asked.write_text("\n".join(str(n) for n in sorted({m for n in numbers for m in (n, n + 1)})))
        subprocess.run([LOOK, f"examples/{name}.toml", asked, told], cwd=ROOT, check=True)
        looks = {look["number"]: look for look in map(json.loads, told.read_text().splitlines())}
        for step, number in zip(steps, numbers, strict=True):
            wrong = self.differences(step, looks[number])
            # A page's flag or mapping and the cache it joins, a list and the end of it, are one change and two events: what
            # differs counts if it still does after the next one.
            if set(wrong) <= {"swap_cache", "page_cache", "lru"} and wrong and self.browser.js("return explorer.number(arguments[0])", step + 1) == number + 1:
                wrong = self.differences(step + 1, looks[number + 1])
            if wrong:
                asked.write_text(str(number))
                subprocess.run([LOOK, f"examples/{name}.toml", asked, told, "full"], cwd=ROOT, check=True)
                real, drawn = json.loads(told.read_text()), self.browser.js(PARTS, step, True)
                differ = {part: sorted(set(real[part].splitlines()) ^ set(drawn[part].splitlines()))[:6] for part in wrong}
                self.fail(f"{name}, step {step} (event {number}): machine and page differ: {differ}")

    def differences(self, step: int, real: dict) -> list[str]:
        drawn = self.browser.js(PARTS, step, False)
        return [part for part in drawn if drawn[part] != real[part]]

    def test_the_page_of_document_001_is_the_machine_at_200_steps(self):
        self.check_sample("001")

    def test_the_page_of_document_000_swapping_is_the_machine_at_200_steps(self):
        self.check_sample("000-swap")

    def test_the_page_of_document_000_oom_is_the_machine_at_200_steps(self):
        self.check_sample("000-oom")

    def test_the_page_of_document_004_is_the_machine_at_200_steps(self):
        self.check_sample("004")

    # ---- samples
    def test_the_samples_in_docs_tell_what_runs_today(self):
        """Each is made anew; both tell the same moments, in the same order, and neither contradicts itself."""
        sys.path.insert(0, str(ROOT / "scripts"))
        import samples
        for sample in samples.samples():
            kept = ROOT / "docs" / "explore" / f"{sample['name']}.html"
            pages = [kept]
            if "sim" in sample:
                pages.append(self.dir / kept.name)
                samples.make(WEIR, sample, pages[1])
            for page in pages:
                with self.subTest(sample["name"], anew=page != kept):
                    self.browser.open(page)
                    state = self.browser.state()
                    self.assertEqual((state["problem"], state["contradictions"]), ("", []))
                    told = [name for name, _ in state["moments"]]
                    at = iter(told)
                    self.assertTrue(all(moment in at for moment in sample["moments"]),
                                    f"{sample['moments']} in {told}; scripts/samples.py makes the samples anew")
                    self.assertEqual(self.browser.errors(), [])

    # ---- controls
    def at(self, **wanted):
        state = self.browser.state()
        for key, value in wanted.items():
            self.assertEqual(state[key], value, f"{key} of {state}")
        return state

    def lit(self) -> str:
        return self.browser.js("return document.querySelector('.line.now')?.textContent ?? ''")

    def open_at_swap_in(self, more: str = "") -> int:
        """Opens the page of 001 where the page that it is around is read back from swap. The step."""
        self.browser.open(self.page("001"))
        step = dict(self.browser.state()["moments"])["Read back from swap"]
        self.browser.open(self.page("001"), f"#step={step}{more}")
        return step

    def slot_here(self) -> str:
        """The slot of the swap-in that the page of 001 is around, as "0,1"."""
        self.assertIn("swap_read", self.lit())
        return re.search(r"\((\d+,\d+)\)", self.lit())[1]

    def test_each_control_by_mouse(self):
        b = self.browser
        b.open(self.page("001"))
        b.click("[data-do=first]")
        self.at(step=0)
        b.click("[data-do=step]")
        first = b.state()
        self.assertGreater(first["step"], 0)
        b.click("[data-do=last]")
        self.at(step=first["count"])
        b.click("[data-do=back]")
        self.assertLess(b.state()["step"], first["count"])
        self.open_at_swap_in()
        slot = self.slot_here()
        here = b.state()["step"]
        b.click("[data-do=previous-change]")
        self.assertLess(b.state()["step"], here)
        self.assertIn(f"slot ({slot})", b.js("return document.querySelector('#object .what').textContent.replace('swap ', '')"))
        b.click("[data-do=next-change]")
        self.at(step=here)
        b.click("[data-do=out]")
        self.assertGreater(b.state()["step"], here)
        b.click("[data-do=over-back]")
        self.assertIn("|-->", self.lit())
        enter = b.state()["step"]
        b.click("[data-do=over]")
        self.assertGreater(b.state()["step"], enter)
        self.open_at_swap_in()
        b.click("#follow")
        self.at(followed=f"slot {slot}")
        moments = b.state()["moments"]
        self.assertIn("Read back from swap", [name for name, _ in moments])
        b.click("#moments button:last-child")
        self.at(step=moments[-1][1])
        b.click("#follow")
        self.at(followed=None)
        b.click("[data-do=all]")
        self.at(all=True)
        b.click("[data-do=all]")
        self.at(all=False)
        b.click("[data-do=scale]")
        self.at(scale="time")
        b.click("[data-do=scale]")
        b.click("[data-do=theme]")
        self.assertEqual(b.js("return document.documentElement.dataset.theme"), "dark")
        b.click("[data-do=theme]")
        b.click("[data-do=help]")
        self.assertTrue(b.js("return document.getElementById('help').open"))
        b.click("#help-close")
        self.assertFalse(b.js("return document.getElementById('help').open"))
        b.click("#drawing [data-object]")
        self.assertIsNotNone(b.state()["followed"])
        b.click("#lines .line.now + .line")
        self.assertTrue(self.lit())
        self.open_at_swap_in()
        b.click("#life button")
        b.click("#timeline")  # its middle
        middle = b.state()
        self.assertAlmostEqual(middle["step"] / middle["count"], 0.5, delta=0.1)

    def test_each_control_by_keyboard_alone(self):
        b = self.browser
        self.open_at_swap_in()
        here = b.state()["step"]
        b.keys("ARROW_RIGHT")
        self.assertGreater(b.state()["step"], here)
        b.keys("ARROW_LEFT")
        self.at(step=here)
        b.keys("ARROW_UP")
        self.assertGreater(b.state()["step"], here)
        b.keys("SHIFT+ARROW_DOWN")
        call = b.state()["step"]
        b.keys("ARROW_DOWN")
        self.assertGreater(b.state()["step"], call)
        self.open_at_swap_in()
        slot = self.slot_here()
        b.keys("HOME")
        self.at(step=0)
        b.keys("PAGE_DOWN")
        self.at(step=100)
        b.keys("PAGE_UP")
        self.at(step=0)
        b.keys("END")
        self.at(step=b.state()["count"])
        b.keys("/", f"slot {slot}", "ENTER", "ESCAPE")
        found = b.js("return document.getElementById('found').textContent")
        self.assertRegex(found, r"^\d+ of \d+$")
        self.assertIn(f"({slot})", self.lit())
        place = b.state()["step"]
        b.keys("f")
        self.assertNotEqual(b.state()["step"], place)
        b.keys("F")
        self.at(step=place)
        b.keys("o")
        followed = self.at()["followed"]
        self.assertIsNotNone(followed)
        b.keys("n")
        self.assertGreater(b.state()["step"], place)
        b.keys("p")
        self.at(step=place)
        b.keys("M")
        b.keys("m")
        b.keys("o")
        self.at(followed=None)
        for key, name, on, off in (("a", "all", True, False), ("c", "scale", "time", "steps")):
            b.keys(key)
            self.at(**{name: on})
            b.keys(key)
            self.at(**{name: off})
        b.keys("t")
        self.assertEqual(b.js("return document.documentElement.dataset.theme"), "dark")
        b.keys("t")
        b.keys("?")
        self.assertTrue(b.js("return document.getElementById('help').open"))
        b.keys("ESCAPE")
        self.assertFalse(b.js("return document.getElementById('help').open"))
        # Every box of the drawing and every button is reached by Tab, and Enter follows.
        reached = set()
        b.js("document.activeElement.blur()")
        for _ in range(120):
            b.keys("TAB")
            reached.add(b.js("const e = document.activeElement; return e.dataset.do ?? (e.closest('#drawing') ? 'box' : e.id)"))
        self.assertLessEqual({"box", "query", "lines", "timeline", "step", "over", "out", "follow", "help"}, reached)
        b.js("document.querySelector('#drawing [data-object]').focus()")
        b.keys("ENTER")
        self.assertEqual(b.state()["followed"], b.js("return document.querySelector('#drawing [data-object]').dataset.object") or None)

    def test_a_search_finds_functions_states_tasks_pages_addresses_and_steps(self):
        b = self.browser
        self.open_at_swap_in()
        slot = self.slot_here()
        b.click("[data-do=out]")
        for query, wanted in (("do_swap_page", "do_swap_page"), ("swap_read", "swap_read ("), ("hog", "hog"), (f"slot {slot}", f"({slot})"),
                              ("step 7", "")):
            b.js("document.getElementById('query').value = arguments[0]; document.getElementById('search').requestSubmit()", query)
            self.assertRegex(b.js("return document.getElementById('found').textContent"), r"^\d+ of \d+$", query)
            shown = self.lit() + b.js("return document.getElementById('step-name').textContent") + "(task"
            self.assertIn(wanted, shown, query)
        self.at(step=7)
        b.js("document.getElementById('query').value = 'no_such_function'; document.getElementById('search').requestSubmit()")
        self.assertEqual(b.js("return document.getElementById('found').textContent"), "not in this recording")

    def test_a_link_to_a_step_opens_there_with_what_was_followed(self):
        b = self.browser
        step = self.open_at_swap_in("&follow=slot:0,1&all&time")
        self.at(step=step, followed="slot 0,1", all=True, scale="time")
        link = b.js("return location.hash")
        b.keys("ARROW_RIGHT")
        self.assertNotEqual(b.js("return location.hash"), link)
        b.js("location.hash = arguments[0]", link)
        b.js("return new Promise((done) => setTimeout(done, 50))")
        self.at(step=step)

    def test_a_page_of_100000_events_opens(self):
        recording, out = self.dir / "long.weir", self.dir / "long.html"
        self.run_weir("sim", "examples/000-swap.toml", "--quiet", "--record", recording)
        self.run_weir("explore", recording, "-o", out, "--around", "pswpin:1", "--radius", "50000")
        recording.unlink()
        self.browser.open(out)
        state = self.browser.state()
        self.assertGreater(state["count"], 90_000)
        print(f"first picture of {state['count']} events after {self.browser.js('return performance.now()'):.0f} ms")

    def test_it_fits_a_desk_and_a_phone(self):
        for width, height in ((1280, 800), (390, 844)):
            self.browser.size(width, height)
            self.open_at_swap_in()
            self.assertEqual(self.browser.js("return document.documentElement.scrollWidth"), width, "nothing stands out to the side")
        self.browser.size(1280, 800)

    # ---- looks
    def each_look(self):
        """Each kept sample, at a moment that its document tells of, on a desk and on a phone, light and dark."""
        for width, height in ((1280, 800), (390, 844)):
            self.browser.size(width, height)
            for kept in sorted((ROOT / "docs" / "explore").glob("*.html")):
                self.browser.open(kept)
                moments = dict(self.browser.state()["moments"])
                step = next((moments[m] for m in ("Killed", "Copied on write", "Read back from swap") if m in moments), 1)
                self.browser.js("explorer.goTo(arguments[0], 'jump')", step)
                for theme in ("light", "dark"):
                    if theme == "dark":
                        self.browser.keys("t")
                    self.assertEqual(self.browser.js("return document.documentElement.dataset.theme ?? 'light'"), theme)
                    with self.subTest(kept.stem, width=width, theme=theme):
                        yield f"{kept.stem}-{width}-{theme}"
        self.browser.size(1280, 800)

    @unittest.skipIf(not AXE.exists(), f"{AXE.relative_to(ROOT)} is not there: scripts/setup.sh, where npm is")
    def test_axe_finds_no_serious_fault(self):
        for look in self.each_look():
            self.browser.js(AXE.read_text())
            found = self.browser.promise("""axe.run().then(({violations, passes}) => ({
                passes: passes.map((rule) => rule.id),
                faults: violations.filter(({impact}) => ["serious", "critical"].includes(impact))
                                  .map(({id, help, nodes}) => [id, help, nodes.map((node) => node.target.join(" "))])}))""")
            self.assertIn("color-contrast", found["passes"])
            self.assertEqual(found["faults"], [], look)

    def test_it_looks_as_it_did(self):
        """Beside pictures that somebody has looked at. WEIR_KEEP_PICTURES=1 keeps today's: then look at them."""
        references = ROOT / "tests" / "explore" / "reference"
        keep = "WEIR_KEEP_PICTURES" in os.environ
        looks = []
        for look in self.each_look():
            # Dark is light in other colours: once is enough.
            if look.endswith("-light") or look.startswith("001"):
                self.browser.picture((references if keep else self.dir) / f"{look}.png")
                looks.append(look)
        for look in looks if not keep else []:
            with self.subTest(look):
                different = self.browser.differing(references / f"{look}.png", self.dir / f"{look}.png")
                self.assertLess(different, 0.02, f"{different:.1%} of the picture is not as in {references.relative_to(ROOT)}")

    # ---- what is wrong with a recording is said, and not drawn over
    def damaged(self, change) -> Path:
        """A page whose recording `change` has been applied to."""
        import base64
        import zlib
        text = self.page("001").read_text()
        data = bytearray(zlib.decompress(base64.b64decode(re.search(r'id="recording">([^<]*)<', text)[1])))
        data = change(data)
        packed = base64.b64encode(zlib.compress(bytes(data))).decode()
        out = self.dir / "damaged.html"
        out.write_text(re.sub(r'(id="recording">)[^<]*', lambda m: m[1] + packed, text, count=1))
        return out

    def problem(self) -> str:
        return self.browser.js("return document.getElementById('problem').hidden ? '' : document.getElementById('problem').textContent")

    @staticmethod
    def events_of(data: bytearray):
        """(offset, kind) of each event of EVNT blocks, and the names of states."""
        import struct
        at, states, events = 16, [], []
        while at < len(data):
            tag, size = struct.unpack_from("<4sI", data, at)
            if tag == b"STAT":
                states = bytes(data[at + 8:at + 8 + size]).split(b"\0")[:-1]
            if tag == b"EVNT":
                events += [(o, struct.unpack_from("<H", data, o + 12)[0]) for o in range(at + 16, at + 8 + size, 40)]
            at += 8 + size
        return events, states

    def test_planted_contradictions_are_reported_by_the_page(self):
        import struct
        draw = random.Random(SEED)
        for name in ("pte", "mapcount", "lru", "swap_map", "swap_cache", "page_flags", "page_count", "nr_free"):
            with self.subTest(name, seed=SEED):
                def plant(data):
                    events, states = self.events_of(data)
                    number = 16 + states.index(name.encode())
                    at = draw.choice([o for n, (o, kind) in enumerate(events) if kind == number and n > 20000])
                    old = struct.unpack_from("<Q", data, at + 24)[0]
                    struct.pack_into("<Q", data, at + 24, old ^ 4)  # its old value is not what was told before
                    return data
                self.browser.open(self.damaged(plant))
                self.assertGreaterEqual(len(self.browser.state()["contradictions"]), 1)
                self.assertIn("The recording contradicts itself", self.problem())

    def test_a_recording_that_is_cut_or_of_another_version_is_said_to_be(self):
        self.browser.open(self.damaged(lambda data: data[:len(data) * 2 // 3]))
        self.assertIn("The recording is broken", self.problem())
        self.assertGreater(self.browser.state()["count"], 0)

        def version(data):
            data[8] = 9
            return data
        self.browser.open(self.damaged(version))
        self.assertIn("version 9; this page reads version 1", self.problem())
        self.browser.open(self.damaged(lambda data: bytearray(b"nothing")))
        self.assertIn("not a weir recording", self.problem())

    def test_damaged_recordings_never_break_the_page(self):
        draw = random.Random(SEED)
        print(f"WEIR_SEED={SEED}")
        for _ in range(12):
            def damage(data):
                for _ in range(draw.randrange(1, 8)):
                    data[draw.randrange(16, len(data) if draw.random() < 0.5 else 6000)] = draw.randrange(256)
                return data[:draw.randrange(len(data))] if draw.random() < 0.3 else data
            self.browser.open(self.damaged(damage))
            if self.problem() == "" or "cannot show" not in self.problem():
                count = self.browser.state()["count"]
                for step in (0, count // 2, count):
                    self.browser.js("explorer.goTo(arguments[0], 'jump')", step)
            self.assertEqual(self.browser.errors(), [])

    def test_names_in_a_recording_are_never_markup(self):
        evil = b"<img src=x onerror=alert(1)>"

        def plant(data):
            import struct
            fact = struct.pack("<HH", 8, len(evil)) + b"scenario" + evil
            block = b"FACT" + struct.pack("<I", len(fact)) + fact
            task = b"TASK" + struct.pack("<Iii", 24, 6, 1) + b"<b>A</b>".ljust(16, b"\0")
            data = data.replace(b"do_page_fault\0", b"<u>page_fault\0", 1)
            return data[:16] + block + task + data[16:]
        self.browser.open(self.damaged(plant))
        self.assertEqual(self.browser.js("return document.querySelectorAll('body img, body u, body i:not(#legend i):not(.strip i)').length"), 0)
        self.assertIn("<img", self.browser.js("return document.getElementById('title').textContent"))


if __name__ == "__main__":
    unittest.main()
