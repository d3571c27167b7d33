# SPDX-License-Identifier: Apache-2.0
"""Containers that have ended: started again as they were, and called by another name. Pure."""

from __future__ import annotations

import itertools
from dataclasses import replace

from datapath.config.daemon import DaemonConfig
from datapath.errors import ConfigError, ExistsError
from datapath.model.containers import Container, RunRequest
from datapath.model.endpoints import EndpointRequest
from datapath.model.observed import HostFacts
from datapath.model.state import Fresh, State
from datapath.plan.containers import RunPlan, plan_run
from datapath.plan.networks import check_name
from datapath.plan.ports import PortContext


def request_of(container: Container) -> RunRequest:
    """What `run` would have to ask for to make the container as it is: with the networks and ports that came later."""
    request = RunRequest(
        argv=container.argv,
        networks=container.networks or (EndpointRequest(container.network_mode),),
        env=container.env,
        labels=tuple(f"{key}={value}" for key, value in container.labels.items()),
        rootfs=container.rootfs,
        user=container.user,
        workdir=container.workdir,
        detach=True,
        tty=container.tty,
        interactive=container.open_stdin,
        stop_signal=container.stop_signal,
    )
    if container.shares:  # all else is that of the container whose stack it uses
        return request
    return replace(
        request,
        publish=tuple(map(str, container.published)),
        publish_all=container.publish_all,
        expose=tuple(f"{port}/{proto}" for port, proto in container.exposed),
        links=tuple(f"{link.server}:{link.alias}" for link in container.links),
        hostname=container.hostname,
        domainname=container.domainname,
        add_host=tuple(f"{name}={address}" for name, address in container.extra_hosts),
        dns=container.dns,
        dns_search=container.dns_search,
        dns_option=container.dns_options,
        sysctls=tuple(f"{key}={value}" for key, value in container.sysctls.items()),
        services=tuple(f"{one.service},weight={one.weight}" for one in container.services),
    )


def plan_start(
    name: str, state: State, facts: HostFacts, config: DaemonConfig, fresh: Fresh, ports: PortContext
) -> RunPlan:
    """A container that has ended, once more: with its id and name, and its addresses if nobody has them meanwhile.
    NotFoundError, ConfigError, ExistsError."""
    before = state.container(name)
    sharing = [user.name for user in state.users(before.id) if user.running]
    if sharing and not before.shares:
        raise ConfigError(f"container {before.name} cannot be started: {sharing[0]} still uses its network")
    ids = itertools.chain([before.id], iter(fresh.new_id, None))  # the container's comes first
    again = fresh._replace(new_id=lambda: next(ids))
    there = tuple(one for one in before.services if one.service in state.services)
    planned = plan_run(
        replace(request_of(replace(before, services=there)), name=before.name),
        state.without(before),
        facts,
        config,
        again,
        ports,
        before,
    )
    kept = (
        "created",
        "started",
        "finished",
        "exit_code",
        "network_mode",
        "networks",
        "labels",
        "log_path",
        "log_opts",
    )
    container = replace(planned.container, **{field: getattr(before, field) for field in kept})
    return planned._replace(container=container)


def plan_rename(name: str, wanted: str, state: State) -> Container:
    """The container under another name. NotFoundError, ConfigError, ExistsError."""
    container = state.container(name)
    wanted = wanted.removeprefix("/")
    check_name("container", wanted)
    if wanted == container.name:
        raise ConfigError("Renaming a container with the same name as its current name")
    holder = state.find_container(wanted)
    if holder is not None:
        raise ExistsError(
            f'Conflict. The container name "/{wanted}" is already in use by container "{holder.id}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
    return replace(container, name=wanted)
