"""Do the tests notice a small mistake? Plants some hundreds in csrc (CPU kernels, checks, dispatch) and fastloss/*.py,
one at a time, and runs the fast part of the suite on each: `make mutants`.

universalmutator makes the mutants, from tools/mutants.rules. Those of C++ are compiled together, once, each behind a
number that FASTLOSS_MUTANT chooses when the library is loaded (mutant schemata, Untch et al. 1993): for AVX2, at -O1,
the rest of the library as `make build` left it. Each is then run in a process forked from one that has loaded torch.
tools/mutants.equivalent lists those that no test can notice, and why.
"""

import argparse
import ast
import contextlib
import functools
import io
import json
import os
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/mutants"
RULES = ROOT / "tools/mutants.rules"
EQUIVALENT = ROOT / "tools/mutants.equivalent"
CAPABILITY = "avx2"
# The objects that a mutant can be in.
COMPILED = ["csrc/cpu/isa_avx2.cpp", "csrc/cpu/device.cpp", "csrc/ops/checks.cpp", "csrc/ops/layout.cpp"]
CPP = [
    "csrc/losses/*.h",
    "csrc/cpu/*.h",
    "csrc/cpu/device.cpp",
    "csrc/cpu/kernels/*.h",
    "csrc/ops/*.h",
    "csrc/ops/*.cpp",
]
# Templates that call themselves: a mutant has the compiler do so without end.
NOT = ["csrc/cpu/kernels/transpose.h"]
PYTHON = ["fastloss/*.py"]
# Lines of C++ in which a choice at run time cannot stand.
LEFT_OUT = re.compile(
    r"^\s*(#|//|template\b|using\b|namespace\b|static_assert|extern\b|struct\b|m\.def)|constexpr|asm\(|__builtin_prefetch"
    r"|__builtin_cpu|FASTLOSS_BEGIN|operator\b"
)
# The tests of a file come first, then quick ones that notice much; the rest is for what they let pass.
SIGMOID = ["test_sigmoid_focal_loss.py", "test_sigmoid_ghmc_loss.py", "test_asymmetric_loss.py"]
OWN = {
    "csrc/cpu/kernels/sigmoid.h": SIGMOID,
    "csrc/cpu/kernels/scale_gradient.h": ["test_autograd.py"],
    "csrc/cpu/kernels/softmax_rows.h": ["test_schedules.py"],
    "csrc/cpu/schedule.h": ["test_schedules.py"],
    "csrc/losses/ghmc_loss.h": ["test_ghmc_loss.py"],
    "csrc/losses/math.h": SIGMOID,
    "csrc/losses/sigmoid.h": SIGMOID,
    "csrc/ops/checks.cpp": ["test_errors.py", "test_ghmc_loss.py"],
    "fastloss/__init__.py": ["test_ops.py"],
    "fastloss/autograd.py": ["test_errors.py", "test_autograd.py", "test_ops.py"],
    "fastloss/functional.py": ["test_cross_entropy.py", "test_ghmc_loss.py"],
    "fastloss/linear.py": ["test_linear.py"],
    "fastloss/modules.py": ["test_modules.py"],
    "fastloss/reference.py": ["test_conformance.py", "test_cross_entropy.py", "test_ghmc_loss.py", *SIGMOID],
    "fastloss/torch_private.py": ["test_transforms.py", "test_autograd.py"],
}
QUICK = ["test_fuzz.py", "test_errors.py", "test_schedules.py"]
THOROUGH = [
    "test_ghmc_loss.py",
    "test_sigmoid_ghmc_loss.py",
    "test_sigmoid_focal_loss.py",
    "test_focal_loss.py",
    "test_cross_entropy.py",
    "test_gradient_norm_histogram.py",
    "test_half.py",
    "test_ops.py",
    "test_conformance.py",
    "test_determinism.py",
    "test_autograd.py",
    "test_equivalence.py",
]
# Of Python alone.
PYTHON_THOROUGH = ["test_docs.py", "test_modules.py", "test_transforms.py", "test_linear.py", "test_compile.py"]
# Of CPU, several times what a stage takes without a mutant. Then it hangs.
SECONDS = 200
MEMORY = 10 << 30  # bytes of address space; some ask for all that there is


