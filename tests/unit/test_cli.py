# SPDX-License-Identifier: Apache-2.0
"""The command line without the kernel: its words, its mistakes, what it prints."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import pytest

from ctl.cli import errors, main, reference
from ctl.cli.bench import Rounds
from ctl.cli.command import MAY_BE_EMPTY, Command
from ctl.cli.filters import Filters, has_label
from ctl.cli.formatting import created_at, duration, mapping_text, ports_text, status_text
from ctl.cli.golang.functions import FUNCTIONS
from ctl.cli.network import COLUMNS, network_row
from ctl.cli.output import documents, for_each, listing, table
from ctl.cli.pairs import environment
from ctl.cli.port import COLUMNS as PORT_COLUMNS
from ctl.cli.port import mapping_row
from ctl.cli.ps import COLUMNS as CONTAINER_COLUMNS
from ctl.cli.ps import container_row
from ctl.cli.run import endpoints, starting
from ctl.cli.template import Template, TemplateError
from ctl.cli.trace import difference, latency_text
from datapath.errors import (
    ConfigError,
    DatapathError,
    ExistsError,
    InUseError,
    KernelError,
    NotFoundError,
    PrivilegeError,
    StateError,
)
from datapath.model.containers import Container
from datapath.model.endpoints import EndpointRequest
from datapath.model.networks import Network
from datapath.model.ports import PortMapping
from datapath.model.rows import Status

BR1 = Network(
    id="ab" * 32, name="br1", number=2, created="2026-11-24T06:05:00.123456Z", labels={"b": "2", "a": "1"}
)
BRIDGE = Network(id="cd" * 32, name="bridge", number=1, created="2026-11-24T06:00:00Z", predefined=True)
NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
WEB = Container(
    id="12" * 32,
    name="web",
    created="2026-11-24T07:00:00Z",
    argv=("sh", "-c", "sleep 1000; echo done"),
    status=Status.RUNNING,
    started="2026-11-24T07:55:00Z",
    exposed=((80, "tcp"), (90, "tcp")),
    ports=(PortMapping("tcp", None, 8081, 80),),
)


# ---- mistakes: one line each, an exit code, no traceback ------------------------------

LONG = "x" * 300

MISTAKES: list[tuple[list[str], int, str]] = [
    (["frobnicate"], 2, "No such command 'frobnicate'."),
    (["netwrok"], 2, "No such command 'netwrok'."),
    ([LONG], 2, f"No such command '{LONG}'."),
    (["\x1b[31mred"], 2, "No such command '\\x1b[31mred'."),
    (["a\nb"], 2, "No such command 'a\\nb'."),
    (["--bogus"], 2, "No such option '--bogus'."),
    (["--state-dir"], 2, "Option '--state-dir' requires an argument."),
    (["--state-dir", "/tmp"], 2, "Missing command."),
    (["network", "frob"], 2, "No such command 'frob'."),
    (["network", "--bogus"], 2, "No such option '--bogus'."),
    (["network", "create"], 2, "Missing argument 'NETWORK'."),
    (["network", "create", "a", "b"], 2, "Got unexpected extra argument (b)."),
    (["network", "create", "--subnet"], 2, "Option '--subnet' requires an argument."),
    (["network", "create", "--ipv4=maybe", "a"], 2, "Invalid value for '--ipv4': 'maybe' is neither"),
    (["network", "create", "--internal=", "a"], 2, "'' is neither true nor false."),
    (["network", "create", "--ingress", "a"], 2, "--ingress: there is no swarm"),
    (["why", "web"], 2, "Missing argument 'TO'."),
    (["why", "web", "db", "tcp", "0"], 2, "Invalid value for '[PORT]': 0 is not in the range 1<=x<=65535."),
    (
        ["why", "web", "db", "icmp", "--expect", "maybe"],
        2,
        "Invalid value for '--expect': 'maybe' is not one of",
    ),
    (["network", "create", "-z", "a"], 2, "No such option '-z'."),
    (["network", "ls", "extra"], 2, "Got unexpected extra argument (extra)."),
    (["network", "ls", "--format"], 2, "Option '--format' requires an argument."),
    (["network", "ls", "--filter", "colour=red"], 2, 'invalid filter "colour"'),
    (["network", "ls", "--filter", "driver"], 2, 'invalid filter "driver": expected key=value'),
    (["network", "inspect"], 2, "Missing argument 'NETWORK...'."),
    (["network", "rm"], 2, "Missing argument 'NETWORK...'."),
    (["network", "connect"], 2, "Missing argument 'NETWORK'."),
    (["network", "connect", "a"], 2, "Missing argument 'CONTAINER'."),
    (["network", "connect", "--gw-priority", "high", "a", "b"], 2, "'high' is not a valid integer."),
    (["network", "disconnect", "a"], 2, "Missing argument 'CONTAINER'."),
    (["network", "disconnect", "a", "b", "c"], 2, "Got unexpected extra argument (c)."),
    (["run"], 125, "Missing argument 'PROGRAM [ARGUMENT...]'."),
    (["run", "-d"], 125, "Missing argument 'PROGRAM [ARGUMENT...]'."),
    (["run", "--"], 125, "Missing argument 'PROGRAM [ARGUMENT...]'."),
    (["run", "--frob", "true"], 125, "No such option '--frob'."),
    (["run", "--name"], 125, "Option '--name' requires an argument."),
    (["run", "--rm=perhaps", "true"], 125, "'perhaps' is neither true nor false."),
    (["run", "--network", "name=", "true"], 125, "network name is not specified"),
    (["run", "--network", "name=a,frob=1", "true"], 125, 'invalid field key "frob"'),
    (["run", "--network", "name=a,gw-priority=x", "true"], 125, 'invalid gw-priority "x"'),
    (
        ["run", "--network", "name=a,ip=10.0.0.2", "--ip", "10.0.0.3", "true"],
        125,
        "conflicting options: --ip",
    ),
    (["run", "-e", "=x", "true"], 125, 'invalid environment variable "=x": expected KEY=VALUE, or KEY'),
    (["run", "--network", "name=a,ip=", "true"], 125, 'the field "ip" of --network is empty'),
    (["run", "--network", "name=a,alias=", "true"], 125, 'the field "alias" of --network is empty'),
    (["ps", "--filter", "name="], 2, 'invalid filter "name=": its value is empty'),
    (["exec"], 125, "Missing argument 'CONTAINER'."),
    (["exec", "web"], 125, "Missing argument 'PROGRAM [ARGUMENT...]'."),
    (["exec", "--detach", "web", "true"], 125, "--detach: a command of `exec` is waited for"),
    (["ps", "web"], 2, "Got unexpected extra argument (web)."),
    (["ps", "--filter", "size=1"], 2, 'invalid filter "size"'),
    (["logs"], 2, "Missing argument 'CONTAINER'."),
    (["logs", "-n", "few", "web"], 2, 'invalid value "few" for --tail'),
    (["logs", "-n", "-1", "web"], 2, 'invalid value "-1" for --tail'),
    (["inspect"], 2, "Missing argument 'NAME...'."),
    (["inspect", "--type", "image", "web"], 2, "'image' is not one of 'container', 'network'."),
    (["stop"], 2, "Missing argument 'CONTAINER...'."),
    (["stop", "-t", "soon", "web"], 2, "'soon' is not a valid number."),
    (["stop", "-t", "-1", "web"], 2, "-1 is not in the range"),
    (["rm"], 2, "Missing argument 'CONTAINER...'."),
    (["port", "frob"], 2, "No such command or container 'frob'."),
    (["port", "add", "web"], 2, "Missing argument '[[IP:]PORT:]PORT[,ACL]...'."),
    (["port", "rm", "web"], 2, "Missing argument 'NUMBER|PORTS...'."),
    (["port", "set", "web"], 2, "Missing argument 'NUMBER|PORTS'."),
    (["ct", "frob"], 2, "No such command 'frob'."),
    (["ct", "ls", "web"], 2, "Got unexpected extra argument (web)."),
    (["ct", "ls", "--proto", "sctp"], 2, 'invalid protocol "sctp": expected tcp, udp, icmp, icmpv6'),
    (["ct", "ls", "--state", "open"], 2, 'invalid state "open": expected new, replied'),
    (["ct", "ls", "--src", "10.0.0.1/8"], 2, "invalid source 10.0.0.1/8: it should be 10.0.0.0/8"),
    (["ct", "flush", "--dst", "web"], 2, 'invalid destination "web": expected an address, or ADDRESS/LENGTH'),
    (["stats", "web"], 3, 'no counter is called "web": `stats --reasons` lists them'),
    (["down", "now"], 2, "Got unexpected extra argument (now)."),
    (["version", "--verbose"], 2, "No such option '--verbose'."),
    (["bench", "frob"], 2, "No such command 'frob'."),
    (["bench", "run", "--frob"], 2, "No such option '--frob'."),
    (["bench", "compare"], 2, "Missing argument 'A.json'."),
    (["completion"], 2, "Missing shell: bash, zsh or fish."),
    (["completion", "csh"], 2, "'csh' is not one of 'bash', 'zsh', 'fish'."),
    (["_exited", "id"], 2, "Missing argument 'EXIT_CODE'."),
    (["_exited", "id", "zero"], 2, "'zero' is not a valid integer."),
]


@pytest.mark.parametrize(("argv", "code", "says"), MISTAKES, ids=lambda value: repr(value)[:60])
def test_a_mistake_is_one_line(
    argv: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("STATE_DIR", "RUN_DIR", "BPFFS"):
        monkeypatch.setenv(f"DATAPATH_{name}", str(tmp_path / name))
    assert main.run(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("datapathctl: ") and says in err
    assert err.count("\n") == 1 and err.rstrip("\n").isprintable()
    assert list(tmp_path.iterdir()) == [], "nothing was touched"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None and command.name == name
        inner = commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
        found += inner
    return found


def parameters() -> list[tuple[tuple[str, ...], click.Parameter]]:
    """Every option and argument of every command, with the command's words."""
    found: list[tuple[tuple[str, ...], click.Parameter]] = []
    for path in [(), *commands(main.cli)]:
        command: click.Command = main.cli
        for word in path:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word) or command
        found += [(path, param) for param in command.params]
    return list({(path, param.human_readable_name): (path, param) for path, param in found}.values())


