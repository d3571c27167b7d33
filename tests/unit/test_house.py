# SPDX-License-Identifier: Apache-2.0
"""The rules of the house: which rooms there are, who may import whom, who may print, where the licence stands.

A rule is one test, which names what breaks it: with one for each file as well, a quarter of all tests were these.
"""

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
    for folder in ("bpf", "ctl", "datapath", "packaging", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".c", ".h")
    and "objects" not in path.parts
    and path.name != "_libbpf.c"
    and path.stat().st_size
)

# The floors of the house, from the ground up: a room imports itself and rooms of lower floors, no other.
FLOORS = (
    ("datapath.errors",),
    ("datapath.model",),
    ("datapath.config", "datapath.store", "datapath.kernel"),
    ("datapath.plan",),
    ("datapath.cluster", "datapath.dataplane"),
    ("datapath.drivers",),
    ("datapath.engine",),
    ("datapath.runtime", "datapath.telemetry"),
    ("datapath",),  # the public API: datapath/__init__.py and FACES
    ("datapath.bench", "ctl.agent", "ctl.cni", "ctl.docker", "ctl.netavark", "ctl.units", "ctl.web"),
    ("ctl.cli",),
    ("ctl",),
)
# The public API: what `Host` has.
FACES = ("host", "services", "policies", "attachments")
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Only the kernel room speaks to the kernel, only tracing to bcc, only the command line to the user.
ONLY_IN = {
    **dict.fromkeys(("cffi", "_cffi_backend", "pyroute2", "ctypes", "socket"), "datapath.kernel"),
    "bcc": "datapath.telemetry",
    "yaml": "datapath.plan.policies",
    "click": "ctl.cli",
    "prometheus_client": "datapath.telemetry",
    "textual": "ctl.cli.top_screen",
    "rich": "ctl.cli.top_screen",
}

# What looks at the outside world, at a clock or at randomness: pure modules do none of it.
IMPURE = {
    *("os", "sys", "io", "pathlib", "shutil", "tempfile", "glob", "subprocess", "fcntl", "mmap"),
    *("select", "selectors", "threading", "multiprocessing", "asyncio", "sqlite3", "logging"),
    *("time", "random", "secrets", "uuid"),
}
PURE = (
    *("datapath.errors", "datapath.model", "datapath.plan", "datapath.dataplane.entries"),
    "datapath.dataplane.layout",
    "datapath.cluster",  # which asks the store that it is given, and no clock: hosts' clocks may be apart
    *("datapath.bench.stats", "datapath.bench.compare", "datapath.bench.sweeps", "datapath.bench.tables"),
)
EXEMPT = {"datapath.errors": {"os"}}  # which names errnos by it


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


KNOWN = {dotted(path) for path in MODULES}


def room(module: str) -> str:
    """The room that the module is in: the longest of the floors' names that it is in."""
    return max((name for name in FLOOR if within(module, name)), key=len)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imports(path: Path, body: Iterable[ast.AST] | None = None) -> Iterator[tuple[str, int]]:
    """Every module that is imported (in `body`, or anywhere, for types only included) with its line; `from
    package import module` names the module."""
    for node in ast.walk(tree(path)) if body is None else body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = named(path, node)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield (inner if inner in KNOWN else module), node.lineno


def named(path: Path, node: ast.ImportFrom) -> str:
    """The module that it imports from."""
    above = path.parts[: -node.level] if node.level else ()
    return ".".join((*above, *([node.module] if node.module else ())))


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def pure(name: str) -> bool:
    if within(name, "datapath.drivers") and name.rpartition(".")[2] in ("spec", "check"):
        return True
    return any(within(name, package) for package in PURE)


def violations(path: Path) -> Iterator[str]:
    name = dotted(path)
    for module, line in imports(path):
        top = module.partition(".")[0]
        where = f"{path}:{line} imports {module}"
        if top in ONLY_IN and not within(name, ONLY_IN[top]):
            yield f"{where}: only {ONLY_IN[top]} may"
        if top in IMPURE and pure(name) and top not in EXEMPT.get(name, ()):
            yield f"{where}: a pure module has no I/O, clock or randomness"
        if module == "datapath.kernel.log" and pure(name):
            yield f"{where}: it does nothing that takes time, so there is nothing to log"
        if top in ("ctl", "datapath"):
            mine, theirs = room(name), room(module)
            if mine != theirs and FLOOR[theirs] >= FLOOR[mine]:
                yield f"{where}: {theirs} is not below {mine}"


def test_imports_point_down() -> None:
    assert [broken for path in MODULES for broken in violations(path)] == []


def test_every_module_is_in_exactly_one_room() -> None:
    """Above all rooms are only the packages' own faces."""
    faces = {"ctl", "ctl.main", "datapath", *(f"datapath.{one}" for one in FACES)}
    assert {name for name in KNOWN if room(name) in ("ctl", "datapath")} <= faces


def test_only_the_command_line_names_its_own_modules_relatively() -> None:
    """ctl is installed as datapath.ctl: the name `ctl` on PyPI is somebody else's. The library has one name."""
    assert [broken for path in MODULES for broken in named_otherwise(path)] == []


