# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: who may import whom, who may print, where the licence stands."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path.relative_to(ROOT) for package in ("datapath", "ctl") for path in (ROOT / package).rglob("*.py")
)
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("bpf", "ctl", "datapath", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".c", ".h")
    and "objects" not in path.parts
    and path.name != "_libbpf.c"
    and path.stat().st_size
)

# Only the kernel package speaks to the kernel, only the command line to the user.
KERNEL_ONLY = {"cffi", "_cffi_backend", "pyroute2", "bcc", "ctypes", "socket"}
CTL_ONLY = {"click", "tabulate"}

# What looks at the outside world, at a clock or at dice; `plan` may do none of it.
IMPURE = {
    *("os", "sys", "io", "pathlib", "shutil", "tempfile", "glob", "subprocess", "fcntl", "mmap"),
    *("select", "selectors", "threading", "multiprocessing", "asyncio", "sqlite3", "logging", "psutil"),
    *("time", "random", "secrets", "uuid"),
}

# What each part of the library may import of the project, the library's own leaf `errors` aside.
ALLOWED = {
    "datapath.errors": set(),
    "datapath.model": {"datapath.errors", "datapath.model"},
    "datapath.ipam": {"datapath.errors", "datapath.model"},
    "datapath.config": {"datapath.errors", "datapath.model", "datapath.ipam", "datapath.config"},
    "datapath.state": {"datapath.errors", "datapath.model"},
    "datapath.plan": {
        *("datapath.errors", "datapath.model", "datapath.ipam", "datapath.config", "datapath.state"),
        "datapath.plan",
    },
    "datapath.entries": {"datapath.errors", "datapath.model", "datapath.state", "datapath.plan"},
    "datapath.rules": {"datapath.errors", "datapath.model", "datapath.entries", "datapath.rules"},
    "datapath.forwarding": {"datapath.model", "datapath.store", "datapath.kernel"},
    "datapath.diagnose": {
        *("datapath.errors", "datapath.model", "datapath.state", "datapath.plan", "datapath.entries"),
        *("datapath.rules", "datapath.diagnose"),
    },
    "datapath.store": {"datapath.errors", "datapath.model", "datapath.state", "datapath.store"},
    "datapath.drivers": {
        *("datapath.errors", "datapath.model", "datapath.ipam", "datapath.config", "datapath.state"),
        *("datapath.plan", "datapath.entries", "datapath.rules", "datapath.kernel", "datapath.drivers"),
    },
    "datapath.kernel": {"datapath.errors", "datapath.model", "datapath.kernel"},
    "datapath.bench.model": {"datapath.errors"},
    "datapath.bench": {
        *("datapath.errors", "datapath.model", "datapath.config", "datapath.control"),
        *("datapath.kernel", "datapath.bench"),
    },
    "ctl": {
        *("ctl", "datapath.errors", "datapath.model", "datapath.config", "datapath.control"),
        "datapath.bench",
    },
}
PURE = (
    *("datapath.model", "datapath.ipam", "datapath.state", "datapath.plan", "datapath.entries"),
    "datapath.rules",
    "datapath.diagnose",
    *("datapath.bench.stats", "datapath.bench.compare", "datapath.bench.sweeps", "datapath.bench.tables"),
)


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imports(path: Path, body: Iterable[ast.AST] | None = None) -> Iterator[tuple[str, int]]:
    """Every module that is imported (in `body`, or anywhere) with its line; `from package import module`
    names the module."""
    known = {dotted(module) for module in MODULES}
    for node in ast.walk(tree(path)) if body is None else body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in known else node.module or ""), node.lineno


def within(module: str, package: str) -> bool:
    """The package itself, a module in it, or one of a family such as plan, plan_networks, plan_ports."""
    return module == package or module.startswith((package + ".", package + "_"))


def pure(name: str) -> bool:
    return any(within(name, package) for package in PURE)


def violations(path: Path) -> Iterator[str]:
    name = dotted(path)
    for module, line in imports(path):
        top = module.partition(".")[0]
        where = f"{path}:{line} imports {module}"
        if top in KERNEL_ONLY and not within(name, "datapath.kernel"):
            yield f"{where}: only datapath.kernel may"
        if top in CTL_ONLY and not within(name, "ctl"):
            yield f"{where}: only ctl may"
        if top == "ctl" and not within(name, "ctl"):
            yield f"{where}: the library does not know its callers"
        if top in IMPURE and pure(name):
            yield f"{where}: it does no I/O, looks at no clock, throws no dice"
        for package, allowed in ALLOWED.items():
            ours = within(name, package) and top in ("ctl", "datapath")
            if ours and not any(within(module, other) for other in allowed):
                yield f"{where}: {package} may import {sorted(allowed) or 'nothing'}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path: Path) -> None:
    assert list(violations(path)) == []


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Every call of a plain or dotted name, and every raised name, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield node.exc.id, node.lineno


LIBRARY = [path for path in MODULES if within(dotted(path), "datapath")]


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_the_library_prints_nothing_and_never_exits(path: Path) -> None:
    # os._exit is how a forked child ends; that is no exit of the caller's.
    forbidden = {"print", "exit", "quit", "sys.exit", "SystemExit", "sys.stdout.write", "sys.stderr.write"}
    assert [f"{path}:{line} {name}" for name, line in calls(path) if name in forbidden] == []


@pytest.mark.parametrize("path", [path for path in LIBRARY if pure(dotted(path))], ids=str)
def test_plan_and_model_open_nothing_and_ask_no_clock(path: Path) -> None:
    forbidden = {"open", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    assert [f"{path}:{line} {name}" for name, line in calls(path) if name in forbidden] == []


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """At the top of a module they would cost every start of the command line (pyroute2: 0.2 s)."""
    heavy = {"pyroute2", "psutil", "tabulate", "bcc", "matplotlib", "jinja2", "markupsafe"}
    found = [
        f"{path}:{line} {module}"
        for path in MODULES
        for module, line in imports(path, [n for n in tree(path).body if not is_type_checking(n)])
        if module.partition(".")[0] in heavy
    ]
    assert found == []


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_source_names_its_licence(path: Path) -> None:
    first = "\n".join((ROOT / path).read_text().splitlines()[:2])
    licence = "(GPL-2.0-only OR BSD-2-Clause)" if path.parts[0] == "bpf" else "Apache-2.0"
    assert f"SPDX-License-Identifier: {licence}" in first


def test_the_contract_is_plain() -> None:
    """abi.h is read by clang and by cffi: nothing for a preprocessor in it."""
    lines = (ROOT / "bpf/abi.h").read_text().splitlines()
    assert [line for line in lines if re.match(r"\s*#", line)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "bpf").glob("*.bpf.c")), ids=lambda path: str(path.name))
def test_a_hook_is_called_like_its_file(path: Path) -> None:
    """The file of a single hook, that is; host_socket has one program for each socket call."""
    name = path.name.removesuffix(".bpf.c")
    programs = re.findall(r"^SEC\(\"(?!license)[^\"]*\"\)\s*int\s+(\w+)\(", path.read_text(), re.MULTILINE)
    assert programs
    assert len(programs) > 1 or programs == [name]