def called(path: tuple[str, ...], param: click.Parameter, value: str) -> list[str]:
    """A command with all the arguments that it needs, the parameter with this value, and the others with "1"."""
    command: click.Command = main.cli
    for word in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word) or command
    words = [
        value if other is param else "1" for other in command.params if isinstance(other, click.Argument)
    ]
    option = [param.opts[-1], value] if isinstance(param, click.Option) else []
    return [*path, *option, "--", *words] if path else [*option, "ps"]


def given_text() -> list[tuple[tuple[str, ...], click.Parameter]]:
    return [
        (path, param)
        for path, param in parameters()
        if not (isinstance(param, click.Option) and param.is_flag) and param.name not in MAY_BE_EMPTY
    ]


def refused_untouched(argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that is refused for its words says: one line, before it has touched anything."""
    code = main.run(argv)
    out, err = capsys.readouterr()
    assert code == (125 if argv[argv[0] == "container"] in ("run", "exec") else 2), err
    assert out == "" and err.startswith("datapathctl: ") and err.count("\n") == 1 and "internal" not in err
    assert list(folder.iterdir()) == []
    return err


@pytest.mark.parametrize(
    ("path", "param"), given_text(), ids=lambda value: getattr(value, "name", None) or " ".join(value)
)
def test_an_empty_value_is_refused_wherever_it_is_given(
    path: tuple[str, ...],
    param: click.Parameter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A variable that is not set must not mean what an option that is not given means."""
    for name in ("STATE_DIR", "RUN_DIR", "BPFFS"):
        monkeypatch.setenv(f"DATAPATH_{name}", str(tmp_path / name))
    err = refused_untouched(called(path, param, ""), tmp_path, capsys)
    assert any(name in err for name in (reference.value(param), *param.opts)), err


def test_what_may_be_empty_is_there_and_has_its_reason() -> None:
    names = {param.name for _, param in parameters()}
    assert set(MAY_BE_EMPTY) <= names and all(MAY_BE_EMPTY.values())
    assert len(given_text()) > 60


NO_NUMBERS = ("nan", "inf", "-inf", "NaN", "1e999", "-1e999", "0x10", "1_0e400", "9" * 5000, "\u0661e999")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: value[:8])
def test_what_is_no_number_is_refused_wherever_a_number_is_taken(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("STATE_DIR", "RUN_DIR", "BPFFS"):
        monkeypatch.setenv(f"DATAPATH_{name}", str(tmp_path / name))
    numbers = (click.types.IntParamType, click.types.FloatParamType, Rounds)
    found = [(path, param) for path, param in parameters() if isinstance(param.type, numbers)]
    assert {param.name for _, param in found} >= {"seconds", "timeout", "gw_priority", "tight", "rounds"}
    for path, param in found:
        refused_untouched(called(path, param, value), tmp_path, capsys)
    refused_untouched(["logs", "-n", value, "web"], tmp_path, capsys)
    refused_untouched(["run", "--network", f"name=a,gw-priority={value}", "true"], tmp_path, capsys)


def test_a_usage_error_points_to_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    main.run(["network", "create"])
    assert capsys.readouterr().err.endswith("See 'datapathctl network create --help'.\n")


# ---- errors and exit codes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DatapathError("no"), 1, "no"),
        (ConfigError("bad"), 2, "bad"),
        (NotFoundError("network x not found"), 3, "network x not found"),
        (ExistsError("taken"), 4, "taken"),
        (InUseError("busy"), 5, "busy"),
        (KernelError("create", "dp0", 1), 10, "create dp0: Operation not permitted (EPERM)"),
        (PrivilegeError("root is needed"), 13, "root is needed"),
        (StateError("damaged"), 14, "damaged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, "No such file or directory: /x"),
        (RuntimeError("a\nb"), 70, "internal error: RuntimeError: a b (--debug shows where)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exit_code_for_each_class(error: BaseException, code: int, line: str) -> None:
    assert (errors.exit_code(error), errors.message(error)) == (code, line)


def failing(error: BaseException) -> click.Command:
    @click.command("fail-for-the-test")
    def fail() -> None:
        raise error

    return fail


def test_a_group_prints_a_line_for_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = ExceptionGroup(
        "", [InUseError("one"), ExceptionGroup("", [NotFoundError("two"), NotFoundError("two")])]
    )
    monkeypatch.setitem(main.cli.commands, "fail", failing(group))
    assert main.run(["fail"]) == 5
    assert capsys.readouterr().err == "datapathctl: one\ndatapathctl: two\n"


FAILING = """
import logging, sys
import click
from ctl.cli import main
from datapath.errors import NotFoundError

@click.command("fail")
def fail():
    logging.getLogger("datapath.kernel").debug("add dp0")
    raise {error}("a\\nb")

main.cli.add_command(fail)
sys.exit(main.run(sys.argv[1:]))
"""
LOGGED = r"\d\d:\d\d:\d\d\.\d{3} datapath\.kernel: add dp0"


@pytest.mark.parametrize("error", ["NotFoundError", "RuntimeError"])
@pytest.mark.parametrize(("options", "environ"), [(["--debug"], {}), ([], {"DATAPATH_DEBUG": "1"})])
def test_debug_logs_and_shows_where_an_internal_error_is_from(
    error: str, options: list[str], environ: dict[str, str]
) -> None:
    code = FAILING.format(error=error)
    plain = python(code, "fail")
    assert plain.stderr.count("\n") == 1 and plain.stderr.startswith("datapathctl: ")
    found = python(code, *options, "fail", **environ)
    assert found.returncode == plain.returncode
    first, *where, last = found.stderr.splitlines(keepends=True)
    assert re.fullmatch(LOGGED, first.rstrip()) and last == plain.stderr
    if error == "RuntimeError":
        assert where[0].startswith("Traceback") and any(line.endswith("in fail\n") for line in where)
    else:
        assert where == []


def test_a_mistake_is_one_line_with_debug_too() -> None:
    found = python("from ctl.cli.main import main; main()", "--debug", "ps", "web")
    assert found.returncode == 2 and found.stderr.count("\n") == 1


def test_what_cannot_be_started_has_dockers_codes() -> None:
    not_found, not_executable = ConfigError("exec"), ConfigError("exec")
    not_found.exit_code, not_executable.exit_code = 127, 126
    for error, code in [
        (not_found, 127),
        (not_executable, 126),
        (NotFoundError("network"), 125),
        (ExceptionGroup("", [KernelError("undo"), not_found]), 127),
    ]:
        with pytest.raises(errors.StartError) as caught, starting():
            raise error
        assert caught.value.exit_code == code


def test_for_each_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def act(name: str) -> None:
        if name != "b":
            raise NotFoundError(f"no {name}")

    with pytest.raises(ExceptionGroup) as caught:
        for_each(["a", "b", "c"], act)
    assert [str(error) for error in caught.value.exceptions] == ["no a", "no c"]
    for_each(["a", "b"], act, missing_ok=True)
    with pytest.raises(NotFoundError):
        for_each(["a"], act)
    assert capsys.readouterr().out == "b\nb\n"


# ---- help, completion, start-up -------------------------------------------------------


@pytest.mark.parametrize("path", commands(main.cli), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*path, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {' '.join(('datapathctl', *path))} ") and err == ""
    assert "_exited" not in out or path == ("_exited",)


def test_a_group_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["network"], ["port"]):
        assert main.run(argv) == 0
        assert capsys.readouterr().out.startswith("Usage: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert "_DATAPATHCTL_COMPLETE" in capsys.readouterr().out


def python(code: str, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=os.environ | environ,
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_completion_of_words() -> None:
    words = {"COMP_WORDS": "datapathctl network cr", "COMP_CWORD": "2"}
    done = python("from ctl.cli.main import main; main()", _DATAPATHCTL_COMPLETE="bash_complete", **words)
    assert done.stdout == "plain,create\n"


def test_start_up_loads_nothing_heavy() -> None:
    heavy = "pyroute2 psutil sqlite3 asyncio logging matplotlib jinja2 yaml"
    heavy += " datapath.runtime datapath.engine datapath.plan datapath.kernel datapath.bench"
    done = python(
        f"import sys, ctl.cli.main; print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    assert done.stdout == "[]\n"


def test_dockers_driver_starts_with_nothing_that_it_does_not_need() -> None:
    """Docker waits for it."""
    unused = "click pyroute2 logging email ssl http.client concurrent.futures asyncio datapath.bench"
    script = f"""
import sys, ctl.main, ctl.docker.server as server
server.serve = lambda *_: print([name for name in '{unused}'.split() if name in sys.modules])
ctl.main.main()
"""
    done = subprocess.run([sys.executable, "-c", script, "docker", "serve"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_service_of_docker_says_what_is_wrong_as_every_command_does() -> None:
    for words in (["docker", "serve"], ["docker", "serve", "--idle", "30s"]):
        done = subprocess.run(
            [sys.executable, "-m", "ctl.main", *words],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        said = "datapathctl: no socket was passed: name one with --socket\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from ctl.cli.main import main; sys.argv[1:] = ['run', '--help']; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_one_line() -> None:
    code = "import sys; from ctl.cli.main import main; sys.argv[1:] = ['--help']; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"datapathctl: No space left on device\n")


# ---- switches as Docker takes them ----------------------------------------------------


def parse(argv: Sequence[str], *, interspersed: bool = True) -> dict[str, Any]:
    command = Command(
        "try",
        params=[
            click.Option(["-d", "--detach"], is_flag=True),
            click.Option(["--ipv4/--no-ipv4"], default=True),
            click.Option(["-e", "--env"], multiple=True),
            click.Argument(["argv"], nargs=-1),
        ],
    )
    command.allow_interspersed_args = interspersed
    return command.make_context("try", list(argv)).params


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--detach=true"], {"detach": True}),
        (["--detach=false"], {"detach": False}),
        (["-d=true"], {"detach": True}),
        (["--ipv4=false"], {"ipv4": False}),
        (["--ipv4=1"], {"ipv4": True}),
        (["-e", "--detach=true"], {"env": ("--detach=true",), "detach": False}),
        (["-de", "--detach=false", "x"], {"env": ("--detach=false",), "detach": True, "argv": ("x",)}),
        (["--env=a=b", "x"], {"env": ("a=b",), "argv": ("x",)}),
        (["--", "--detach=true"], {"detach": False, "argv": ("--detach=true",)}),
        (["x", "--detach=true"], {"detach": True, "argv": ("x",)}),
    ],
    ids=" ".join,
)
def test_switches_take_a_value(argv: list[str], wanted: dict[str, Any]) -> None:
    assert parse(argv).items() >= wanted.items()


def test_the_command_of_run_is_left_alone() -> None:
    argv = ["-d=false", "sh", "-c", "--detach=true", "--", "-e"]
    found = parse(argv, interspersed=False)
    assert (found["detach"], found["argv"]) == (False, tuple(argv[1:]))


# ---- what run asks for ----------------------------------------------------------------


def test_the_old_flags_belong_to_the_first_network() -> None:
    none = {"ip": "", "aliases": ()}
    assert endpoints((), none) == ()
    assert endpoints(("a", "b"), none) == (EndpointRequest("a"), EndpointRequest("b"))
    found = endpoints(("name=a,alias=x", "b"), {"ip": "10.0.0.9", "aliases": ()})
    assert found == (EndpointRequest("a", ip="10.0.0.9", aliases=("x",)), EndpointRequest("b"))
    assert endpoints((), {"ip": "10.0.0.9"}) == (EndpointRequest("bridge", ip="10.0.0.9"),)
    with pytest.raises(ConfigError, match="--network-alias"):
        endpoints(("name=a,alias=x",), {"aliases": ("y",)})


def test_environment_is_set_or_handed_on() -> None:
    here = {"HOME": "/root"}
    assert environment(("A=1", "HOME", "NOT_HERE", "B="), here) == ("A=1", "HOME=/root", "B=")


# ---- tables and JSON ------------------------------------------------------------------


def test_network_table_is_dockers() -> None:
    rows = [network_row(network, no_trunc=False) for network in (BR1, BRIDGE)]
    assert listing(rows, COLUMNS, "").splitlines() == [
        "NETWORK ID     NAME      DRIVER    SCOPE",
        "abababababab   br1       bridge    local",
        "cdcdcdcdcdcd   bridge    bridge    local",
    ]
    assert listing([], COLUMNS, "") == "NETWORK ID   NAME      DRIVER    SCOPE"
    assert listing(rows, COLUMNS, "table ") == listing(rows, COLUMNS, "table") == listing(rows, COLUMNS, "")


def test_listing_in_every_format() -> None:
    rows = [network_row(network, no_trunc=False) for network in (BR1, BRIDGE)]
    assert listing(rows, COLUMNS, "", quiet=True) == "abababababab\ncdcdcdcdcdcd"
    assert listing([network_row(BR1, no_trunc=True)], COLUMNS, "", quiet=True) == BR1.id
    assert listing(rows, COLUMNS, "{{.Name}}: {{.ID | upper}}") == "br1: ABABABABABAB\nbridge: CDCDCDCDCDCD"
    assert listing(rows, COLUMNS, r"{{.Name}}\t{{.Driver}}") == "br1\tbridge\nbridge\tbridge"
    assert listing(rows, COLUMNS, r"table {{.Name}}\t{{.CreatedAt}}").splitlines() == [
        "NAME      CREATED AT",
        "br1       2026-11-24 06:05:00 +0000 UTC",
        "bridge    2026-11-24 06:00:00 +0000 UTC",
    ]
    first, second = (json.loads(line) for line in listing(rows, COLUMNS, "json").splitlines())
    assert second["Name"] == "bridge"
    assert first == {
        "CreatedAt": "2026-11-24 06:05:00 +0000 UTC",
        "Driver": "bridge",
        "ID": "abababababab",
        "IPv4": "true",
        "IPv6": "false",
        "Internal": "false",
        "Labels": "a=1,b=2",
        "Name": "br1",
        "Owner": "datapath",
        "Scope": "local",
    }


def test_a_cell_cannot_break_its_table() -> None:
    assert table(["A", "B"], [["x\ny", "\x1b[2J"]]).splitlines() == ["A         B", "x\\ny      \\x1b[2J"]
    assert table(["A"], [["12.50"], [" 1e3"], ["0x10"]]).splitlines() == ["A", "12.50", " 1e3", "0x10"]


@pytest.mark.parametrize(
    ("headings", "rows", "drawn"),
    [
        ((), [], ""),
        (("A", "B"), [], "A         B"),
        ((), [("Version:", "1"), ("Kernel:", "6.18")], "Version:   1\nKernel:    6.18"),
        (("A", "B"), [("1234567", "x"), ("12345678", "y")], "A          B\n1234567    x\n12345678   y"),
        (("A", "B", "C"), [("", "", ""), ("x", "", "z")], "A         B         C\n\nx                   z"),
        (("A", "B"), [("日本語", "x"), ("é", "y  ")], "A         B\n日本語       x\né         y"),
        (("A", "B"), [("x", "y", "more"), ("z",)], "A         B\nx         y         more\nz"),
        (("A", "B"), [("{}", "{0}")], "A         B\n{}        {0}"),
    ],
    ids=repr,
)
def test_a_table_is_drawn_as_dockers(headings: Sequence[str], rows: list[Sequence[str]], drawn: str) -> None:
    """Three spaces between columns, none narrower than ten; a character that is two wide counts as one."""
    assert table(headings, rows) == drawn


def test_container_row() -> None:
    row = container_row(WEB, ["bridge"], NOW, no_trunc=False)
    assert row == {
        "Command": '"sh -c sleep 1000; e…"',
        "CreatedAt": "2026-11-24 07:00:00 +0000 UTC",
        "ID": "121212121212",
        "Labels": "",
        "Names": "web",
        "Networks": "bridge",
        "Owner": "datapath",
        "Ports": "0.0.0.0:8081->80/tcp, 90/tcp",
        "RunningFor": "About an hour ago",
        "State": "running",
        "Status": "Up 5 minutes",
    }
    assert container_row(WEB, [], NOW, no_trunc=True)["Command"] == '"sh -c sleep 1000; echo done"'


def test_states_and_ports_in_dockers_words() -> None:
    gone = replace(WEB, status=Status.EXITED, exit_code=137, finished="2026-11-24T07:59:57Z")
    assert status_text(gone, NOW) == "Exited (137) 3 seconds ago"
    assert status_text(replace(gone, exit_code=None), NOW) == "Exited (?) 3 seconds ago"
    assert status_text(replace(WEB, status=Status.CREATED), NOW) == "Created"
    assert ports_text(gone) == ""
    assert mapping_text(PortMapping("udp", ip_address("127.0.0.1"), 8000, 9000, 100)) == (
        "127.0.0.1:8000-8099->9000-9099/udp"
    )
    assert mapping_text(PortMapping("tcp", ip_address("::1"), 8081, 80)) == "[::1]:8081->80/tcp"
    assert mapping_row("web", 2, PortMapping("tcp", None, 8000, 80, 3)) == {
        "Number": 2,
        "Container": "web",
        "HostIp": "0.0.0.0",
        "HostPort": 8000,
        "ContainerPort": 80,
        "Count": 3,
        "Protocol": "tcp",
        "ACL": "all",
        "State": "active",
    }


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(milliseconds=300), "Less than a second"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=59), "59 seconds"),
        (timedelta(seconds=61), "About a minute"),
        (timedelta(minutes=45), "45 minutes"),
        (timedelta(minutes=61), "About an hour"),
        (timedelta(hours=47), "47 hours"),
        (timedelta(days=13), "13 days"),
        (timedelta(days=20), "2 weeks"),
        (timedelta(days=90), "3 months"),
        (timedelta(days=800), "2 years"),
    ],
    ids=str,
)
def test_durations_in_dockers_words(span: timedelta, words: str) -> None:
    assert duration(span.total_seconds()) == words


def test_no_time_stamp_is_no_time() -> None:
    assert created_at("") == ""


def test_inspect_prints_an_array_or_lines() -> None:
    found = [{"Name": "a", "Labels": {}}, {"Name": "ü\x1b", "Labels": {}}]
    assert json.loads(documents(found, "")) == found and documents(found, "").startswith(
        '[\n    {\n        "Name"'
    )
    assert json.loads(documents(found, "json")) == found and "\n" not in documents(found, "json")
    assert "\x1b" not in documents(found, "")
    assert documents(found[:1] * 2, "{{.Name}}") == "a\na"
    with pytest.raises(ConfigError, match=r"there is no field \.Nmae"):
        documents(found, "{{.Nmae}}")
    with pytest.raises(ConfigError, match="template parsing error"):
        documents(found, "{{.Name")


# ---- filters --------------------------------------------------------------------------


def test_filters() -> None:
    filters = Filters(
        ["name=r1", "name=xx", "label=a", "label=b=2", "type=custom"],
        {"name", "label", "type", "id"},
        patterns={"name", "id"},
    )
    assert filters.matching("name", "br1") and not filters.matching("name", "bridge")
    assert filters.matching("id", "anything")
    assert filters.equal("type", "custom", {"builtin", "custom"}) and not filters.equal("type", "builtin")
    assert filters.every("label", lambda label: has_label(BR1.labels, label))
    assert not filters.every("label", lambda label: has_label({"a": "1", "b": "3"}, label))
    with pytest.raises(ConfigError, match="invalid filter type=custom: expected a or b"):
        filters.equal("type", "a", {"a", "b"})


def test_a_truth_is_only_looked_up_when_asked_for() -> None:
    def explode() -> bool:
        raise AssertionError

    assert Filters([], {"dangling"}).truth("dangling", explode)
    assert Filters(["dangling=true"], {"dangling"}).truth("dangling", lambda: True)
    assert not Filters(["dangling=0"], {"dangling"}).truth("dangling", lambda: True)
    with pytest.raises(ConfigError):
        Filters(["dangling=x"], {"dangling"}).truth("dangling", lambda: True)


# ---- templates ------------------------------------------------------------------------

DATA = {
    "Name": "br1",
    "Internal": False,
    "IPAM": {"Config": [{"Subnet": "10.0.0.0/16", "Gateway": "10.0.0.1"}]},
    "Containers": {"ab1": {"Name": "web"}, "cd2": {"Name": "db"}},
    "Ports": {"80/tcp": [{"HostPort": "8081"}], "90/tcp": None},
    "Options": {"com.docker.network.bridge.name": "docker1"},
    "Cmd": ["sh", "-c"],
    "Nothing": [],
    "None": {},
    "Nope": None,
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("{{.Name}}", "br1"),
        ("{{ .Name }}/{{.Internal}}", "br1/false"),
        ("{{.IPAM.Config}}", "[map[Gateway:10.0.0.1 Subnet:10.0.0.0/16]]"),
        ("{{json .Containers}}", '{"ab1":{"Name":"web"},"cd2":{"Name":"db"}}'),
        ("{{json .}}", json.dumps(DATA, separators=(",", ":"))),
        ("{{index .IPAM.Config 0}}", "map[Gateway:10.0.0.1 Subnet:10.0.0.0/16]"),
        ('{{index .Options "com.docker.network.bridge.name"}}', "docker1"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8081"),
        ("{{(index .IPAM.Config 0).Subnet}}", "10.0.0.0/16"),
        ("{{range .Containers}}{{.Name}} {{end}}", "web db "),
        ("{{range $id, $c := .Containers}}{{$id}}={{$c.Name}};{{end}}", "ab1=web;cd2=db;"),
        ("{{range $c := .Containers}}{{$.Name}}/{{$c.Name}} {{end}}", "br1/web br1/db "),
        ("{{range $p, $conf := .Ports}}{{$p}}:{{if $conf}}{{(index $conf 0).HostPort}}{{end}} {{end}}",
         "80/tcp:8081 90/tcp: "),
        ("{{range .Nothing}}x{{else}}empty{{end}}", "empty"),
        ("{{if .Internal}}yes{{else}}no{{end}}", "no"),
        ('{{if eq .Name "br1"}}yes{{end}}', "yes"),
        ('{{if .Internal}}a{{else if eq .Name "br1"}}b{{else}}c{{end}}d', "bd"),
        ("{{if .Internal}}a{{else if .Nothing}}b{{else}}c{{end}}d", "cd"),
        ("{{with .IPAM}}{{len .Config}}{{end}}", "1"),
        ("{{$x := .Name}}{{$x}}", "br1"),
        ('{{join .Cmd " "}}', "sh -c"),
        ("{{.Cmd}}", "[sh -c]"),
        ("{{.Name | upper | json}}", '"BR1"'),
        ('{{println "a" .Name}}', "a br1\n"),
        ('{{"a\\tb"}}', "a\tb"),
        ("a {{- .Name -}} b", "abr1b"),
        ("{{/* nothing */}}", ""),
        ("{{.Options.missing}}", "<no value>"),
        ('{{index .Ports "1/udp"}}', "[]"),
        ('{{index .Options "nope"}}', ""),
        ('{{index .None "nope"}}', ""),
        ('{{index .Containers "nope"}}', "<no value>"),
        ("{{.Ports}}", "map[80/tcp:[map[HostPort:8081]] 90/tcp:<nil>]"),
        # Docker's functions
        ('{{split .Name ""}}', "[b r 1]"),
        ('{{split .Name "r"}}', "[b 1]"),
        ('{{split "" ","}}|{{split "" ""}}', "[]|[]"),
        ('{{join (split "a,b,c" ",") "/"}}', "a/b/c"),
        ('{{range split "a,b" ","}}<{{.}}>{{end}}', "<a><b>"),
        ('{{upper "é"}}{{lower "ÀB"}}{{title "bR1 web_x it\'s-a"}}', "ÉàbBR1 Web_x It'S-A"),
        ("{{pad .Name 2 3}}|{{pad \"\" 1 1}}", "  br1   |"),
        ("{{truncate .Name 2}}{{truncate .Name 9}}{{truncate .Name 0}}", "brbr1"),
        ('{{json "<a>&"}}{{json 1.5}}{{json nil}}', '"<a>&"1.5null'),
        # Go's
        ('{{printf "%s has %d, %5.1f%% %v %q %t %x %T" .Name 3 2.5 .Cmd "a" .Internal 255 .Name}}',
         'br1 has 3,   2.5% [sh -c] "a" false ff string'),
        ('{{printf "%-6s|%6s|%06d|%+d|%x|%X|%c|%U|%o|%b" .Name .Name 42 7 "hi" "hi" 65 65 8 5}}',
         "br1   |   br1|000042|+7|6869|6869|A|U+0041|10|101"),
        ('{{printf "%*d|%.2s|%-*s|" 4 7 "abc" 3 "x"}}', "   7|ab|x  |"),
        ('{{printf "%d %s" "x" 5}} {{printf "%d"}} {{printf "x" 1}} {{printf "%"}} {{printf "%z" 1}}',
         "%!d(string=x) %!s(int=5) %!d(MISSING) x%!(EXTRA int=1) %!(NOVERB) %!z(int=1)"),
        ('{{printf "%9999999999d" 1}}', "%!(BADWIDTH)1"),
        ('{{printf "%v %s %d %v" nil .Cmd nil 1e21}}', "<nil> [sh -c] %!d(<nil>) 1e+21"),
        (r'{{printf "%q" "a\nb\"\u00e9\x07\\"}}', r'"a\nb\"é\a\\"'),
        ('{{print "a" "b"}}{{print 1 2 "c" 3}}', "ab1 2c3"),
        ('{{slice .Name 1 2}}{{slice .Cmd 1}}{{index "abc" 1}}{{len "é"}}', "r[-c]982"),
        ("{{if lt 1 2}}a{{end}}{{if ge 2 2}}b{{end}}{{if gt \"a\" \"b\"}}c{{end}}{{le 1 1}}", "abtrue"),
        ('{{eq .Name "x" "br1"}}{{ne 1 2}}{{eq nil .Nope}}', "truetruetrue"),
        ('{{or .Nothing "x"}}{{and .Internal (index .Cmd 9)}}', "xfalse"),
        ('{{html "<a>"}}{{urlquery "a b&c"}}', "&lt;a&gt;a+b%26c"),
        ("{{0x10}} {{1_000}} {{'a'}} {{1.50}} {{-3}} {{017}}", "16 1000 97 1.5 -3 15"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{$y := 3}}{{$y}}{{end}}{{$x}}", "32"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("{{with .Nothing}}a{{else with .Name}}{{.}}{{end}}", "br1"),
        ('{{"}}"}}{{`}}`}}{{/* }" it\'s */}}', "}}}}"),
        ("{{if(eq 1 1)}}x{{end}}", "x"),
    ],
)  # fmt: skip
def test_template(source: str, text: str) -> None:
    assert Template(source).render(DATA) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{", "{{.Name", "{{}}", "{{%}}", "{{frob .Name}}", "{{.Missing}}", "{{.Name.First}}", "{{$x}}",
        "{{range .Name}}{{end}}", "{{range .Containers}}", "{{if}}{{end}}", "{{end}}", "{{else}}",
        "{{if .Name}}{{else frob}}{{end}}",
        "{{index .IPAM.Config 7}}", '{{index .IPAM.Config "x"}}', "{{index .Name 0 0 0}}", "{{json}}",
        "{{json .Name .Name}}", "{{.Name .Name}}", "{{(.Name}}", "{{.Name)}}", "{{.Name | .Name}}",
        "{{.Name |}}", "{{len .Internal}}", "{{join .Name}}", '{{truncate .Name "x"}}',
        "{{$a, $b, $c := .Name}}", '{{"open}}', "{{$x = 1}}", "{{$a, $b := .Name}}", "{{end}}{{end}}",
        '{{.Label "x"}}', '{{.Name "x"}}', '{{"x" | .Name}}', "{{truncate .Name -1}}", "{{pad .Name 9999999999 0}}",
        "{{upper .Cmd}}", "{{split .Cmd .Name}}", "{{lt .Cmd 1}}", '{{eq 1 "a"}}', "{{eq 1}}", "{{and}}", "{{printf}}",
        "{{slice .Name 2 1}}", "{{slice .Name 9}}", "{{09}}", "{{1e999999}}{{index .Cmd 1e9}}", "{{'ab'}}",
        "{{if 1}}{{else}}{{else}}{{end}}", "{{if 1}}{{end x}}", '{{(index (index .Ports "1/udp") 0).HostPort}}',
        '{{"\\UFFFFFFFF"}}', "{{range 3}}{{end}}",
    ],
)  # fmt: skip
def test_a_wrong_template_is_one_line(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source).render(DATA)
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 100_000 + "}}",
        "{{if true}}" * 1_500 + "x" + "{{end}}" * 1_500,
        "{{range .Cmd}}" * 1_500 + "x" + "{{end}}" * 1_500,
        "{{with .Name}}" * 1_500 + "x" + "{{end}}" * 1_500,
        "{{if false}}a" + "{{else if false}}b" * 1_500 + "{{end}}",
        "{{.Name" + " | upper" * 1_500 + "}}",
        "{{" + "(upper " * 1_500 + ".Name" + ")" * 1_500 + "}}",
    ],
    ids=lambda source: source[:12],
)
def test_a_deep_template_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(ConfigError, match="template parsing error") as caught:
        documents([DATA], source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_what_is_as_deep_as_it_may_be_is_filled() -> None:
    for open_, inner, close in (
        ("{{if true}}", "x", "{{end}}"),
        ("{{range $.Nothing}}{{else}}{{with $.Name}}", "x", "{{end}}{{end}}"),
        ("{{if false}}{{else}}", "x", "{{end}}"),
    ):
        times = 100 // open_.count("{{") or 1
        assert Template(open_ * times + inner + close * times).render(DATA) == "x"
    assert (
        Template("{{" + "(" * 100 + "upper .Name" + ")" * 100 + " | lower" * 99 + "}}").render(DATA) == "br1"
    )


def test_no_template_is_an_internal_error() -> None:
    """Pieces of templates in any order: text, or a TemplateError."""
    pieces = (
        *(
            "{{",
            "}}",
            "{{-",
            "-}}",
            "(",
            ")",
            "|",
            ".",
            "$",
            "$x",
            ":=",
            "=",
            ",",
            '"',
            "`",
            "'",
            "\\",
            " ",
            "x",
        ),
        *(
            ".Name",
            ".Cmd",
            ".Ports",
            ".Nope",
            ".None",
            "1",
            "-1",
            "99999999999",
            "1.5",
            "nil",
            "true",
            "'a'",
            '"s"',
        ),
        *("{{if .Name}}", "{{range .Cmd}}", "{{with .IPAM}}", "{{else}}", "{{end}}", "else if", "/*", "*/"),
        *(f" {name} " for name in FUNCTIONS),
        *('{{printf "%*d %v %q %x %c" ', "{{index .Cmd ", "{{slice .Name ", "{{split .Name ", "{{pad .Name "),
    )
    chance = random.Random(21)
    filled = 0
    for _ in range(30_000):
        source = "".join(chance.choices(pieces, k=chance.randint(1, 9)))
        if chance.random() < 0.7:
            source = "{{" + source + "}}"
        try:
            Template(source).render(DATA)
            filled += 1
        except TemplateError as error:
            assert "\n" not in str(error), source
    assert filled > 1000


def test_a_label_is_a_method_of_a_row() -> None:
    rows = [network_row(network, no_trunc=False) for network in (BR1, BRIDGE)]
    assert listing(rows, COLUMNS, '{{.Name}} {{.Label "b"}}') == "br1 2\nbridge "
    assert listing(rows, COLUMNS, '{{"a" | .Label | printf "%s!"}}') == "1!\n!"
    drawn = listing(
        rows, COLUMNS, r'table {{truncate .Name 2}}\t{{.Label "com.example.my-team"}}\t{{upper .Driver}}'
    )
    assert drawn.splitlines()[0].split("  ") == ["NAME", "", "", "my team", " DRIVER"]
    labelled = container_row(replace(WEB, labels={"tier": "front"}), [], NOW, no_trunc=False)
    assert listing([labelled], CONTAINER_COLUMNS, '{{.Label "tier"}}{{.Label "nope"}}') == "front"
    assert "Label" not in json.loads(listing([labelled], CONTAINER_COLUMNS, "{{json .}}"))
    for wrong in ("{{.Label}}", '{{.Label "a" "b"}}', "{{.Label 1}}"):
        with pytest.raises(ConfigError, match="wrong arguments for Label"):
            listing(rows, COLUMNS, wrong)


# ---- readers, on a state of their own -------------------------------------------------


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE_DIR", "RUN_DIR", "BPFFS"):
        monkeypatch.setenv(f"DATAPATH_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("DATAPATH_CONFIG", raising=False)
    return tmp_path


def test_three_networks_are_there_from_the_start(
    installation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["network", "ls", "--format", "{{.Name}}/{{.Driver}}/{{.Scope}}"]) == 0
    assert capsys.readouterr().out == "bridge/bridge/local\nhost/host/local\nnone/null/local\n"
    assert main.run(["network", "ls", "-q", "--filter", "type=builtin", "--filter", "name=host"]) == 0
    assert re.fullmatch(r"[0-9a-f]{12}\n", capsys.readouterr().out)
    assert main.run(["network", "ls", "--filter", "dangling=true", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert main.run(["network", "inspect", "-f", "{{.Name}} {{.Driver}}", "none", "bridge"]) == 0
    assert capsys.readouterr().out == "none null\nbridge bridge\n"


@pytest.mark.parametrize(
    ("argv", "out", "err"),
    [
        (["network", "inspect", "nope"], "[]\n", "network nope not found"),
        (["network", "inspect", "-f", "{{.Name}}", "nope", "host"], "host\n", "network nope not found"),
        (["inspect", "nope"], "[]\n", 'no such container or network: "nope"'),
        (["inspect", "--type", "container", "host"], "[]\n", "No such container: host"),
        (
            ["inspect", "--type", "network", "-f", "{{.Name}}", "host", "\x1b"],
            "host\n",
            'network "\\x1b" not found',
        ),
        (["logs", "../../etc"], "", "No such container: ../../etc"),
        (["port", "ls", "nope"], "", "No such container: nope"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not_there(
    argv: list[str], out: str, err: str, installation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(argv) == NotFoundError.exit_code
    assert capsys.readouterr() == (out, f"datapathctl: {err}\n")


def test_an_empty_host_has_headings_only(installation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, columns in [(["ps", "-a"], CONTAINER_COLUMNS), (["port", "ls"], PORT_COLUMNS)]:
        assert main.run(argv) == 0
        assert re.split(r"\s{3,}", capsys.readouterr().out.rstrip("\n")) == list(columns.values())
    assert main.run(["ps", "-aq"]) == main.run(["ps", "--format", "json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_directory_that_cannot_be_is_one_line(
    installation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (
        ["--state-dir", "relative", "ps"],
        ["--state-dir", "/proc/nothing", "network", "create", "x"],
    ):
        assert main.run(argv) not in (0, errors.INTERNAL_ERROR)
        assert capsys.readouterr().err.count("\n") == 1


def test_completion_of_names(installation: Path) -> None:
    words = {"COMP_WORDS": "datapathctl network inspect b", "COMP_CWORD": "3"}
    done = python("from ctl.cli.main import main; main()", _DATAPATHCTL_COMPLETE="bash_complete", **words)
    assert (done.stdout, done.stderr) == ("plain,bridge\n", "")


def test_a_histogram_has_its_rows_from_the_first_that_has_something() -> None:
    now = {("a", "b"): (0, 0, 1, 0, 81), ("b", "a"): (0, 5)}
    new = difference(now, {("a", "b"): (0, 0, 0, 0, 1), ("b", "a"): (0, 5)})
    assert latency_text(new).splitlines() == [
        "a -> b, 81 packets",
        "NANOSECONDS   PACKETS",
        "4 to 7        1         *",
        "8 to 15       0",
        "16 to 31      80        " + 40 * "*",
    ]
