"""Holds the #include lines of src/ and include/ to the floors of tests/floors.toml."""

import re
import tempfile
import tomllib
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".hpp", ".h", ".cpp", ".c"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<(weir/[^>]+)>)', re.MULTILINE)


class House:
    """The sources of a tree, with who includes whom."""

    def __init__(self, root: Path, plan: dict):
        self.plan = plan
        self.directory_floor = self.floors(plan["directories"])
        self.mm_floor = self.floors(plan["mm"])
        self.worlds = set(plan["worlds"]["rooms"])
        self.chosen_on = set(plan["worlds"]["chosen_on"])
        self.problems: list[str] = []
        self.files = {}  # name below src/ (or "include/...") -> text
        for top, prefix in ((root / "src", ""), (root / "include", "include/")):
            for path in sorted(top.rglob("*")):
                if path.suffix in SUFFIXES and path.is_file():
                    self.files[prefix + path.relative_to(top).as_posix()] = path.read_text(errors="replace")

    @staticmethod
    def floors(plan: list[dict]) -> dict[str, tuple[int, str]]:
        """room -> (height, name of its floor); the plan is written top to bottom."""
        return {room: (len(plan) - i, level["floor"]) for i, level in enumerate(plan) for room in level["rooms"]}

    def directory(self, name: str) -> str | None:
        """The longest listed directory that the file lies in; None below a listed one's name that is not listed."""
        parts = name.split("/")[:-1]
        for depth in range(len(parts), 0, -1):
            if "/".join(parts[:depth]) in self.directory_floor:
                return "/".join(parts[:depth])
        return None

    @staticmethod
    def mm_room(name: str) -> str | None:
        # What one kernel does differently in a room is the room's own: vmscan_era.hpp, vmscan_2_6_20.cpp.
        stem = name.removeprefix("mm/").rpartition(".")[0] if name.startswith("mm/") else None
        return re.sub(r"_(era|chains|2_6_20|3|4_14)$", "", stem) if stem else None

    def includes(self, name: str):
        """The files of the house that this one includes."""
        text = re.sub(r"/\*.*?\*/", "", self.files[name], flags=re.DOTALL)
        for match in INCLUDE.finditer(text):
            target = match[1] or match[2]
            beside = (Path(name).parent / target).as_posix()
            for candidate in (target, "include/" + target, beside):
                if candidate in self.files:
                    yield candidate
                    break

    def check(self) -> list[str]:
        directory_edges: dict[str, dict[str, str]] = {}
        room_edges: dict[str, dict[str, str]] = {}
        for name in self.files:
            here = self.directory(name)
            if here is None:
                self.problems.append(f"{name}: its directory is not listed")
                continue
            room = self.mm_room(name)
            if room is not None and room not in self.mm_floor:
                self.problems.append(f"{name}: room '{room}' of src/mm is not listed")
            for target in self.includes(name):
                there = self.directory(target)
                if there is None:
                    continue  # reported as a file of its own
                arrow = f"{name} includes {target}"
                if there != here:
                    self.check_directories(arrow, here, there)
                    directory_edges.setdefault(here, {}).setdefault(there, arrow)
                target_room = self.mm_room(target)
                if room is not None and target_room is not None and room != target_room:
                    self.check_rooms(arrow, room, target_room)
                    room_edges.setdefault(room, {}).setdefault(target_room, arrow)
        self.check_circles("directories", directory_edges)
        self.check_circles("rooms of src/mm", room_edges)
        return self.problems

    def check_directories(self, arrow: str, here: str, there: str) -> None:
        (height, floor), (other_height, other_floor) = self.directory_floor[here], self.directory_floor[there]
        if other_height > height:
            self.problems.append(f"{arrow}: upwards, from {here} ({floor}) to {there} ({other_floor})")
        elif there in self.worlds and floor not in self.chosen_on:
            self.problems.append(f"{arrow}: {here} must not know the world {there}")

    def check_rooms(self, arrow: str, here: str, there: str) -> None:
        if here not in self.mm_floor or there not in self.mm_floor:
            return  # reported as not listed
        (height, floor), (other_height, other_floor) = self.mm_floor[here], self.mm_floor[there]
        if other_height > height:
            self.problems.append(f"{arrow}: upwards, from {here} ({floor}) to {there} ({other_floor})")

    def check_circles(self, what: str, edges: dict[str, dict[str, str]]) -> None:
        state: dict[str, int] = {}  # 1 = on the way, 2 = done
        path: list[str] = []

        def visit(node: str) -> None:
            state[node] = 1
            path.append(node)
            for target in sorted(edges.get(node, ())):
                if state.get(target) == 1:
                    circle = path[path.index(target):] + [target]
                    why = "; ".join(edges[a][b] for a, b in zip(circle, circle[1:]))
                    self.problems.append(f"circle of {what}: {' -> '.join(circle)} ({why})")
                elif target not in state:
                    visit(target)
            path.pop()
            state[node] = 2

        for node in sorted(edges):
            if node not in state:
                visit(node)


