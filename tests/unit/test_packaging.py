# SPDX-License-Identifier: Apache-2.0
"""What is installed beside the modules says what they say: manual, examples, units, bounds of packages."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import datapath
from datapath import errors
from datapath.config import daemon, tuning
from datapath.config.daemon import DaemonConfig
from datapath.kernel import abi

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"packaging/{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def page(name: str) -> str:
    """Words of a page: the hyphens of names are written as such."""
    return (ROOT / "packaging/man" / name).read_text().replace("\\-", "-")


def test_the_example_has_every_key_and_can_be_used() -> None:
    text = (ROOT / "packaging/examples/daemon.json").read_text()
    DaemonConfig.parse(text)
    given = json.loads(text)
    assert given.keys() == daemon._PARSERS.keys()
    assert given[tuning.KEY].keys() == {*tuning._NUMBERS, "timeouts", "flood-limit"}
    assert given[tuning.KEY]["timeouts"] == tuning.TIMEOUTS
    plain = tuning.Tuning()
    for key in tuning._NUMBERS:
        assert given[tuning.KEY][key] == getattr(plain, key.replace("-", "_")), key


def test_the_page_of_the_configuration_has_every_key_and_its_default() -> None:
    text = page("daemon.json.5")
    for key in (*daemon._PARSERS, *tuning._NUMBERS, "flood-limit", *tuning.TIMEOUTS):
        assert re.search(rf"^\.(?:B|BR|SS)\b.*(?<![\w-]){re.escape(key)}(?![\w-])", text, re.MULTILINE), key
    for number in (
        *tuning.TIMEOUTS.values(),
        *(getattr(tuning.Tuning(), k.replace("-", "_")) for k in tuning._NUMBERS),
    ):
        assert re.search(rf"\b{number}\b", text), number


def test_the_page_of_exit_codes_has_each_and_no_other() -> None:
    from ctl.cli.errors import BROKEN_PIPE, INTERNAL_ERROR, INTERRUPTED
    from ctl.cli.repair import NOT_CLEAN

    kinds = [one for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")]
    codes = {0, 125, 126, 127, BROKEN_PIPE, INTERNAL_ERROR, INTERRUPTED, NOT_CLEAN}
    codes |= {one.exit_code for one in kinds if isinstance(one.exit_code, int)}
    section = page("datapath.7").partition(".SH EXIT STATUS")[2].partition(".SH")[0]
    titles = re.findall(r"^\.TP\n\.B\w* (.*)$", section, re.MULTILINE)
    assert {int(number) for title in titles for number in re.findall(r"\d+", title)} == codes


def test_the_manual_says_what_each_counter_means() -> None:
    said = dict(re.findall(r"^\.B (\w+)\n(.*)$", script("manual").reasons(), re.MULTILINE))
    assert said.keys() == {reason.name for reason in abi.Reason}
    assert [name for name, words in said.items() if words == "As its name says."] == []


def test_the_manual_has_the_variables_that_are_heard() -> None:
    from datapath.config.settings import _ATTACH, _OPTIONAL, _PATHS

    text = page("datapath.7")
    for name in (*_PATHS.values(), *_OPTIONAL.values(), _ATTACH, "DATAPATH_DEBUG"):
        assert f".B {name}\n" in text, name


def test_one_top_level_name_is_installed_and_each_module_once() -> None:
    names = [name for name, _ in script("install").library()]
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in names} == {"datapath"}
    modules = {path.relative_to(ROOT) for room in ("ctl", "datapath") for path in (ROOT / room).rglob("*.py")}
    assert {Path(f"datapath/{one}") if one.parts[0] == "ctl" else one for one in modules} <= {
        *map(Path, names)
    }


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"], ids=str)
def test_debians_package_asks_for_the_same_versions(requirement: str) -> None:
    found = re.match(r"(\w+)>=([\d.]+)", requirement)
    assert found is not None
    name = {"cffi": "cffi-backend", "PyYAML": "yaml"}.get(found[1], found[1])
    assert f" python3-{name} (>= {found[2]}),\n" in (ROOT / "debian/control").read_text()


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    for path in (
        "setup.py",
        "pyproject.toml",
        "Makefile",
        "packaging/packages.mk",
        "debian/control",
        "debian/rules",
    ):
        assert datapath.__version__ not in (ROOT / path).read_text(), path
    assert not (ROOT / "debian/changelog").exists()  # `make deb` writes it


@pytest.mark.parametrize(("prefix", "system"), [("/usr", "/usr/lib"), ("/usr/local", "/etc")])
def test_other_programs_find_what_they_call(prefix: str, system: str) -> None:
    """In the folders where they look; and each calls the command that is installed."""
    install = script("install")
    where = install.Where(Path(prefix), Path("/etc"), "/usr/bin/python3")
    found = {str(file.target): file for file in install.beside(where)}
    for folder in (
        "NetworkManager/dispatcher.d",
        "networkd-dispatcher/routable.d",
        "networkd-dispatcher/off.d",
    ):
        file = found[f"{system}/{folder}/50-datapath"]
        assert file.mode == 0o755 and file.content.startswith(b"#!/bin/sh\n")
    drop_ins = [path for path in found if path.endswith(".service.d/50-datapath.conf")]
    assert len(drop_ins) == 3
    for path, file in found.items():
        assert b"@BIN@" not in file.content, path
        for called in re.findall(rb"(?:exec |=-?)(/\S*datapathctl) ", file.content):
            assert called.decode() == f"{prefix}/bin/datapathctl", path


def test_the_command_and_the_plugins_start_as_they_are_installed(tmp_path: Path) -> None:
    """Each by a launcher of its own; where only Debian's packages put something, nothing is below /opt."""
    library = tmp_path / "lib/datapath/datapath"
    library.mkdir(parents=True)
    for entry in (ROOT / "datapath").iterdir():
        (library / entry.name).symlink_to(entry)
    (library / "ctl").symlink_to(ROOT / "ctl")
    install = script("install")
    where = install.Where(tmp_path, tmp_path / "etc", sys.executable)
    made = {str(file.target.relative_to("/")): file for file in install.launchers(where)}
    answers = {}
    for name, file in made.items():
        path = tmp_path / "launcher"
        path.write_bytes(file.content)
        path.chmod(file.mode)
        environ = {"PATH": "/usr/bin", "CNI_COMMAND": "VERSION"}
        words = ["info"] if "netavark" in name else ["--version"] if "bin/datapathctl" in name else []
        done = subprocess.run([path, *words], input="{}", capture_output=True, text=True, env=environ)
        assert done.returncode == 0, (name, done.stderr)
        answers[name] = done.stdout
    assert any(
        "supportedVersions" in text for name, text in answers.items() if name == "opt/cni/bin/datapath"
    )
    prefix = str(tmp_path.relative_to("/"))
    assert answers.keys() == {
        *(f"{prefix}/{name}" for name in ("bin/datapathctl", "lib/cni/datapath", "lib/netavark/datapath")),
        "opt/cni/bin/datapath",
    }
    assert "api_version" in answers[f"{prefix}/lib/netavark/datapath"]
    packaged = install.launchers(install.Where(Path("/usr"), Path("/etc"), "/usr/bin/python3"))
    assert not [file for file in packaged if "opt" in file.target.parts]
