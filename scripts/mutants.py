#!/usr/bin/env python3
"""Breaks the kernels on purpose, one way at a time, and asks whether the case table notices.

    scripts/mutants.py            every mutant
    scripts/mutants.py --list     what they are
    scripts/mutants.py NAME...    those whose name contains one of these

A mutant is a replacement in one file, and a pattern of the cases that it can reach. Mutants that reach
no case in common share a build. A mutant is killed when a case within its reach fails; a failure
outside of every reach, or a build that fails, is an error of this script, and so is a mutant whose
text is no longer in its file.

The kernels are compiled for the host alone: the PTX of the unbroken sources, from the last build,
stands in for theirs, so that the build's own checks do not count as kills."""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "mutants"
RESULTS = WORK / "results.json"
Mutant = collections.namedtuple("Mutant", "name file reach after find replace")


def load():
    """The mutants of `mutants.txt`: blocks of `name`, `file`, `reach`, optional `after` (a text that
    stands before the place), then the two texts after `-` and `+`."""
    mutants, fields = [], {}
    for number, line in enumerate((ROOT / "scripts/mutants.txt").read_text().splitlines() + [""], 1):
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                mutants.append(Mutant(fields["name"], fields["file"], fields["reach"],
                                      fields.get("after", ""), "\n".join(fields["-"]),
                                      "\n".join(fields["+"])))
                fields = {}
            continue
        if line[0] in "-+":
            fields.setdefault("-", [])
            fields.setdefault("+", [])
            fields[line[0]].append(line[2:])
        else:
            key, _, value = line.partition(": ")
            if key not in ("name", "file", "reach", "after"):
                sys.exit(f"mutants.txt:{number}: {line}")
            fields[key] = value
    return mutants


def apply(mutant, folder):
    path = folder / "kernels-gpu/src" / mutant.file
    text = path.read_text()
    start = text.find(mutant.after)
    if start < 0:
        sys.exit(f"{mutant.name}: {mutant.file} has no {mutant.after!r}")
    at = text.find(mutant.find, start)
    if at < 0:
        sys.exit(f"{mutant.name}: {mutant.file} has no {mutant.find!r} behind {mutant.after!r}")
    if not mutant.after and text.find(mutant.find, at + 1) >= 0:
        sys.exit(f"{mutant.name}: {mutant.file} has {mutant.find!r} more than once")
    path.write_text(text[:at] + mutant.replace + text[at + len(mutant.find):])


def snapshot():
    """The tracked files as they are now, apart: who works on them meanwhile is not in the way."""
    tree = WORK / "sources"
    shutil.rmtree(tree, ignore_errors=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in files.stdout.decode().split("\0"):
        source = ROOT / name
        if not name or not source.is_file() or name.startswith(("tests/data/tiny", "assets", "docs")):
            continue
        to = tree / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, to)
    (tree / "assets").symlink_to(ROOT / "assets")


def copy_sources():
    """The tree to break, whole again. Only what a mutant changes gets a new time, and is rebuilt."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(WORK / "sources", tree, symlinks=True)
    return tree


def stand_in():
    """A compiler that gives back the PTX of the last build, for `IRONWARP_NVPTX_RUSTC`."""
    outs = list((ROOT / "target").glob("debug/build/ironwarp-*/out/sm_90a.s"))
    if not outs:
        sys.exit("no PTX: run `cargo build` first")
    newest = max(outs, key=lambda path: path.stat().st_mtime).parent
    root = WORK / "compiler"
    source = root / "lib/rustlib/src/rust/library/core/src"
    source.mkdir(parents=True, exist_ok=True)
    (source / "lib.rs").touch()
    for arch in ("sm_80", "sm_90a"):
        shutil.copy2(newest / f"{arch}.s", root / f"{arch}.s")
    rustc = root / "bin/rustc"
    rustc.parent.mkdir(exist_ok=True)
    rustc.write_text(f"""#!/bin/bash
