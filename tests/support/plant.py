#!/usr/bin/env python3
"""plant.py SOURCE COPY OLD NEW: a copy of a source file with OLD, which must be in it exactly once, replaced by NEW."""
import sys

source, copy, old, new = sys.argv[1:]
with open(source, encoding="utf-8") as f:
    text = f.read()
if text.count(old) != 1:
    sys.exit(f"plant.py: {source} has {text.count(old)} times, not once: {old}")
with open(copy, "w", encoding="utf-8") as f:
    f.write(text.replace(old, new))