@dataclass
class Mutant:
    number: int
    file: str
    line: int  # from 1
    before: str
    after: str

    def __str__(self):
        return f"{self.number}: {self.file}:{self.line}: {self.before.strip()}  ==>  {self.after.strip()}"

    def key(self):
        return f"{self.file} | {self.before.strip()} | {self.after.strip()}"


def possible_mutants(path):
    """(line number, line, mutated line) of every change that the rules make to a file."""
    from universalmutator import mutator

    lines = path.read_text().splitlines(keepends=True)
    with contextlib.redirect_stdout(io.StringIO()):
        found = mutator.mutants_regexp(lines, ruleFiles=[str(RULES)], ignorePatterns=[])
    cpp = path.suffix != ".py"
    text = set() if cpp else documentation(path)
    for number, after, *_ in found:
        before, after = lines[number - 1].rstrip("\n"), after.rstrip("\n")
        if cpp and (LEFT_OUT.search(before) or is_text(before[: first_difference(before, after)])):
            continue
        if not cpp and (number in text or not changes_code(path, number, after)):
            continue
        yield number, before, after


def is_text(start):
    """Whether a line of C++ that starts so goes on with a comment or in a string."""
    return "//" in start or start.count('"') % 2 == 1


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def documentation(path):
    """The lines of a module's docstrings."""
    lines = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


