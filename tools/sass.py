"""What a GPU executes: a cubin's machine code, disassembled, and the instructions of one turn of a kernel's loops.

nvdisasm is CUDA's; it is looked for at NVDISASM, on PATH and where Triton, which brings it along, is installed.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Of each instruction that is of no such class: integer (addresses, comparisons, moves).
CLASSES = {
    "memory": r"(LDG|STG|LDGSTS|LD|ST|LDC|ULDC|LDL|STL|ATOM|ATOMG|RED)\b",
    "shared": r"(LDS|STS|ATOMS|SHFL)\b",
    "mufu": r"(MUFU|F2F|I2F|F2I)\b",
    "float": r"[FHD](ADD|MUL|FMA|MNMX|SETP|SEL|SET|CHK)",
    "branch": r"(BRA|BSSY|BSYNC|EXIT|CALL|RET|WARPSYNC|BAR|NOP|YIELD|DEPBAR|LDGDEPBAR|BREAK)\b",
}
WORKS = re.compile(r"MUFU|STG\.E\S*\.128|LDG\.E\S*\.128|LDGSTS")


class Turn(NamedTuple):
    """One turn of a loop, by the shortest way that does all of its work: exponentials and 16-byte accesses."""

    counts: Counter  # by class
    wide_loads: int  # of 16 bytes from global memory, copies to shared memory too
    wide_stores: int
    exponentials: int


def find_nvdisasm():
    """The path of nvdisasm, or None."""
    found = os.environ.get("NVDISASM") or shutil.which("nvdisasm")
    triton = importlib.util.find_spec("triton")
    if not found and triton:
        bundled = Path(triton.origin).parent / "backends/nvidia/bin/nvdisasm"
        found = str(bundled) if bundled.exists() else None
    return found


def disassemble(nvdisasm, cubin):
    """(instructions, labels) of each kernel, by its mangled name; a label is the number of an instruction."""
    result = subprocess.run([nvdisasm, "-c", str(cubin)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    kernels = {}
    for section in re.split(r"^//-+ \.text\.", result.stdout, flags=re.M)[1:]:
        code, labels = [], {}
        for line in section.splitlines():
            if label := re.match(r"\s*(\.L_x_\d+):", line):
                labels[label.group(1)] = len(code)
            elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
                code.append(instruction.group(1))
        kernels[section[: section.index(" ")]] = (code, labels)
    return kernels


def class_of(instruction):
    operation = re.sub(r"^@!?U?P\w+ ", "", instruction)
    return next((name for name, pattern in CLASSES.items() if re.match(pattern, operation)), "integer")


def successors(code, labels):
    """Of each instruction, which may be executed next in the kernel itself (calls return)."""
    following = []
    for i, instruction in enumerate(code):
        target = re.search(r"\bBRA\b.*`\((\S+)\)", instruction)
        ends = re.match(r"(EXIT|RET|BRA|BREAK)\b", instruction)
        conditional = instruction.startswith("@") or re.match(r"BRA(\.\w+)? !?U?P\d|BRA\.DIV", instruction)
        after = [] if ends and not conditional else [i + 1]
        # BRA.DIV leads to code for diverged warps, which comes back.
        if target and "BRA.DIV" not in instruction and target.group(1) in labels:
            after.append(labels[target.group(1)])
        following.append([a for a in after if a < len(code)])
    return following


def turns(code, labels):
    """A Turn of each loop that computes exponentials, outermost first."""
    following = successors(code, labels)
    found = []
    for end, after in enumerate(following):
        for start in after:
            if start <= end:
                found.append(shortest_turn(code, following, start, end))
    return [turn for turn in found if turn and turn.exponentials]


def shortest_turn(code, following, start, end):
    """The way from start to end, forward only, with most of the WORKS and then fewest instructions."""
    best = {start: (0, 0, None)}  # of each instruction: works, minus instructions, and where it is reached from
    for i in range(start, end + 1):
        if i not in best:
            continue
        works, fewest, _ = best[i]
        step = (works + bool(WORKS.search(code[i])), fewest - 1)
        for after in following[i]:
            if i < after <= end and (after not in best or step > best[after][:2]):
                best[after] = (*step, i)
    if end not in best:
        return None
    way, i = [], end
    while i is not None:
        way.append(code[i])
        i = best[i][2]
    text = "\n".join(way)
    return Turn(
        Counter(map(class_of, way)),
        len(re.findall(r"(?:LDG|LDGSTS)\.E\S*\.128", text)),
        len(re.findall(r"STG\.E\S*\.128", text)),
        len(re.findall(r"MUFU\.EX2", text)),
    )