case " $* " in
*" --print sysroot "*) echo {root} ;;
*" -V "*) echo 'rustc 1.95.0 (stand-in)' ;;
*)
    out= dir= arch=
    while [ $# -gt 0 ]; do
        case $1 in
        -o) out=$2; shift ;;
        --out-dir) dir=$2; shift ;;
        -Ctarget-cpu=*) arch=${{1#-Ctarget-cpu=}} ;;
        esac
        shift
    done
    if [ -n "$arch" ]; then cp {root}/$arch.s "$out"
    elif [ -n "$out" ]; then touch "$out"
    else touch "$dir/libcore.rlib"
    fi ;;
esac
""")
    rustc.chmod(0o755)
    return rustc


def build(tree, rustc):
    """The test program of the tree."""
    env = dict(os.environ, IRONWARP_NVPTX_RUSTC=str(rustc), CARGO_TARGET_DIR=str(WORK / "target"),
               PTXAS="", CARGO_TERM_COLOR="never")
    # No assembler: there is nothing new to assemble.
    env.pop("PTXAS")
    command = ["cargo", "test", "-q", "-p", "ironwarp", "--test", "kernels", "--no-run",
               "--message-format=json"]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    program = None
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "kernels":
            program = message["executable"]
        if message["reason"] == "compiler-message" and message["message"]["level"] == "error":
            print(message["message"]["rendered"])
    if done.returncode or not program:
        sys.exit(f"the build failed\n{done.stderr}")
    return program


def cases(program):
    done = subprocess.run([program, "--list"], check=True, capture_output=True, text=True)
    return [line.removesuffix(": test") for line in done.stdout.splitlines() if line.endswith("test")]


def failures(program, names):
    """The cases that fail. A case that takes longer than any should is one of them."""
    failed, rest = set(), sorted(names)
    while rest:
        part, rest = rest[:40], rest[40:]
        try:
            done = subprocess.run([program, "--exact", *part], capture_output=True, text=True,
                                  timeout=300, cwd=WORK)
            failed.update(re.findall(r"^test (\S+) +\.\.\. .*FAILED", done.stdout, re.M))
            died = done.returncode not in (0, 101)
        except subprocess.TimeoutExpired:
            died = True
        if died and len(part) > 1:
            rest = [name for name in rest]
            for name in part:
                failed.update(alone(program, name))
        elif died:
            failed.update(part)
    return failed


def alone(program, name):
    try:
        done = subprocess.run([program, "--exact", name], capture_output=True, timeout=60, cwd=WORK)
        return [] if done.returncode == 0 else [name]
    except subprocess.TimeoutExpired:
        return [name]


def batches(mutants, names):
    """Mutants whose reaches do not meet, together."""
    made = []
    for mutant in mutants:
        reach = {name for name in names if re.match(mutant.reach, name)}
        if not reach:
            sys.exit(f"{mutant.name}: no case matches {mutant.reach}")
        for batch in made:
            if all(reach.isdisjoint(other) for _, other in batch):
                batch.append((mutant, reach))
                break
        else:
            made.append([(mutant, reach)])
    return made


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--list", action="store_true")
    arguments.add_argument("--resume", action="store_true", help="leave out what was killed before")
    arguments.add_argument("names", nargs="*")
    arguments = arguments.parse_args()
    mutants = [mutant for mutant in load()
               if not arguments.names or any(name in mutant.name for name in arguments.names)]
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.name}  ({mutant.file})")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if arguments.resume and RESULTS.exists() else {}
    mutants = [mutant for mutant in mutants if not results.get(mutant.name)]
    rustc = stand_in()
    snapshot()
    tree = copy_sources()
    for mutant in mutants:
        saved = (tree / "kernels-gpu/src" / mutant.file).read_text()
        apply(mutant, tree)
        (tree / "kernels-gpu/src" / mutant.file).write_text(saved)
    names = cases(build(tree, rustc))
    print(f"{len(mutants)} mutants, {len(names)} cases", flush=True)
    survivors = []
    for number, batch in enumerate(batches(mutants, names), 1):
        start = time.time()
        tree = copy_sources()
        for mutant, _ in batch:
            apply(mutant, tree)
        program = build(tree, rustc)
        built = time.time()
        # Cases out of reach are left out: nothing that they run has changed.
        failed = failures(program, set().union(*(reach for _, reach in batch)))
        for mutant, reach in batch:
            killers = sorted(failed & reach)
            results[mutant.name] = killers
            verdict = f"killed by {len(killers)}: {killers[0]}" if killers else "SURVIVED"
            print(f"{mutant.name}: {verdict}", flush=True)
            if not killers:
                survivors.append(mutant.name)
        print(f"-- build {number}: {built - start:.0f} s, cases {time.time() - built:.0f} s",
              flush=True)
        RESULTS.write_text(json.dumps(results, indent=1))
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} killed")
    if survivors:
        sys.exit("survivors: " + ", ".join(survivors))


main()