@functools.lru_cache(maxsize=4)
def meaning(source):
    """What Python runs of it: without annotations, and sentences, which are for people."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for annotation in {"annotation", "returns"} & set(node._fields):
            setattr(node, annotation, None)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = " "
    return ast.dump(tree)


def changes_code(path, number, after):
    """Whether a line of Python is still Python, and something else."""
    lines = path.read_text().splitlines()
    lines[number - 1] = after
    try:
        return meaning("\n".join(lines)) != meaning(path.read_text())
    except SyntaxError:
        return False


def choose(patterns, count, seed):
    """count mutants, at most two a line, every file in proportion to its lines."""
    chance = random.Random(seed)
    of_line = {}
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        file = str(path.relative_to(ROOT))
        if file in NOT:
            continue
        for number, before, after in possible_mutants(path):
            if path.suffix == ".py" or embed(before, [(0, after)]) is not None:
                of_line.setdefault((file, number), []).append((before, after))
    chosen = [
        (file, number, *pair)
        for (file, number), pairs in of_line.items()
        for pair in chance.sample(pairs, min(2, len(pairs)))
    ]
    return sorted(chance.sample(chosen, min(count, len(chosen))))


# ---- C++: all mutants of a line in one line


def balanced(text):
    return all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]"))


def several(text):
    """Whether commas separate it into declarations of more than one variable."""
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            return True
    return False


def chain(condition, mutated, original):
    """The expression that is one of the mutated ones, or the original."""
    for number, text in reversed(mutated):
        original = f"({condition}({number}) ? ({text}) : ({original}))"
    return original


def embed(line, mutated):
    """A line of C++ that does what one of mutated [(number, line)] says, or what it did; None where it cannot."""
    indent, code = line[: len(line) - len(line.lstrip())], line.split("//")[0].strip()
    texts = [(number, text.split("//")[0].strip()) for number, text in mutated]
    if header := re.fullmatch(r"((?:\} )?(?:else )?(?:if|while) )\((.*)\) \{", code):
        pattern = re.compile(re.escape(header[1]) + r"\((.*)\) \{")
        inner = [(number, pattern.fullmatch(text)) for number, text in texts]
        if not all(match for _, match in inner) or not balanced(header[2]):
            return None
        condition = chain("MUTANT", [(number, f"bool({match[1]})") for number, match in inner], f"bool({header[2]})")
        return f"{indent}{header[1]}({condition}) {{"
    if header := re.fullmatch(r"for \((.*);(.*);(.*)\) (.*)", code):
        parts = [(number, re.fullmatch(r"for \((.*);(.*);(.*)\) (.*)", text)) for number, text in texts]
        if not all(match and match[1] == header[1] and match[4] == header[4] for _, match in parts):
            return None
        condition = chain("MUTANT", [(n, m[2]) for n, m in parts if m[2] != header[2]], header[2])
        step = chain("MUTANT", [(n, f"void(({m[3]}))") for n, m in parts if m[3] != header[3]], f"void(({header[3]}))")
        return f"{indent}for ({header[1]}; {condition}; {step}) {header[4]}"
    if not code.endswith(";") or not balanced(code) or code.startswith(("else", "case", "}", "break", "continue")):
        return None
    declaration = re.compile(r"((?:const |static )*[\w:]+(?:<[\w<>:, ]+>)?[*&]? [*&]?\w+(?:\[\w*\])?) = (.*);")
    if found := declaration.fullmatch(code):
        matches = [(number, declaration.fullmatch(text)) for number, text in texts]
        if (
            found[1].startswith("return")
            or several(found[2])
            or not all(m and m[1] == found[1] for _, m in matches)
            or found[2][0] == "{"
        ):
            return None
        if re.match(r"auto|const auto", found[1]) and "[" in found[2]:
            return None
        return f"{indent}{found[1]} = {chain('MUTANT', [(number, m[2]) for number, m in matches], found[2])};"
    if re.match(r"return\b", code):
        matches = [(number, re.fullmatch(r"return (.*);", text)) for number, text in texts]
        value = re.fullmatch(r"return (.*);", code)
        if value is None or value[1].startswith("{") or not all(match for _, match in matches):
            statements = [f"if (MUTANT({number})) {{ {text} }}" for number, text in texts]
            return indent + " else ".join(statements) + f" else {{ {code} }}"
        return f"{indent}return {chain('MUTANT', [(number, m[1]) for number, m in matches], value[1])};"
    if re.fullmatch(r"[\w:<>, *&]+ \w+(?:\[\w*\])?;", code) or re.match(r"(const )?[\w:]+(<[^;=]*>)? \w+[\[({]", code):
        return None  # a declaration
    statements = [f"if (MUTANT({number})) {{ {text} }}" for number, text in texts]
    return indent + " else ".join(statements) + f" else {{ {code} }}"


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def compile_commands():
    """{source: command} of the last build."""
    folder = max((ROOT / "build").glob("*/build.ninja"), key=lambda path: path.stat().st_mtime).parent
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    output = subprocess.run(
        [ninja, "-f", folder / "build.ninja", "-t", "commands"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    commands = [shlex.split(line) for line in output.splitlines()]
    compiling = {command[command.index("-c") + 1]: command for command in commands if "-c" in command}
    linking = next(command for command in commands if command[-1] and any("libfastloss_ops.so" in w for w in command))
    return compiling, linking


def write_sources(mutants):
    """build/mutants/csrc: the sources with all of them."""
    target = BUILD / "csrc"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", target)
    by_line = {}
    for mutant in mutants:
        by_line.setdefault((mutant.file, mutant.line), []).append((mutant.number, mutant.after))
    for file in {file for file, _ in by_line}:
        lines = (ROOT / file).read_text().splitlines()
        for (of, number), mutated in by_line.items():
            if of == file:
                lines[number - 1] = embed(lines[number - 1], mutated)
        (BUILD / file).write_text("\n".join(lines) + "\n")
    (BUILD / "mutant.h").write_text(
        'extern "C" int fastloss_mutant;\n#define MUTANT(number) (fastloss_mutant == number)\n'
    )
    (BUILD / "mutant.cpp").write_text(
        '#include <cstdlib>\n#include "mutant.h"\nint fastloss_mutant = 0;\n'
        "// Before the ops are registered, which mutants change too.\n"
        "__attribute__((constructor(101))) static void choose() {\n"
        '  if (const char* number = std::getenv("FASTLOSS_MUTANT")) fastloss_mutant = std::atoi(number);\n}\n'
    )


def without_errors(mutants, checks):
    """The mutants that are C++: those on lines with an error are left out, and all is checked again. checks: commands
    of the compiler, with -fsyntax-only."""
    write_sources(mutants)
    waiting = list(checks)
    while waiting:
        result = subprocess.run(waiting[0], cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_memory)
        if result.returncode == 0:
            waiting.pop(0)
            continue
        path = rf"({re.escape(str(BUILD))}/[^:\s]*):(\d+):\d+:"
        for pattern in (path + " (?:fatal )?error", path):  # the error's own line, else any line that it mentions
            lines = {
                (os.path.relpath(os.path.normpath(file), BUILD), int(line))
                for file, line in re.findall(pattern, result.stderr)
            }
            left = [m for m in mutants if (m.file, m.line) not in lines]
            if len(left) < len(mutants):
                break
        else:  # a name that is missing, since its declaration has a mutant
            missing = re.search(r"‘(\w+)’ was not declared", result.stderr)
            left = [m for m in mutants if not (missing and re.search(rf"\b{missing[1]}\b", m.before))]
            if len(left) == len(mutants):
                raise RuntimeError(result.stderr[-3000:])
        print(f"{len(mutants) - len(left)} mutants are no C++", flush=True)
        mutants = left
        write_sources(mutants)
        waiting = list(checks)
    return mutants


def of_this_machine(mutants, builds):
    """Those that the preprocessor leaves: others are for other instruction sets."""
    text = ""
    for command in builds:
        to_terminal = ["-" if i and command[i - 1] == "-o" else word for i, word in enumerate(command)]
        result = subprocess.run([*to_terminal, "-E", "-P"], cwd=ROOT, check=True, capture_output=True, text=True)
        text += result.stdout
    left = {int(number) for number in re.findall(r"fastloss_mutant == (\d+)", text)}
    return [mutant for mutant in mutants if mutant.number in left]


def compile_all(mutants):
    """Compiles them together, and links them with the objects of the last build. Returns those that are C++."""
    compiling, linking = compile_commands()
    checks, builds, objects = [], [], {}
    for source in COMPILED:
        command = ["-O1" if word == "-O3" else word for word in compiling[source]]
        command = [word for i, word in enumerate(command) if word not in ("-MMD", "-MF") and command[i - 1] != "-MF"]
        objects[command[command.index("-o") + 1]] = target = str(BUILD / Path(source).with_suffix(".o").name)
        command[command.index("-o") + 1] = target
        command[command.index("-c") + 1] = str(BUILD / source)
        builds.append([*command, "-w", "-include", str(BUILD / "mutant.h")])
        checks.append([*builds[-1], "-fsyntax-only"])
    mutants = of_this_machine(without_errors(mutants, checks), builds)
    for command in builds:
        subprocess.run(command, cwd=ROOT, check=True, preexec_fn=limit_memory)
    subprocess.run(["c++", "-fPIC", "-c", BUILD / "mutant.cpp", "-o", BUILD / "mutant.o"], check=True)
    link = [str(BUILD / "libfastloss_ops.so") if linking[i - 1] == "-o" else word for i, word in enumerate(linking)]
    link = [objects.get(word, word) for word in link]
    subprocess.run([*link, BUILD / "mutant.o"], cwd=ROOT, check=True)
    return mutants


# ---- running the tests


def package(folder, ops_library, changed=None):
    """A copy of fastloss in folder with this library, and where changed = (file, line, text) with one line changed."""
    target = folder / "fastloss"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "fastloss", target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in (ROOT / "fastloss").glob("_C*.so"):
        shutil.copy(library, target)
    shutil.copy(ops_library, target / "libfastloss_ops.so")
    if changed:
        file, number, text = changed
        path = folder / file
        lines = path.read_text().splitlines()
        lines[number - 1] = text
        path.write_text("\n".join(lines) + "\n")
    return folder


def run_tests(folder, mutant, files, seconds):
    """Whether all tests pass, in a forked process; a crash, and more than so many seconds of CPU, are failures."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        limit_memory()
        os.environ |= {"FASTLOSS_MUTANT": str(mutant), "FASTLOSS_CPU_CAPABILITY": CAPABILITY}
        os.environ["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
        sys.path.insert(0, str(folder))
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import pytest
        from hypothesis import Phase, settings

        settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])  # one failure, of any size
        settings.load_profile("mutants")
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "--show-capture=no"]
        os._exit(int(pytest.main([*arguments, *(str(ROOT / "tests" / file) for file in files)])))
    _, status = os.waitpid(child, 0)
    return status == 0