def named_otherwise(path: Path) -> Iterator[str]:
    inside = path.parts[0] == "ctl"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            own = named(path, node).partition(".")[0] == path.parts[0]
            if bool(node.level) != (inside and own):
                yield f"{path}:{node.lineno}"
        elif isinstance(node, ast.Import) and any(within(alias.name, "ctl") for alias in node.names):
            yield f"{path}:{node.lineno}"


def test_no_circle_among_files() -> None:
    """Imports for types only included: what needs each other belongs into one file, or has a third below it."""
    graph = {dotted(p): {m for m, _ in imports(p) if m in KNOWN and m != dotted(p)} for p in MODULES}
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    # What only needs a circle is in none itself.
    while loose := [name for name in left if not any(name in needs for needs in left.values())]:
        for name in loose:
            del left[name]
    assert left == {}


def test_every_call_of_libbpf_goes_through_one_module() -> None:
    """Tests that inject faults stand in for its `lib`, so nobody else may have one of their own."""
    found = {path for path in MODULES if re.search(r"_libbpf import .*\blib\b", (ROOT / path).read_text())}
    assert found == {Path("datapath/kernel/bpf_calls.py")}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Every call of a plain or dotted name, and every raised name, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield node.exc.id, node.lineno


LIBRARY = [path for path in MODULES if within(dotted(path), "datapath")]


def test_the_library_prints_nothing_and_never_exits() -> None:
    # os._exit is how a forked child ends; that is no exit of the caller's.
    forbidden = {"print", "exit", "quit", "sys.exit", "SystemExit", "sys.stdout.write", "sys.stderr.write"}
    assert called(forbidden, LIBRARY) == []


def test_pure_modules_open_nothing_and_ask_no_clock() -> None:
    forbidden = {"open", "input", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    assert called(forbidden, [path for path in LIBRARY if pure(dotted(path))]) == []


def called(names: set[str], paths: Iterable[Path]) -> list[str]:
    """Where one of these is called or raised."""
    return [f"{path}:{line} {name}" for path in paths for name, line in calls(path) if name in names]


# What says when something was, to people; and `logs --until`, which is a time that they say.
DATED = {
    *(
        "datapath.bench.measure",
        "datapath.drivers.overlay.device",  # WireGuard dates handshakes so
        "datapath.engine.transaction",
        "datapath.runtime.logs",
        "datapath.runtime.logfile",
        "datapath.store.database",
    ),
    *("ctl.cli.bench", "ctl.cli.formatting", "ctl.cli.ps", "ctl.cli.stats"),
}


def test_s23_nothing_is_decided_by_the_wall_clock() -> None:
    """Which may differ between hosts, and be set at any moment."""
    clocks = re.compile(
        r"time\.(time|time_ns|strftime|localtime|gmtime)\(|\.(now|utcnow|today)\([A-Z)]|CLOCK_REALTIME"
    )
    asking = {dotted(path) for path in MODULES if clocks.search((ROOT / path).read_text())}
    assert asking == DATED


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """At the top of a module they would cost every start of the command line (pyroute2: 0.2 s)."""
    # These are imported as late as what they are about.
    late = {"ctl.web.app", "ctl.web.http", "ctl.cli.top_screen"}
    served = {"starlette", "uvicorn", "h11"}
    heavy = {"pyroute2", "bcc", "matplotlib", "jinja2", "markupsafe", "yaml", "prometheus_client", *served}
    found = [
        f"{path}:{line} {module}"
        for path in MODULES
        for module, line in imports(path, [n for n in tree(path).body if not is_type_checking(n)])
        if (module.partition(".")[0] in heavy or module in late) and dotted(path) not in late
    ]
    assert found == []


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_a_module_is_at_most_400_lines_long_and_a_class_has_at_most_20_methods() -> None:
    assert {path: number for path in MODULES if (number := len(lines(path))) > 400} == {}
    classes = [
        (path, node) for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)
    ]
    methods = {
        f"{path}: {node.name}": sum(isinstance(one, ast.FunctionDef) for one in node.body)
        for path, node in classes
    }
    assert {name: number for name, number in methods.items() if number > 20} == {}


def lines(path: Path) -> list[str]:
    return (ROOT / path).read_text().splitlines()


def test_only_drivers_ask_which_driver_a_network_has() -> None:
    """A driver answers for itself: by its spec's traits, checks and steps."""
    asked = re.compile(r"\.classic|network\.mode|driver (==|in)")
    others = [path for path in MODULES if not within(dotted(path), "datapath.drivers")]
    assert [f"{path}: {line}" for path in others for line in lines(path) if asked.search(line)] == []


def test_every_source_names_its_licence() -> None:
    licences = {path: "(GPL-2.0-only OR BSD-2-Clause)" for path in SOURCES if path.parts[0] == "bpf"}
    # REUSE-IgnoreStart
    for path in SOURCES:
        wanted = f"SPDX-License-Identifier: {licences.get(path, 'Apache-2.0')}"
        assert wanted in "\n".join(lines(path)[:2]), path
    # REUSE-IgnoreEnd


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


def test_files_that_are_tested_first_are_there() -> None:
    from tests.conftest import LONGEST

    assert len({*LONGEST}) == len(LONGEST) and all((ROOT / name).is_file() for name in LONGEST)