def load_plan() -> dict:
    return tomllib.loads((ROOT / "tests" / "floors.toml").read_text())


class Floors(unittest.TestCase):
    def test_the_sources_keep_to_the_floors(self):
        problems = House(ROOT, load_plan()).check()
        self.assertEqual(problems, [], "\n" + "\n".join(problems))

    def test_no_room_stands_on_two_floors(self):
        plan = load_plan()
        for part in ("directories", "mm"):
            rooms = [room for level in plan[part] for room in level["rooms"]]
            self.assertEqual(sorted(rooms), sorted(set(rooms)))


class Planted(unittest.TestCase):
    """Each kind of violation, planted in a small tree, is found."""

    def problems(self, files: dict[str, str]) -> list[str]:
        with tempfile.TemporaryDirectory() as scratch:
            for name, text in files.items():
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return House(Path(scratch), load_plan()).check()

    def assert_found(self, word: str, files: dict[str, str]) -> None:
        problems = self.problems(files)
        self.assertEqual(len(problems), 1, problems)
        self.assertIn(word, problems[0])

    def test_a_clean_tree_has_no_problem(self):
        self.assertEqual(self.problems({
            "src/mm/types.hpp": '#include "base/units.hpp"\n#include <vector>\n',
            "src/mm/vmscan.hpp": '#include "mm/types.hpp"\n// #include "mm/verify.hpp"\n/*\n#include "mm/verify.hpp"\n*/\n',
            "src/mm/vmscan.cpp": '#include "mm/vmscan.hpp"\n#include "mm/oom_kill.hpp"\n',
            "src/mm/oom_kill.hpp": "", "src/mm/verify.hpp": "", "src/base/units.hpp": "", "src/kernel/virtual/fiber.hpp": "",
            "src/sim/run.cpp": '#include "kernel/virtual/fiber.hpp"\n#include <weir/sim.hpp>\n',
            "include/weir/sim.hpp": "",
        }), [])

    def test_a_room_that_is_not_listed(self):
        self.assert_found("room 'secret'", {"src/mm/secret.cpp": ""})

    def test_a_directory_that_is_not_listed(self):
        self.assert_found("directory is not listed", {"src/attic/box.cpp": ""})

    def test_a_room_that_includes_upwards(self):
        self.assert_found("upwards", {"src/mm/page_alloc.cpp": '#include "mm/vmscan.hpp"\n', "src/mm/vmscan.hpp": ""})

    def test_an_include_by_the_bare_name_beside(self):
        self.assert_found("upwards", {"src/mm/page_alloc.cpp": '#include "vmscan.hpp"\n', "src/mm/vmscan.hpp": ""})

    def test_a_directory_that_includes_upwards(self):
        self.assert_found("upwards", {"src/kernel/wait.cpp": '#  include "mm/types.hpp"\n', "src/mm/types.hpp": ""})

    def test_the_engine_knows_no_public_header(self):
        self.assert_found("upwards", {"src/mm/types.hpp": "#include <weir/weir.h>\n", "include/weir/weir.h": ""})

    def test_mm_knows_no_world(self):
        self.assert_found("must not know the world", {
            "src/mm/machine.cpp": '#include "kernel/host/futex.hpp"\n', "src/kernel/host/futex.hpp": ""})
        self.assert_found("upwards", {"src/mm/machine.cpp": '#include "arch/soft/tlb.hpp"\n', "src/arch/soft/tlb.hpp": ""})

    def test_a_circle_on_one_floor(self):
        self.assert_found("circle of rooms", {
            "src/mm/vmscan.hpp": '#include "mm/oom_kill.hpp"\n', "src/mm/oom_kill.hpp": "",
            "src/mm/oom_kill.cpp": '#include "mm/vmscan.hpp"\n'})

    def test_a_circle_of_directories(self):
        self.assert_found("circle of directories", {
            "src/sim/a.hpp": '#include "proc/b.hpp"\n', "src/proc/b.hpp": "", "src/proc/c.cpp": '#include "sim/a.hpp"\n'})


if __name__ == "__main__":
    unittest.main()
