"""Names: no path of somebody's machine in the sources; the functions of the held flows exist under their names; and what a
recording names is the function that ran, in the file it stands in."""

import re
import struct
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOWS = ROOT / "tests" / "flows" / "flows.toml"
STATES = ROOT / "tests" / "flows" / "states.toml"
HELD = ROOT / "tests" / "flows" / "held.txt"  # ids of the flows that are held, one a line, # starts a comment
MACHINE_PATHS = ("/work/", "/root/")
WEIR = ROOT / "build" / "release" / "bin" / "weir"


def sources(*suffixes: str) -> dict[str, str]:
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(errors="replace")
        for path in sorted((ROOT / "src").rglob("*")) if path.suffix in suffixes and path.is_file()
    }


def defined(name: str, text: str) -> bool:
    """Whether `text` defines a function of this name: name(...) ... { with nothing that ends a declaration between."""
    for match in re.finditer(rf"(?<![\w.>]){re.escape(name)}\s*\(", text):
        depth, at = 1, match.end()
        while depth and at < len(text):
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        # const, noexcept, a return type, a constructor's list; not the rest of an `if (name(...)) {`
        if re.match(r"[^;{}()=]*\{", text[at:at + 500]):
            return True
    return False


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def recorded_sites(recording: bytes) -> list[tuple[str, str]]:
    """(function, file) of every place that recorded; src/record/README.md draws the format."""
    if recording[:8] != b"weirrec\n":
        raise ValueError("not a recording")
    sites, at = [], 16
    while at < len(recording):
        tag, size = struct.unpack_from("<4sI", recording, at)
        at += 8
        if tag == b"SITE":
            function, file = recording[at + 2:at + size].split(b"\0")[:2]
            sites.append((function.decode(), file.decode()))
        elif tag == b"DONE":
            return sites
        at += size
    raise ValueError("a recording without its end")


def misnamed(sites: list[tuple[str, str]], files: dict[str, str]) -> list[str]:
    """Sites whose file, of those of that base name or recorded under it, does not define a function of that name."""
    by_base: dict[str, list[str]] = {}
    for name, text in files.items():
        # A file of the kernel's that is several here says so: its functions are recorded under the kernel's name for it.
        for base in {name.rpartition("/")[2], *re.findall(r'#define WEIR_FLOW_FILE "([^"]+)"', text)}:
            by_base.setdefault(base, []).append(without_comments(text))
    return sorted(f"{file}: {function}" for function, file in set(sites)
                  if not any(defined(function, text) for text in by_base.get(file, ())))


def required_names(flow: dict, no_effect: set[str]) -> list[str]:
    """The functions that every run of the flow has, under the names of its era's kernel."""
    absent = set(flow.get("not_in_kernel", ()))
    names = []
    for step in flow.get("steps", ()):
        if "fn" not in step or step.get("optional") or "when" in step or "callee_any" in step:
            continue
        name = step.get("callee", step["fn"])
        if step["fn"] in absent or name in absent:
            name = step.get("kernel_name")
        if name and name not in no_effect and re.fullmatch(r"\w+", name):
            names.append(name)
    return names


class Names(unittest.TestCase):
    def test_no_path_of_a_machine_in_the_sources(self):
        found = [
            f"{name}:{number}: {path}"
            for name, text in sources(".hpp", ".h", ".cpp", ".c", ".map", ".js", ".ts", ".html", ".css").items()
            for number, line in enumerate(text.splitlines(), 1)
            for path in MACHINE_PATHS if path in line
        ]
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_functions_of_held_flows_exist(self):
        if not HELD.exists():
            return  # no flow is held
        table = tomllib.loads(FLOWS.read_text())
        flows = {flow["id"]: flow for flow in table["flow"]}
        no_effect = {entry["fn"] for entry in table["no_effect"]}
        states = tomllib.loads(STATES.read_text())
        text = "\n".join(sources(".hpp", ".cpp").values())
        text = without_comments(text)
        missing = []
        for line in HELD.read_text().splitlines():
            flow_id = line.partition("#")[0].strip()
            if not flow_id:
                continue
            self.assertIn(flow_id, flows, "held.txt names a flow that flows.toml does not have")
            for name in required_names(flows[flow_id], no_effect | set(states.get(flow_id, {}).get("without", ()))):
                if not defined(name, text):
                    missing.append(f"{flow_id}: {name} is defined nowhere in src/")
        self.assertEqual(missing, [], "\n" + "\n".join(missing))

    @unittest.skipUnless(WEIR.exists(), "no release build: build/release/bin/weir (make build)")
    def test_a_recording_names_the_functions_that_ran(self):
        with tempfile.TemporaryDirectory() as scratch:
            recording = Path(scratch) / "run.weir"
            run = subprocess.run([WEIR, "sim", ROOT / "examples" / "004.toml", "--quiet", "--record", recording],
                                 capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
            sites = recorded_sites(recording.read_bytes())
        # A whole machine ran: reclaim, swap and files are all there.
        names = {function for function, _ in sites}
        self.assertLessEqual({"do_page_fault", "shrink_page_list", "add_to_swap", "do_swap_page"}, names)
        wrong = misnamed(sites, sources(".hpp", ".h", ".cpp"))
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def test_what_counts_as_misnamed(self):
        files = {"mm/memory.cpp": "int f(int a) {\n}\n// int g() {}\n", "live/memory.cpp": "void h() {}"}
        self.assertEqual(misnamed([("f", "memory.cpp"), ("h", "memory.cpp")], files), [])
        self.assertEqual(misnamed([("g", "memory.cpp")], files), ["memory.cpp: g"])
        era = {"mm/memory_3.cpp": '#define WEIR_FLOW_FILE "memory.cpp"\nint f() {\n}\n'}
        self.assertEqual(misnamed([("f", "memory.cpp"), ("f", "memory_3.cpp")], era), [])
        self.assertEqual(misnamed([("f", "other.cpp"), ("operator()", "memory.cpp")], files),
                         ["memory.cpp: operator()", "other.cpp: f"])

    def test_what_counts_as_a_definition(self):
        self.assertTrue(defined("kswapd", "void Vmscan::kswapd(Node& node) {\n}"))
        self.assertTrue(defined("__free_page", "inline void\n__free_page(Page* page) const noexcept { }"))
        self.assertTrue(defined("pte", "auto pte(int a) -> Result<Pte> {"))
        self.assertFalse(defined("kswapd", "void kswapd(Node& node);"))
        self.assertFalse(defined("kswapd", "void wakeup_kswapd(Node& node) {}"))
        self.assertFalse(defined("kswapd", "machine.kswapd(node);"))
        self.assertFalse(defined("kswapd", "if (kswapd(node)) {"))


if __name__ == "__main__":
    unittest.main()
