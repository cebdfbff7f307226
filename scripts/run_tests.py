#!/usr/bin/env python3
"""Runs the test executables of build directories, and the Python tests, and counts the cases.

    scripts/run_tests.py [--jobs N] [--time-limit S] [--filter F] [--show WORD] [--python] BUILD[=kind,kind...] ...

Kinds: unit, flows, model, live (default: all). The list comes from ctest, so that an executable whose source is gone is
not run, and one that was not built is a failure. Live tests run one after another when all others are done, as they
measure memory and time. The last two lines are always

    live ran N skipped M
    N passed, N failed, N skipped

They also go to build/test-summary.txt. Exits 1 when a case failed or none ran.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("model", "flows", "unit", "live")  # in the order they start: the long ones first, live alone at the end


@dataclass
class Job:
    name: str
    kind: str  # one of KINDS, or "python"
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    output: str = ""
    why: str = ""  # what went wrong beside failed cases: a crash, the time limit
    skips: list[str] = field(default_factory=list)


def jobs_of(spec: str) -> list[Job]:
    """The executables that ctest knows for BUILD[=kinds]."""
    build, _, kinds = spec.partition("=")
    wanted = kinds.split(",") if kinds else list(KINDS)
    if unknown := set(wanted) - set(KINDS):
        sys.exit(f"run_tests: {spec}: no such kind: {', '.join(sorted(unknown))} (there are {', '.join(KINDS)})")
    build_dir = Path(build).resolve()
    if not (build_dir / "CTestTestfile.cmake").exists():
        sys.exit(f"run_tests: {build} is not a configured build directory")
    listing = subprocess.run(["ctest", "--show-only=json-v1"], cwd=build_dir, capture_output=True, text=True, check=True)
    jobs = []
    for test in json.loads(listing.stdout)["tests"]:
        kind, _, name = test["name"].partition("/")
        if kind in wanted:
            # An executable that is not built yet has no command in the listing.
            command = test.get("command") or [str(build_dir / "tests" / kind / name)]
            jobs.append(Job(f"{build_dir.name}/{kind}/{name}", kind, command, {"WEIR_BUILD_DIR": str(build_dir)}))
    return jobs


def python_jobs() -> list[Job]:
    return [
        Job(f"python/{path.stem}", "python", [sys.executable, __file__, "--python-worker", str(path)])
        for path in sorted((ROOT / "tests").glob("*_test.py"))
    ]


def run(job: Job, time_limit: float, gtest_filter: str | None) -> Outcome:
    result = Outcome()
    if not Path(job.command[0]).exists():
        result.failed, result.why = 1, "not built"
        return result
    with tempfile.TemporaryDirectory(prefix="weir-test-") as scratch:
        report = Path(scratch) / "report.json"
        command = list(job.command)
        if job.kind == "python":
            command.append(str(report))
        else:
            command += [f"--gtest_output=json:{report}", "--gtest_color=no"]
            if gtest_filter:
                command.append(f"--gtest_filter={gtest_filter}")
        log = Path(scratch) / "log"
        start = time.monotonic()
        with open(log, "wb") as sink:
            # A session of its own, so that the time limit ends its children too.
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **job.env}, stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(time_limit)
            except subprocess.TimeoutExpired:
                result.why = f"over the time limit of {time_limit:.0f} s"
                code = None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
        result.seconds = time.monotonic() - start
        result.output = log.read_text(errors="replace")
        cases = read_report(report)
        if cases is None:
            cases = read_log(result.output)
            result.why = result.why or died(code) or "no report written"
        for name, outcome in cases:
            if outcome == "passed":
                result.passed += 1
            elif outcome == "skipped":
                result.skipped += 1
                result.skips.append(name)
            else:
                result.failed += 1
        if not result.failed:
            # A crash after the last case, a sanitizer's report at exit: a failure without a case.
            if code != 0:
                result.why = result.why or died(code)
                result.failed = 1
            elif not cases and not gtest_filter:
                result.why, result.failed = "has no test", 1
    return result


def died(code: int | None) -> str:
    if code is None or code == 0:
        return ""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"


def read_report(path: Path) -> list[tuple[str, str]] | None:
    """The cases of a GoogleTest JSON report, or of the Python worker's, which has the same form."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    cases = []
    for suite in report.get("testsuites", []):
        for case in suite.get("testsuite", []):
            if case.get("status") == "NOTRUN":
                continue
            if case.get("failures"):
                outcome = "failed"
            elif case.get("result") == "SKIPPED":
                outcome = "skipped"
            else:
                outcome = "passed"
            cases.append((f"{case.get('classname', suite['name'])}.{case['name']}", outcome))
    return cases