def tests_of(mutant):
    """The files that are to notice it: quick ones, and the rest."""
    rest = THOROUGH if mutant.file.startswith("csrc") else PYTHON_THOROUGH + THOROUGH
    quick = list(dict.fromkeys(OWN.get(mutant.file, []) + QUICK))
    return quick, [name for name in rest if name not in quick]


def first_failure(folder):
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return next(
        (line for line in lines if line.startswith("FAILED") or "Error" in line), lines[-1] if lines else "crash"
    )


def known_equivalents():
    """Their keys: lines of "file | before | after | why"."""
    lines = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    return {line.rsplit(" | ", 1)[0] for line in lines if line and not line.startswith("#")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpp", type=int, default=122, help="how many mutants of csrc")
    parser.add_argument("--python", type=int, default=42, help="how many of fastloss/*.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="the mutants that were compiled the last time")
    parser.add_argument("--only", type=int, nargs="*", help="run these alone")
    args = parser.parse_args()

    import hypothesis  # noqa: F401  forked processes find these loaded
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401

    BUILD.mkdir(parents=True, exist_ok=True)
    kept = BUILD / "mutants.json"
    if args.again:
        mutants = [Mutant(**fields) for fields in json.loads(kept.read_text())]
    else:
        chosen = [*choose(CPP, args.cpp, args.seed), *choose(PYTHON, args.python, args.seed)]
        mutants = [Mutant(number, *which) for number, which in enumerate(chosen, 1)]
        start = time.monotonic()
        cpp = compile_all([m for m in mutants if m.file.startswith("csrc")])
        mutants = [*cpp, *(m for m in mutants if not m.file.startswith("csrc"))]
        kept.write_text(json.dumps([vars(m) for m in mutants]))
        print(f"{len(cpp)} mutants of csrc compiled in {time.monotonic() - start:.0f} s", flush=True)
    equivalent = known_equivalents()
    waiting = [m for m in mutants if m.key() not in equivalent]
    known = len(mutants) - len(waiting)
    waiting = [m for m in waiting if not args.only or m.number in args.only]
    total = len(waiting)

    compiled = package(BUILD / "compiled", BUILD / "libfastloss_ops.so")
    plain = ROOT / "fastloss/libfastloss_ops.so"
    results = (BUILD / "results.jsonl").open("w")
    for stage, files in enumerate((QUICK, THOROUGH)):
        start = time.monotonic()
        if not run_tests(compiled, 0, files, SECONDS):
            sys.exit(f"The tests fail without a mutant: {first_failure(compiled)}")
        print(f"without a mutant {files[0]} ... pass in {time.monotonic() - start:.0f} s", flush=True)
        alive = []
        for mutant in waiting:
            start = time.monotonic()
            if mutant.file.startswith("csrc"):
                folder, number = compiled, mutant.number
            else:
                folder, number = package(BUILD / "python", plain, (mutant.file, mutant.line, mutant.after)), 0
            if run_tests(folder, number, tests_of(mutant)[stage], SECONDS):
                alive.append(mutant)
                print(f"passes {files[0]} ... ({time.monotonic() - start:.0f} s): {mutant}", flush=True)
                continue
            seconds = round(time.monotonic() - start, 1)
            results.write(json.dumps({**vars(mutant), "by": first_failure(folder), "seconds": seconds}) + "\n")
            results.flush()
        waiting = alive
    killed = total - len(waiting)
    share = 100 * killed / max(total, 1)
    print(f"{killed} of {total} killed ({share:.1f}%), {known} known to be equivalent left out. Survivors:")
    print(*waiting, sep="\n")
    sys.exit(share < 95)


if __name__ == "__main__":
    main()
