"""Find the modules of ``common`` that a bundle uses: those of its configs' targets, and their imports."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from ..doctor import PACKAGE_FOLDER

__all__ = ["package_files", "target_problem"]

# Tables that go with the code. Encoders that come with the collection stay out: a pack has the weights that were named.
DATA_SUFFIXES = (".json",)

Parts = tuple[str, ...]
"""A dotted name without ``common``."""


def package_files(targets: Iterable[str], folder: Path = PACKAGE_FOLDER) -> dict[str, bytes]:
    """Contents, by path relative to ``folder``, of exactly those files of the package that the targets need.

    Imports are parsed, not run, so those inside functions also count. An ``__init__`` that only re-exports names is cut
    to the packed modules; otherwise one network would bring all of them. Tables are packed with the module beside them
    that names their file or folder.

    Args:
        targets: dotted names that begin with ``common.``.
        folder: folder of the package.

    Raises:
        ValueError: a target does not exist, or a module imports ``common`` by name.
    """
    used = _Used(folder)
    for target in sorted(set(targets)):
        used.add(_parts(target))
    return dict(sorted(used.files()))


def target_problem(target: str, folder: Path = PACKAGE_FOLDER) -> str | None:
    """Say that the package lacks a target, as the end of a sentence; ``None`` if it has it."""
    try:
        _Used(folder).find(_parts(target))
    except ValueError as error:
        return str(error)
    return None


class _Used:
    """The modules needed so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: dict[Parts, Path] = {}

    def add(self, parts: Parts) -> None:
        """Add the module that defines a name, the packages around it, and their imports."""
        found = self.find(parts)
        for module in (found[:length] for length in range(len(found) + 1)):
            if module in self.modules:
                continue
            path = self.modules[module] = self.path(module)
            if _only_hands_on(path):
                continue
            if (line := _import_by_name(path)) is not None:
                name = f"common/{path.relative_to(self.folder).as_posix()}"
                raise ValueError(f"{name}, line {line}: imports common by name; make the import relative.")
            for base, name, _ in _relative_imports(path, module):
                self.add((*base, name))

    def find(self, parts: Parts) -> Parts:
        """Find the module that defines a name, through packages that re-export it."""
        module: Parts = ()
        for number, name in enumerate(parts):
            path = self.path(module)
            if path.name != "__init__.py":
                break  # the rest are a module's own names
            if name in _members(path.parent):
                module = (*module, name)
                continue
            for base, original, known_as in _relative_imports(path, module):
                if known_as == name:
                    return self.find((*base, original, *parts[number + 1 :]))
            if name not in _defined(_parse(path)):
                raise ValueError(f"{'.'.join(('common', *module))} has no {name}")
            break
        return module

    def path(self, module: Parts) -> Path:
        package = self.folder.joinpath(*module) / "__init__.py"
        return package if package.is_file() else self.folder.joinpath(*module).with_suffix(".py")

    def files(self) -> Iterator[tuple[str, bytes]]:
        for module, path in self.modules.items():
            content = self.cut(module) if _only_hands_on(path) else path.read_bytes()
            yield path.relative_to(self.folder).as_posix(), content
            for table in _tables(path):
                yield table.relative_to(self.folder).as_posix(), table.read_bytes()

    def cut(self, package: Parts) -> bytes:
        """An ``__init__`` without its imports from modules that are not packed."""
        path = self.path(package)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        gone = set()
        for node in reversed(_parse(path).body):
            if isinstance(node, ast.ImportFrom):
                behind = [a for a in node.names if self.find((*package, a.asname or a.name)) not in self.modules]
                there = [alias for alias in node.names if alias not in behind]
                gone |= {alias.asname or alias.name for alias in behind}
                if behind:
                    kept = [ast.unparse(ast.ImportFrom(node.module, there, node.level)) + "\n"] if there else []
                    lines[node.lineno - 1 : node.end_lineno] = kept
        for node in ast.parse("".join(lines)).body:
            if gone and isinstance(node, ast.Assign) and _names_exports(node):
                names = [name for name in ast.literal_eval(node.value) if name not in gone]
                lines[node.lineno - 1 : node.end_lineno] = [f"__all__ = {_list(names)}\n"]
        return "".join(lines).lstrip("\n").encode()


@cache
def _members(package: Path) -> frozenset[str]:
    """Modules and packages in a package, in exact case: a file system may accept ``MAE.py`` for ``mae.py``."""
    found = (path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    return frozenset(path.stem for path in found)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _import_by_name(path: Path) -> int | None:
    """The first line that imports ``common`` by name, which is not its name in a packed bundle."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        else:
            continue
        if any(module.split(".")[0] == "common" for module in modules):
            return node.lineno
    return None


def _parts(target: str) -> Parts:
    return tuple(target.split(".")[1:])


def _list(names: list[str]) -> str:
    line = "[" + ", ".join(f'"{name}"' for name in names) + "]"
    return line if len(line) < 100 else "[\n" + "".join(f'    "{name}",\n' for name in names) + "]"


@cache
def _relative_imports(path: Path, module: Parts) -> list[tuple[Parts, str, str]]:
    """For each name that a module imports from the package: its module or package, its name there, and its name here.

    Imports for type checkers only are left out.
    """
    found = []
    for node in _run_nodes(_parse(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            up = node.level - (path.name == "__init__.py")
            base = module[: len(module) - up] + tuple((node.module or "").split(".") if node.module else ())
            found += [(base, alias.name, alias.asname or alias.name) for alias in node.names]
    return found


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _run_nodes(other)
        else:
            yield from _run_nodes(child)


@cache
def _only_hands_on(path: Path) -> bool:
    """Whether a package's file only holds a docstring, relative imports and constants, so it cannot use its imports."""
    return path.name == "__init__.py" and all(
        (isinstance(node, ast.ImportFrom) and node.level > 0)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and (_names_exports(node) or isinstance(node.value, ast.Constant)))
        for node in _parse(path).body
    )


def _names_exports(node: ast.Assign) -> bool:
    return [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module itself defines."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        else:
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return names


def _tables(path: Path) -> Iterator[Path]:
    """Data files beside a module, or in a folder there, that it names."""
    words = _words(path)
    for place in path.parent.iterdir():
        if place.name in words and place.suffix in DATA_SUFFIXES:
            yield place
        elif place.name in words and place.is_dir() and not (place / "__init__.py").is_file():
            yield from (table for table in place.rglob("*") if table.suffix in DATA_SUFFIXES)


@cache
def _words(path: Path) -> frozenset[str]:
    constants = (node.value for node in ast.walk(_parse(path)) if isinstance(node, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))