def read_log(output: str) -> list[tuple[str, str]]:
    """The cases that a run which died had finished, by its output; the one it died in has failed."""
    running = None
    cases = []
    for line in output.splitlines():
        # Output of the case may stand before the mark on the same line.
        if match := re.search(r"\[ RUN      \] (\S+)", line):
            running = match[1]
        elif match := re.search(r"\[(       OK|  FAILED |  FAILED  |  SKIPPED )\s?\] (\S+?)(?:, where .*)? \(\d+ ms\)", line):
            mark = match[1].strip()
            cases.append((match[2], {"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}[mark]))
            running = None
    if running:
        cases.append((running, "failed"))
    return cases


def python_worker(path: str, report: str) -> int:
    """Runs one Python test file and writes its cases in GoogleTest's form."""
    cases = []

    class Result(unittest.TextTestResult):
        def note(self, test, result="COMPLETED", failures=None):
            name = getattr(test, "_testMethodName", str(test))
            cases.append({"name": name, "classname": type(test).__name__, "status": "RUN", "result": result,
                          "failures": failures or []})

        def addSuccess(self, test):
            super().addSuccess(test)
            self.note(test)

        def addSkip(self, test, reason):
            super().addSkip(test, reason)
            self.note(test, result="SKIPPED")

        def addFailure(self, test, err):
            super().addFailure(test, err)
            self.note(test, failures=[str(err[1])])

        def addError(self, test, err):
            super().addError(test, err)
            self.note(test, failures=[str(err[1])])

        def addSubTest(self, test, subtest, err):
            super().addSubTest(test, subtest, err)
            if err is not None:
                self.note(test, failures=[str(err[1])])

    sys.path.insert(0, str(Path(path).parent))
    suite = unittest.defaultTestLoader.loadTestsFromName(Path(path).stem)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result).run(suite)
    Path(report).write_text(json.dumps({"testsuites": [{"name": Path(path).stem, "testsuite": cases}]}))
    return 0 if result.wasSuccessful() else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("builds", nargs="*", metavar="BUILD[=kinds]")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=600, metavar="S", help="of one executable, in seconds")
    parser.add_argument("--filter", help="a GoogleTest filter")
    parser.add_argument("--python", action="store_true", help="also run tests/*_test.py")
    parser.add_argument("--show", metavar="WORD", action="append", default=[],
                        help="repeat the lines of output that begin with WORD (may be given more than once)")
    args = parser.parse_args()

    jobs = [job for spec in args.builds for job in jobs_of(spec)]
    jobs.sort(key=lambda job: KINDS.index(job.kind))
    if args.python:
        jobs = python_jobs() + jobs
    side_by_side = [job for job in jobs if job.kind != "live"]
    alone = [job for job in jobs if job.kind == "live"]

    print_lock = threading.Lock()
    done = 0
    outcomes: list[tuple[Job, Outcome]] = []

    def one(job: Job) -> None:
        nonlocal done
        outcome = run(job, args.time_limit, args.filter)
        with print_lock:
            done += 1
            outcomes.append((job, outcome))
            counts = f"{outcome.passed} passed"
            if outcome.failed:
                counts += f", {outcome.failed} FAILED"
            if outcome.skipped:
                counts += f", {outcome.skipped} skipped"
            why = f" ({outcome.why})" if outcome.why else ""
            print(f"[{done}/{len(jobs)}] {job.name}: {counts}{why}, {outcome.seconds:.1f} s", flush=True)
            for line in outcome.output.splitlines():
                if line.startswith(tuple(args.show)):
                    print(line, flush=True)
            if outcome.failed:
                print(f"---- output of {job.name}\n{outcome.output.rstrip()}\n---- end of {job.name}", flush=True)
            for name in outcome.skips:
                print(f"    skipped: {name}", flush=True)

    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        list(pool.map(one, side_by_side))
    for job in alone:
        one(job)

    passed = sum(outcome.passed for _, outcome in outcomes)
    failed = sum(outcome.failed for _, outcome in outcomes)
    skipped = sum(outcome.skipped for _, outcome in outcomes)
    live = [outcome for job, outcome in outcomes if job.kind == "live"]
    for job, outcome in outcomes:
        if outcome.failed:
            print(f"failed: {job.name}" + (f" ({outcome.why})" if outcome.why else ""))
    if not passed + failed:
        print("no test ran")
    summary = (f"live ran {sum(o.passed + o.failed for o in live)} skipped {sum(o.skipped for o in live)}\n"
               f"{passed} passed, {failed} failed, {skipped} skipped\n")
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "test-summary.txt").write_text(summary)
    print(summary, end="", flush=True)
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--python-worker":
        sys.exit(python_worker(sys.argv[2], sys.argv[3]))
    sys.exit(main())
