"""Symbols: what the engine's libraries take from elsewhere is in symbols_allowed.txt, and nothing of it is dangerous there.

Live, the thread that faults may hold the program's malloc lock, so that engine code may not call what allocates, locks or
throws. Its objects in the release build are asked what they leave undefined; a debug build has lockdep's reports and less
inlining, and is not what runs.
"""

import re
import subprocess
import tempfile
import unittest
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "release"
ALLOWED = ROOT / "tests" / "symbols_allowed.txt"
INTERPOSED = ROOT / "src" / "live" / "preload" / "exports.map"

# Engine libraries, and objects in them that never run in a managed process.
LIBRARIES = {
    "weir_base": {"parse"},
    "weir_kernel": set(),
    "weir_kernel_host": set(),
    "weir_record": {"reader", "flow_tree", "flow_diff"},
    "weir_block": {"sim_disk", "fault_injector"},
    "weir_mm": set(),
    "weir_arch_uffd": set(),
}
# Never, whatever the list says.
FORBIDDEN = re.compile(
    r"(malloc|calloc|realloc|free|memalign|posix_memalign|aligned_alloc|reallocarray|strdup|strndup|asprintf)"
    r"|_Zn[wa]\w*|_Zd[la]\w*"  # operator new, operator delete
    r"|__cxa_(throw|rethrow|allocate_exception|begin_catch|guard_acquire|atexit|thread_atexit)|_Unwind_Resume|__gxx_personality_v0"
    r"|_ZSt\d+__throw_\w*|_ZSt9terminatev"
    r"|pthread_\w+|__tls_get_addr|__stack_chk_fail|__assert_fail|abort|exit|(v?f?|v?s?n?|v?d)printf|__\w*printf_chk|f(open|write|puts|flush)|dl(open|sym)")


@dataclass
class Symbols:
    undefined: dict[str, set[str]] = field(default_factory=dict)  # symbol -> objects that want it
    defined: set[str] = field(default_factory=set)


def read_symbols(archives: dict[Path, set[str]]) -> Symbols:
    """Of the archives' objects, without those whose source has one of the given stems."""
    found = Symbols()
    for archive, left_out in archives.items():
        listing = subprocess.run(["nm", "-A", "-P", "-g", archive], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            where, _, entry = line.partition("]: ")
            member = where.rpartition("[")[2]
            if member.partition(".")[0] in left_out:
                continue
            name, kind = entry.split()[:2]
            if kind in "Uwv":
                found.undefined.setdefault(name, set()).add(f"{archive.name}({member})")
            else:
                found.defined.add(name)
    return found


def names_in(path: Path) -> set[str]:
    return {line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")}


def interposed() -> set[str]:
    """The names that the preload puts before libc's."""
    text = re.sub(r"/\*.*?\*/", "", INTERPOSED.read_text(), flags=re.DOTALL)
    exported = re.search(r"global:(.*?)local:", text, re.DOTALL)
    return set(re.findall(r"\w+", exported[1]))


def demangled(name: str) -> str:
    return subprocess.run(["c++filt", name], capture_output=True, text=True).stdout.strip() or name


def problems_of(found: Symbols, allowed: set[str], taken: set[str]) -> list[str]:
    problems = []
    for name, objects in sorted(found.undefined.items()):
        if name in found.defined:
            continue
        who = f"{demangled(name)}, wanted by {', '.join(sorted(objects))}"
        if FORBIDDEN.fullmatch(name):
            problems.append(f"never in the engine: {who}")
        elif name in taken:
            problems.append(f"the preload interposes it: {who}")
        elif name not in allowed:
            problems.append(f"not in tests/{ALLOWED.name}: {who}")
    return problems


class EngineSymbols(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        archives = {BUILD / "lib" / f"lib{name}.a": left_out for name, left_out in LIBRARIES.items()}
        missing = [path.name for path in archives if not path.exists()]
        if missing:
            raise unittest.SkipTest(f"no release build: {', '.join(missing)} not in {BUILD.relative_to(ROOT)}/lib (make build)")
        cls.found = read_symbols(archives)

    def test_undefined_symbols_are_allowed_ones(self):
        problems = problems_of(self.found, names_in(ALLOWED), interposed())
        self.assertEqual(problems, [], "\n" + "\n".join(problems))

    def test_the_list_is_not_longer_than_needed(self):
        unused = names_in(ALLOWED) - self.found.undefined.keys()
        self.assertEqual(sorted(unused), [])

    def test_what_is_left_out_exists(self):
        for name, left_out in LIBRARIES.items():
            members = subprocess.run(["ar", "t", BUILD / "lib" / f"lib{name}.a"], capture_output=True, text=True).stdout
            stems = {member.partition(".")[0] for member in members.split()}
            self.assertEqual(sorted(left_out - stems), [], name)


class Planted(unittest.TestCase):
    """What must not be there is found where it is planted."""

    CODE = """
        #include <pthread.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #undef NDEBUG
        #include <assert.h>
        extern "C" int listed(int), elsewhere();
        int here(int a) { return a; }
        int fine(int a) { return here(a) + listed(a); }
        int* f1() { return new int; }
        void* f2(size_t n) { return malloc(n); }
        void f3(void* p) { free(p); }
        void f4(int a) { if (a > 0) throw a; }
        void f5(int a) { assert(a > 0); }
        void f6(pthread_mutex_t* m) { pthread_mutex_lock(m); }
        void* f7() { return mmap(0, 4096, 0, 0, -1, 0); }
        int f8() { return elsewhere(); }
        """

    def test_each_kind(self):
        with tempfile.TemporaryDirectory() as scratch:
            source, thing, archive = (Path(scratch) / name for name in ("a.cpp", "a.cpp.o", "liba.a"))
            source.write_text(self.CODE)
            subprocess.run(["g++", "-std=c++20", "-O1", "-c", source, "-o", thing], check=True)
            subprocess.run(["ar", "crs", archive, thing], check=True)
            # Being listed does not help a name that is dangerous.
            listed = {"listed", "malloc", "free", "mmap", "_Znwm", "_ZTIi", "_GLOBAL_OFFSET_TABLE_"}
            problems = problems_of(read_symbols({archive: set()}), listed, {"mmap"})
            self.assertEqual(read_symbols({archive: {"a"}}), Symbols())
        reasons = {line.partition(", wanted")[0] for line in problems}
        self.assertEqual(reasons, {
            "never in the engine: operator new(unsigned long)", "never in the engine: malloc", "never in the engine: free",
            "never in the engine: __cxa_allocate_exception", "never in the engine: __cxa_throw",
            "never in the engine: __assert_fail", "never in the engine: pthread_mutex_lock",
            "the preload interposes it: mmap", f"not in tests/{ALLOWED.name}: elsewhere",
        })


if __name__ == "__main__":
    unittest.main()
