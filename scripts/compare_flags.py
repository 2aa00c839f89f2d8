"""Compares the flags of vLLM or SGLang, as their sources declare them, with those that rerankd knows.

    python scripts/compare_flags.py vllm PATH...
    python scripts/compare_flags.py sglang PATH...

A path is a checkout, an unpacked wheel, or a source file. Sources are parsed and never imported. Exit code 1 where a
flag is not known here, or takes something else than `src/rerankd/compat/*.json` says.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rerankd.cli.main import own_flags
from rerankd.compat.flags import Peer, Takes
from rerankd.compat.peers import SGLANG, VLLM


@dataclass(frozen=True, slots=True)
class Program:
    """Where a program declares its flags.

    peer: the flags that rerankd knows beside its own
    command: ours that takes them
    files: of a checkout, as patterns
    classes: whose fields are flags without being registered by name
    """

    peer: Peer
    command: str
    files: tuple[str, ...]
    classes: tuple[str, ...] = ()


PROGRAMS = {
    "vllm": Program(
        VLLM,
        "serve",
        ("vllm/engine/arg_utils.py", "vllm/entrypoints/**/cli_args.py", "vllm/entrypoints/cli/serve.py"),
        ("BaseFrontendArgs", "FrontendArgs"),
    ),
    "sglang": Program(SGLANG, "launch_server", ("srt/server_args.py", "srt/arg_groups/fields/*.py")),
}
WORDS: Mapping[Takes, str] = {"nothing": "a switch", "value": "takes a value", "values": "takes several values"}


@dataclass(frozen=True, slots=True)
class Difference:
    """What a comparison finds; flags are without dashes.

    unknown: flags of the sources that are neither the peer's nor our own here, with what they take, where that shows
    gone: flags of the peer here that the sources have no more
    other: flags that take something else: what they take in the sources, and here
    """

    unknown: Mapping[str, Takes | None]
    gone: tuple[str, ...]
    other: Mapping[str, tuple[Takes, Takes]]


def compare(program: Program, sources: Iterable[str]) -> Difference:
    """Compare the flags that sources declare with those that are known here."""
    theirs: dict[str, Takes | None] = {}
    for source in sources:
        theirs.update(declared(source, program.classes))
    own = own_flags(program.command)
    known = {name: takes for name, (takes, _) in program.peer.flags.items()}
    return Difference(
        unknown={name: takes for name, takes in sorted(theirs.items()) if name not in known and name not in own},
        gone=tuple(sorted(known.keys() - theirs.keys())),
        other={
            name: (takes, known[name])
            for name, takes in sorted(theirs.items())
            if takes is not None and name in known and takes != known[name]
        },
    )


def declared(source: str, classes: Iterable[str]) -> dict[str, Takes | None]:
    """The flags that a source file declares, and what each takes; None where the file alone does not show that."""
    tree = ast.parse(source)
    fields = {
        field.target.id: field
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    found: dict[str, Takes | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found.update(_annotated(field.target.id, field.annotation))
                    if node.name in classes and "ClassVar" not in ast.unparse(field.annotation):
                        found[_kebab(field.target.id)] = _of_type(field.annotation)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            takes = _of_call(node, fields)
            found.update((_kebab(name), takes) for name in _strings(node.args) if name.startswith("-"))
    return found


def _annotated(name: str, annotation: ast.expr) -> Iterator[tuple[str, Takes | None]]:
    """The flags of a field such as `x: A[int, "help"]` or `x: A[int, Arg(help="...", aliases=["--y"])]`."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("A", "Annotated")):
        return
    kind, *told = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    calls = [one for one in told if isinstance(one, ast.Call) and ast.unparse(one.func) == "Arg"]
    if not calls and not any(isinstance(one, (ast.Constant, ast.JoinedStr, ast.BinOp)) for one in told):
        return
    about = {word.arg: word.value for call in calls for word in call.keywords}
    if "no_cli" in about:
        return
    names = [*_strings([about["cli_name"]] if "cli_name" in about else []), *_strings([about.get("aliases")])]
    if "cli_name" not in about:
        names.insert(0, name)
    takes = None if {"action", "nargs", "type_parser"} & about.keys() else _of_type(kind)
    if "type_parser" in about and "nargs" not in about:
        takes = "value"
    elif "nargs" in about:
        takes = _of_nargs(about["nargs"])
    for one in names:
        yield _kebab(one), takes


def _of_call(call: ast.Call, fields: Mapping[str, ast.AnnAssign]) -> Takes | None:
    about = {word.arg: word.value for word in call.keywords if word.arg}
    if "nargs" in about:
        return _of_nargs(about["nargs"])
    if "action" in about:
        action = ast.unparse(about["action"])
        return "nothing" if action in ("'store_true'", "'store_false'", "argparse.BooleanOptionalAction") else None
    if "type" in about or "choices" in about:
        return "value"
    # `**kwargs["x"]` is what a field x of the same file says.
    for word in call.keywords:
        if word.arg is None and isinstance(word.value, ast.Subscript):
            for name in _strings([word.value.slice]):
                return _of_type(fields[name].annotation) if name in fields else None
    return None


def _of_nargs(nargs: ast.expr) -> Takes | None:
    return {"'+'": "values", "'*'": "values", "'?'": None}.get(ast.unparse(nargs))  # type: ignore[return-value]


def _of_type(annotation: ast.expr) -> Takes | None:
    """What a flag of a type takes; None where unions and aliases leave that open."""
    text = ast.unparse(annotation).replace("typing.", "")
    text = text.removeprefix("Optional[").removesuffix("]") if text.startswith("Optional[") else text
    text = text.removesuffix(" | None")
    if text == "bool":
        return "nothing"
    if text.startswith(("list[", "List[", "Sequence[")) and "|" not in text:
        return "values"
    return "value" if text in ("int", "float", "str", "dict", "Path") else None


def _strings(nodes: Iterable[ast.expr | None]) -> list[str]:
    """The string constants among nodes, those in lists and tuples too."""
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, (ast.List, ast.Tuple)):
            found += _strings(node.elts)
    return found


def _kebab(name: str) -> str:
    return name.lstrip("-").replace("_", "-")


def files(program: Program, path: Path) -> list[Path]:
    """The files of a path that declare flags: the path itself, or files of a checkout that lie anywhere below it."""
    if path.is_file():
        return [path]
    return sorted({file for pattern in program.files for file in path.glob(f"**/{pattern}")})


def main(name: str, *paths: str) -> int:
    """Print what differs; 1 where a flag is unknown, or takes something else."""
    program = PROGRAMS[name]
    sources = [file for path in paths for file in files(program, Path(path))]
    if not sources:
        print(f"{', '.join(paths)}: none of {', '.join(program.files)} is there.", file=sys.stderr)
        return 2
    found = compare(program, (file.read_text(encoding="utf-8") for file in sources))
    print(f"{program.peer.name}, {len(sources)} files: {', '.join(map(str, sources))}")
    print(f"\nNot known here, to be added to src/rerankd/compat/{name}.json: {len(found.unknown)}")
    for flag, takes in found.unknown.items():
        print(f"  --{flag} ({WORDS[takes] if takes else 'look what it takes'})")
    print(f"\nTake something else than here: {len(found.other)}")
    for flag, (theirs, ours) in found.other.items():
        print(f"  --{flag}: {WORDS[theirs]} there, {WORDS[ours]} here")
    print(f"\nKnown here and gone from these sources; users of older versions still give them: {len(found.gone)}")
    for flag in found.gone:
        print(f"  --{flag}")
    return 1 if found.unknown or found.other else 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in PROGRAMS:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
