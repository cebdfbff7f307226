#!/usr/bin/env python3
"""build.py OUT: bundles web/ into one page, OUT, with a place left for the recording.

What the page knows of a recording's words comes from where C++ has it, so both sides say the same: texts of states from
record/flow_tree.cpp, names of flags from styles.cpp, of lists from mm/types.cpp; what a function means from the documents' flows, and words.toml.
Needs esbuild.
"""
import json
import pathlib
import re
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def list_after(source, name):
    """The strings of `NAME[] = {"a", nullptr, ...}`."""
    found = re.search(re.escape(name) + r"\[\] = \{(.*?)\};", source, re.S)
    if not found:
        sys.exit(f"build.py: {name} is not in styles.cpp any more")
    return [a or "" for a in re.findall(r'"([^"]*)"|nullptr', found[1])]


def means():
    out = {}
    for flow in tomllib.loads((ROOT / "tests/flows/flows.toml").read_text())["flow"]:
        for step in flow["steps"]:
            if "fn" in step and step.get("means"):
                out.setdefault(step["fn"], step["means"])
    return out


def schema():
    source = (ROOT / "src/record/flow_tree.cpp").read_text()
    rows, results = (re.findall(r'\{"(\w+)",\s*"([^"]*)"(, Kind::bookkeeping)?\},', source.partition(f"{table}[] = {{")[2].partition("};")[0])
                     for table in ("STATE_TEXTS", "RESULT_TEXTS"))
    texts = {name: text for name, text, _ in rows}
    if len(texts) < 40 or len(results) < 10:
        sys.exit("build.py: the tables of texts are not in record/flow_tree.cpp any more")
    styles = (HERE / "styles.cpp").read_text()
    words = tomllib.loads((HERE / "words.toml").read_text())
    tables = [
        ("STATE_TEXTS", "Record<string, string>", texts),
        ("RESULT_TEXTS", "Record<string, string>", {name: style for name, style, _ in results}),
        ("PAGE_FLAGS", "readonly string[]", list_after(styles, "PAGE_FLAG_NAMES")),
        ("FAULT_BITS", "readonly string[]", list_after(styles, "FAULT_NAMES")),
        ("LRU_NAMES", "readonly string[]", re.findall(r'return "(LRU_\w+)";', (ROOT / "src/mm/types.cpp").read_text())),
        ("BOOKKEEPING", "readonly string[]", [name for name, _, kind in rows if kind]),
        ("FUNCTION_WORDS", "Record<string, string>", words["functions"]),
        ("MEANS", "Record<string, string>", means()),
        ("STATE_WORDS", "Record<string, string>", words["states"]),
        ("GLOSSARY", "Record<string, string>", words["glossary"]),
    ]
    return "".join(f"export const {name}: {kind} = {json.dumps(value, ensure_ascii=False)};\n" for name, kind, value in tables)


def esbuild(*arguments):
    return subprocess.run(["esbuild", "--log-level=warning", "--charset=utf8", "--minify", *map(str, arguments)],
                          check=True, capture_output=True, text=True).stdout


def main():
    out = pathlib.Path(sys.argv[1]).resolve()
    made = out.with_name("schema.ts")
    made.write_text(schema())
    script = esbuild("--bundle", "--format=iife", "--target=es2022", f"--alias:weir-schema={made}", HERE / "web/main.ts")
    style = esbuild(HERE / "web/style.css")
    page = (HERE / "web/page.html").read_text()
    page = page.replace("/*STYLE*/", style.strip()).replace("/*SCRIPT*/", script.strip().replace("</script", "<\\/script"))
    out.write_text(page)


main()
