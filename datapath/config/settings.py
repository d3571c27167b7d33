# SPDX-License-Identifier: Apache-2.0
"""Settings: the directories of this installation, and the path of its daemon.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ConfigError, quoted


@dataclass(frozen=True, slots=True)
class Settings:
    """Directories of one installation; several may live on one machine, each in its own network namespace.

    `config_required`: the user named the configuration file, so it is an error if it is not there.
    `attach`: how programs are attached to devices, "tcx", "clsact", or "auto": tcx where the kernel has it.
    `cgroup`: the directory of the control group whose processes' sockets are looked after; None: the root of
    the cgroup2 hierarchy, so every process. `plugin_dirs`: where Docker's plugins are found.
    """

    state_dir: Path = Path("/var/lib/datapath")
    run_dir: Path = Path("/run/datapath")
    bpffs: Path = Path("/sys/fs/bpf/datapath")
    config_path: Path = Path("/etc/datapath/daemon.json")
    config_required: bool = False
    attach: str = "auto"
    cgroup: Path | None = None
    plugin_dirs: tuple[Path, ...] = (
        Path("/run/docker/plugins"),
        Path("/etc/docker/plugins"),
        Path("/usr/lib/docker/plugins"),
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: str | Path | None) -> Settings:
        """Options (by field name; None: not given) go before DATAPATH_* variables, these before defaults. ConfigError
        also for an empty one: what it stands for was not set, and the default would be another installation."""
        chosen: dict[str, Path] = {}
        for name, variable in (_PATHS | _OPTIONAL).items():
            value = overrides.pop(name, None)
            value = environ.get(variable) if value is None else value
            if value is None:
                continue
            if not value:
                raise ConfigError(f"{variable} is empty: give it a value, or unset it")
            if not Path(value).is_absolute() or "\0" in str(value):
                raise ConfigError(f"{variable} is {quoted(str(value))}: it must be an absolute path")
            chosen[name] = Path(value)
        attach = str(overrides.pop("attach", None) or environ.get(_ATTACH, "auto"))
        if attach not in ("auto", "tcx", "clsact"):
            raise ConfigError(f"DATAPATH_ATTACH is {quoted(attach)}: it must be auto, tcx or clsact")
        folders = environ.get(_PLUGIN_DIRS)
        if folders is not None and not all(
            Path(one).is_absolute() and "\0" not in one for one in folders.split(":")
        ):
            raise ConfigError(
                f"{_PLUGIN_DIRS} is {quoted(folders)}: it must be absolute paths with : between them"
            )
        if overrides:
            raise TypeError(f"no such setting: {', '.join(overrides)}")
        paths = {name: chosen.get(name, getattr(_DEFAULTS, name)) for name in _PATHS}
        return cls(
            **paths,
            config_required="config_path" in chosen,
            attach=attach,
            cgroup=chosen.get("cgroup"),
            plugin_dirs=tuple(map(Path, folders.split(":"))) if folders else _DEFAULTS.plugin_dirs,
        )

    @property
    def page_token(self) -> Path:
        """The file of the live page's token, there as long as the page is served: who removes it ends that."""
        return self.run_dir / "web.token"

    def environment(self) -> dict[str, str]:
        """The DATAPATH_* variables that make these settings: those that are not as by default."""
        found = {
            variable: str(value)
            for name, variable in (_PATHS | _OPTIONAL | {"attach": _ATTACH}).items()
            if (value := getattr(self, name)) != getattr(_DEFAULTS, name)
        }
        if self.plugin_dirs != _DEFAULTS.plugin_dirs:
            found[_PLUGIN_DIRS] = ":".join(map(str, self.plugin_dirs))
        return found


_PATHS = {
    "state_dir": "DATAPATH_STATE_DIR",
    "run_dir": "DATAPATH_RUN_DIR",
    "bpffs": "DATAPATH_BPFFS",
    "config_path": "DATAPATH_CONFIG",
}
_OPTIONAL = {"cgroup": "DATAPATH_CGROUP"}
_ATTACH = "DATAPATH_ATTACH"
_PLUGIN_DIRS = "DATAPATH_PLUGIN_DIRS"
_DEFAULTS = Settings()
