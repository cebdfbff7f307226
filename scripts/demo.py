"""What scripts/demo.sh shows. See there."""

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
ROWS = int(os.environ.get("WEIR_DEMO_ROWS", "1100000"))  # about 300 bytes each
SQL = f"""
PRAGMA cache_size=-4000000;
CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, body TEXT);
INSERT INTO t SELECT value, (value * 2654435761) % 1000003,
  printf('%d %s %.120c', value, hex(value * 7919), 'abcdefghijklmnopqrstuvwxyz') || printf('%x%x%x', value*31, value*17, value*13)
  FROM generate_series(1, {ROWS});
SELECT count(*), sum(k), sum(length(body)) FROM t;
SELECT k % 7 AS g, count(*), min(id), max(id), sum(length(body)) FROM t GROUP BY g ORDER BY g;
SELECT id, k, substr(body, 1, 24) FROM t WHERE id % 100003 = 17;
"""


def say(text=""):
    print(text, flush=True)


class Cgroup:
    """A memory cgroup of version 1 or 2; None from make() where the host does not let us."""

    def __init__(self, path, v2):
        self.path, self.v2 = Path(path), v2

    @staticmethod
    def make(limit):
        for root, probe, v2 in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", False), ("/sys/fs/cgroup", "cgroup.controllers", True)):
            if not os.path.exists(f"{root}/{probe}"):
                continue
            group = Cgroup(f"{root}/weir-demo-{os.getpid()}", v2)
            try:
                group.path.mkdir()
            except OSError:
                continue
            try:
                if limit:
                    (group.path / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
                    for name, value in (("memory.swap.max", "0"), ("memory.swappiness", "0")):
                        if (group.path / name).exists():
                            (group.path / name).write_text(value)
                return group
            except OSError:
                group.remove()
        return None

    def join(self):
        (self.path / "cgroup.procs").write_text("0")

    def peak(self):
        file = self.path / ("memory.peak" if self.v2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else 0

    def remove(self):
        for _ in range(200):
            try:
                self.path.rmdir()
                return
            except OSError:
                for pid in (self.path / "cgroup.procs").read_text().split():
                    try:
                        os.kill(int(pid), signal.SIGKILL)
                    except OSError:
                        pass
                time.sleep(0.01)


class Result:
    """A command that ran to its end: status as the shell shows it, output, seconds, most memory of the process (not of its group)."""

    def __init__(self, command, sql, group=None, report=None):
        begin = time.monotonic()
        # SQL comes from a file, output goes to one: what is measured is the program.
        with open(sql) as stdin, tempfile.TemporaryFile() as out:
            child = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=report or subprocess.DEVNULL, preexec_fn=group.join if group else None)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = 0
            out.seek(0)
            self.output = out.read()
        self.seconds = time.monotonic() - begin
        self.status = os.waitstatus_to_exitcode(status)
        if self.status < 0:
            self.status = 128 - self.status
        self.rss = usage.ru_maxrss * 1024


def mib(n):
    return f"{n / MIB:.0f} MiB"


def simulated_half(weir, why):
    say(f"The live half is not shown here: {why}.")
    say("The same memory manager, simulated: document 004's machine, from examples/004.toml.")
    say()
    return subprocess.run([weir, "sim", "examples/004.toml"]).returncode


def host_line(weir):
    """What this host can do, in one line; and why live paging does not work, if it does not."""
    probe = subprocess.run([weir, "run", "--ram", "16M", "--swap", "zram", "--", "/bin/true"], capture_output=True, text=True)
    problem = ""
    if probe.returncode != 0:
        problem = " ".join(line.removeprefix("weir run: ").removeprefix("weir: ") for line in probe.stderr.splitlines()[-1:]) or f"weir run exits {probe.returncode}"
    group = Cgroup.make(0)
    cgroup = "none that we may make"
    if group:
        cgroup = "v2" if group.v2 else "v1"
        group.remove()
    release = os.uname().release
    numbers = [int(n) for n in re.findall(r"\d+", release)[:2]]
    move = "UFFDIO_MOVE" if numbers >= [6, 8] else "no UFFDIO_MOVE"
    swap = [line.split()[0] for line in open("/proc/swaps").read().splitlines()[1:]]
    say(
        f"This host: Linux {release}, {os.cpu_count()} CPUs · live paging {'no' if problem else 'yes'} ({'root' if os.getuid() == 0 else 'not root'}, {move})"
        f" · memory cgroup {cgroup} · kernel swap {'none' if not swap else ' '.join(swap)}"
    )
    return problem, cgroup


def first_whole_tree(text, name):
    """The shortest tree that reads its page from the swap area: a swap-in from beginning to end."""
    best = None
    for tree in re.split(r"\n(?=\|-->)", "\n" + text):
        tree = "\n".join(line for line in tree.splitlines() if line and not line.startswith("task "))
        if "running when it ended" in tree:
            continue
        if all(part in tree for part in (name, "swap_readpage", "swap_map", "pte ")) and (best is None or len(tree) < len(best)):
            best = tree
    return best


def live_half(weir, folder, cgroups):
    sqlite = shutil.which("sqlite3")
    if not sqlite:
        say("sqlite3 is not installed (apt-get install sqlite3): nothing to run.")
        return 1
    sql = f"{folder}/demo.sql"
    Path(sql).write_text(SQL)
    command = [sqlite, ":memory:"]

    native = Result(command, sql)
    need = native.rss
    limit, ram = need // 3, need // 4 // MIB * MIB
    say(f"\n1. sqlite3, a table of {ROWS:,} rows in memory, natively: {mib(need)}, {native.seconds:.1f} s, output {hashlib.sha256(native.output).hexdigest()[:16]}")
    if native.status != 0 or not native.output:
        say(f"   it ended with status {native.status}: the demo cannot go on")
        return 1
    failed = 0

    if cgroups:
        group = Cgroup.make(limit)
        try:
            small = Result(command, sql, group)
        finally:
            group.remove()
        killed = small.status == 137
        say(f"2. The same in a memory cgroup of {mib(limit)} (a third), without swap: {'killed (137)' if killed else f'status {small.status}'}, after {small.seconds:.1f} s")
        failed |= not killed
    else:
        say("2. In a memory cgroup of a third: not shown, this host lets us make none (it needs root and the memory controller)")

    recording = f"{folder}/demo.weir"
    managed_command = [weir, "run", "--ram", f"{ram // MIB}M", "--swap", "zram", "--swap", f"file:{folder}:{4 * need // MIB}M", "--record", recording, "--record-events", "256K", "--"] + command
    say(f"3. weir run --ram {ram // MIB}M --swap zram --swap file:… --record demo.weir -- sqlite3 :memory:" + (", in a cgroup of the same size:" if cgroups else ":"))
    group = Cgroup.make(limit) if cgroups else None
    try:
        with tempfile.TemporaryFile("w+") as report:
            managed = Result(managed_command, sql, group, report)
            report.seek(0)
            for line in report.read().splitlines():
                say(f"   {line}")
        peak = group.peak() if group else 0
    finally:
        if group:
            group.remove()
    same = managed.output == native.output and managed.status == 0
    say(f"   {'identical output' if same else f'OUTPUT DIFFERS (status {managed.status})'}, {managed.seconds:.1f} s" + (f", the cgroup's peak {mib(peak)} of {mib(limit)}" if peak else ""))
    failed |= not same

    say("\n4. One swap-in of that run, as its recording has it:\n")
    flow = subprocess.run([weir, "flow", "--from", recording, "--function", "do_swap_page"], capture_output=True, text=True)
    tree = first_whole_tree(flow.stdout, "do_swap_page") if flow.returncode in (0, 1) else None
    if tree:
        say(tree)
    else:
        say(f"   no whole do_swap_page in the recording (weir flow: {flow.returncode}) {flow.stderr.strip()}")
        failed = 1
    return 1 if failed else 0


def main():
    build = sys.argv[1]
    weir = os.path.abspath(f"{build}/bin/weir")
    if not os.access(weir, os.X_OK):
        sys.exit(f"{weir} is not there: `make build` makes it")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    problem, cgroup = host_line(weir)
    if problem:
        return simulated_half(weir, problem)
    # On a disk: swap files are refused on a tmpfs.
    with tempfile.TemporaryDirectory(prefix="weir-demo-", dir=os.environ.get("TMPDIR") or "/var/tmp") as folder:
        return live_half(weir, folder, cgroup.startswith("v"))


sys.exit(main())
