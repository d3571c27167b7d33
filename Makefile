# SPDX-License-Identifier: Apache-2.0
#
# A bare `make` prints the menu. Stamp files keep a second `make build` instant.

CLANG ?= clang
LLVM_STRIP ?= llvm-strip
CLANG_FORMAT ?= clang-format
MUSL_CC ?= musl-gcc
# Debian's own interpreter: python3-bpfcc is seen by no other.
PYTHON ?= /usr/bin/python3

VENV := .venv
BIN := $(VENV)/bin
# BARE=1: nothing is installed, and $(PYTHON) builds. So packages are built, from what their builder has put there.
ifeq ($(BARE),)
BUILD_PYTHON := $(BIN)/python
SYSTEM_STAMP := $(VENV)/.stamp-system
PYTHON_STAMP := $(VENV)/.stamp-python
else
BUILD_PYTHON := $(PYTHON)
endif

OBJECTS := $(patsubst bpf/%.bpf.c,datapath/objects/%.bpf.o,$(wildcard bpf/*.bpf.c))
# bcc compiles these when they are used.
TRACERS := $(patsubst bpf/%,datapath/objects/%,$(wildcard bpf/trace/*.[ch]))
# How earlier versions laid out their maps: `upgrade` reads them.
FORMER := $(patsubst bpf/%,datapath/objects/%,$(wildcard bpf/former/*))
HEADERS := bpf/abi.h $(wildcard bpf/lib/*.h)
EXTENSION := datapath/kernel/_libbpf.abi3.so
# The benchmark's own programs. The last is of another libc, and not there without that one's compiler.
PROBES := datapath/objects/probe datapath/objects/questions datapath/objects/questions-musl
C_FILES := $(wildcard bpf/*.c bpf/*.h bpf/lib/*.h bpf/trace/*.[ch] datapath/bench/*.c)
SOURCES := $(wildcard datapath ctl packaging tests) setup.py

# A program uses some of a header's functions, not all. gcc is asked when it is needed: on a fresh machine
# there is none before `deps`.
# They are the same wherever they are built.
BPF_CFLAGS = -O2 -g -target bpf -mcpu=v3 -Wall -Werror -Wno-unused-function -ffile-prefix-map=$(CURDIR)=. -Ibpf \
	-I/usr/include/$(shell gcc -print-multiarch)

CFLAGS ?= -O2
WARNINGS := -Wall -Wextra -Werror -Wno-unused-parameter

# What the build, the datapath and the tests run. None starts a service when it is installed: those that would are
# kept from it below.
PACKAGES := gcc libc6-dev make clang llvm clang-format libbpf-dev libelf-dev bpftool \
	python3-venv python3-dev python3-bpfcc python3-yaml \
	iproute2 iptables nftables ethtool tcpdump iperf3 curl \
	iputils-ping iputils-arping netcat-openbsd traceroute procps busybox-static \
	nginx wrk apache2-utils dnsmasq-base unbound bind9-dnsutils libsystemd-shared musl-tools python3-pyftpdlib \
	dropbear-bin openssh-client ufw dbus-daemon python3-dbus python3-gi \
	containerd runc podman netavark containernetworking-plugins docker.io docker-compose \
	etcd-server etcd-client openssl bird2 frr wireguard-tools wireguard-go

# What the benchmark runs besides: `make bench-deps`.
BENCH_PACKAGES := sockperf aardvark-dns haproxy libnginx-mod-stream ipvsadm

# And the kernel lab: `make lab-deps`.
LAB_STAMP := $(VENV)/.stamp-lab
LAB_PACKAGES := qemu-system-x86 kmod udev file debian-archive-keyring
LAB_PACKAGES_arm64 := qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross cpio

# What is compiled is kept (in __pycache__), whatever the environment says: else every process of a run would do it for
# all files, and rewrite the assertions of all tests.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
# A test waits for most of its time, so there are three processes for each processor. Each tests a file at a time; the
# longest come first (tests/conftest.py).
WORKERS = $(shell n=$$(nproc); echo $$((n < 3 ? 3 * n : 8)))
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: menu deps build bpf demo cluster test test-busy test-unit test-bpf test-net test-model test-upgrade doors compare-host fuzz fuzz-names fuzz-policies bench-deps bench bench-swarm lint fmt clean
.PHONY: vendor web-deps web-test lab-deps lab lab-shell lab-all lab-bench lab-packages

menu:
	@echo 'make deps       install what is missing: Debian packages (as root), Python packages into $(VENV)'
	@echo 'make build      deps, packet programs and $(BIN)/datapathctl'
	@echo 'make bpf        only the packet programs: bpf/*.bpf.c -> datapath/objects/*.bpf.o'
	@echo 'make demo       build, then play the main job in a pretend host (root)'
	@echo 'make cluster    build, then play a cluster of pretend hosts: [N=3] (root)'
	@echo 'make test       build, then the whole suite (root)'
	@echo 'make test-busy  the whole suite while others keep the machine busy: [HOGS=4] (root)'
	@echo 'make test-unit  the tests that need no root'
	@echo 'make test-bpf   the packet programs on whole packets (root)'
	@echo 'make test-net   end to end, in namespaces (root)'
	@echo 'make test-model random packets: the programs against the reference model, a minute (root)'
	@echo 'make test-upgrade from the last release to this one, with traffic: [FROM=tag or commit] (root)'
	@echo 'make doors      container runtimes of three releases drive the plugins: docs/doors.md [TESTS=…] (root)'
	@echo 'make compare-host  the kernel beside the packet programs on hosts of many kinds: docs/compatibility.md (root)'
	@echo 'make fuzz       the same without end: [SECONDS=…] [SEED=…] [JOBS=…] (root)'
	@echo 'make fuzz-names mutated questions to the resolver: [QUESTIONS=1000000] [SEED=…] (root)'
	@echo 'make fuzz-policies random worlds: what policies mean, their rows, the programs: [PACKETS=1000000] [SEED=…] (root)'
	@echo 'make bench      what the product promises, against iptables and no container at all, in 5 minutes (root)'
	@echo 'make bench-swarm  overlay networks beside those of Docker in swarm mode: [SUITE=trixie] (root)'
	@echo 'make bench-deps install what only the benchmark runs: sockperf, resolvers, proxies (as root)'
	@echo 'make lab        what depends on the kernel, in another one: KERNEL=6.12 [ARCH=arm64] [TESTS=…] (root; docs/lab.md)'
	@echo 'make lab-shell  a shell in it, with two containers: KERNEL=6.12 (root)'
	@echo 'make lab-all    every kernel of the matrix, and a table: [ARCH=arm64] (root)'
	@echo 'make lab-bench  the benchmark in it, beside IPVS: KERNEL=6.12 [BENCH=--suite…] (root; docs/lab.md)'
	@echo 'make lab-packages ARCH=arm64  that architecture'"'"'s packages at work in it: KERNEL=6.12 (root)'
	@echo 'make test-versions  what speaks to a dependency, with the lowest and the newest versions of all (root)'
	@echo 'make test-packages  what the next five build, in fresh roots of Debian 12 and 13 (root)'
	@echo 'make test-packages-arm64  the packages and the wheel for arm64, made on another machine (root)'
	@echo 'make deb        dist/datapath_*.deb and datapath-bench_*.deb, for Debian 12 and 13: [ARCH=arm64]'
	@echo 'make wheel      dist/datapathctl-*.whl, for any distribution with glibc: [ARCH=arm64]'
	@echo 'make sdist      dist/datapathctl-*.tar.gz, which all are built from'
	@echo 'make release    all four in a fresh dist/, with SHA256SUMS and the notes of this version'
	@echo 'make install uninstall  [DESTDIR=] [PREFIX=/usr/local] (as root)'
	@echo 'make vendor     fetch what the live page is made with again, by ctl/web/vendor/package-lock.json'
	@echo 'make web-test   the live page in Chromium, which is installed for it: [PICTURES=folder] (root)'
	@echo 'make lint       ruff, mypy --strict, reuse, clang-format'
	@echo 'make fmt        let ruff and clang-format rewrite the sources'
	@echo 'make clean      remove everything that was built, $(VENV) and the kernels of the lab too'

# ---- what must be installed ------------------------------------------------------

deps: $(PYTHON_STAMP) $(VENV)/systemd-resolved $(VENV)/firewalld

# $(call install,PACKAGES): those that are missing. No service starts, now or at the next boot.
define install
	@missing=; \
	for package in $(1); do \
		case "$$(dpkg-query -W -f='$${Status}' $$package 2>/dev/null)" in \
		*' installed') ;; \
		*) missing="$$missing $$package" ;; \
		esac; \
	done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" -ne 0 ]; then \
		echo "missing packages; as root: apt-get install --no-install-recommends$$missing" >&2; exit 1; \
	elif [ -n "$$missing" ]; then \
		if [ ! -e /usr/sbin/policy-rc.d ]; then \
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d; \
		fi; \
		export DEBIAN_FRONTEND=noninteractive && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends $$missing && \
		for service in nginx haproxy ipvsadm unbound ufw bird2:bird frr etcd-server:etcd docker.io:docker.socket docker.io:docker containerd \
			podman:podman.socket podman:podman podman:podman-restart podman:podman-auto-update.timer; do \
			case "$$missing " in *" $${service%:*} "*) \
				[ ! -d /run/systemd/system ] || systemctl disable -q "$${service#*:}" ;; \
			esac; \
		done; \
	fi
endef

$(SYSTEM_STAMP): Makefile
	$(call install,$(PACKAGES))
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	@touch $@

# setuptools and cffi first: they read what else is required.
$(PYTHON_STAMP): $(SYSTEM_STAMP) setup.py pyproject.toml
	$(BIN)/python -m pip install -q 'setuptools>=77' 'cffi>=1.15.1'
	$(BIN)/python -m pip install -q $$($(BIN)/python setup.py -q requirements --with bench,metrics,top,web,dev)
	@touch $@

# Tests run it. Installed it would take the machine's resolv.conf: it is only unpacked, if it can be had.
$(VENV)/systemd-resolved: | $(SYSTEM_STAMP)
	@mkdir -p $@
	@cd $@ && apt-get -qq download systemd-resolved 2>/dev/null && dpkg -x systemd-resolved_*.deb . || true

# Installed it would bring much along, and be there for the machine itself: likewise.
$(VENV)/firewalld: | $(SYSTEM_STAMP)
	@mkdir -p $@
	@cd $@ && apt-get -qq download firewalld python3-firewall python3-nftables python3-cap-ng 2>/dev/null && \
		for package in *.deb; do dpkg -x $$package .; done || true

# ---- what is built ---------------------------------------------------------------

build: bpf $(EXTENSION) $(BIN)/datapathctl

bpf: $(SYSTEM_STAMP) $(OBJECTS) $(TRACERS) datapath/objects/abi.h datapath/objects/digest $(PROBES) $(FORMER)

datapath/objects/%.bpf.o: bpf/%.bpf.c $(HEADERS) | $(SYSTEM_STAMP)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@.tmp
	@$(LLVM_STRIP) -g $@.tmp
	@mv $@.tmp $@

datapath/objects/abi.h $(TRACERS) $(FORMER): datapath/objects/%: bpf/%
	@mkdir -p $(@D)
	cp $< $@

# What tells one version's programs from another's: hashing them would cost each command milliseconds.
datapath/objects/digest: $(OBJECTS) datapath/objects/abi.h
	cat $(sort $^) | sha256sum | cut -c -16 >$@

datapath/objects/probe datapath/objects/questions: datapath/objects/%: datapath/bench/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WARNINGS) -o $@ $< $(LDFLAGS)

datapath/objects/questions-musl: datapath/bench/questions.c | $(SYSTEM_STAMP)
	@mkdir -p $(@D)
	[ -z "$$(command -v $(MUSL_CC))" ] || $(MUSL_CC) -static -O2 $(WARNINGS) -o $@ $<

# One for every Python from 3.11 on: cffi's C keeps to the limited API.
$(EXTENSION): datapath/kernel/_build.py bpf/abi.h | $(PYTHON_STAMP)
	$(BUILD_PYTHON) $< $(@D)/_libbpf.c
	$(CC) $(CPPFLAGS) $(CFLAGS) $(WARNINGS) -fPIC -shared -Ibpf -o $@.tmp $(@D)/_libbpf.c $(LDFLAGS) -lbpf \
		-I$$($(BUILD_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
	@mv $@.tmp $@

# $(call use_tree,VENV): datapathctl in it is this tree. A plain path: the hook of an editable install would cost every
# command some milliseconds.
define use_tree
	@echo '$(CURDIR)' >$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/datapath.pth
	@printf '%s\n' '#!$(CURDIR)/$(1)/bin/python' 'from ctl.main import main' '' 'main()' >$(1)/bin/datapathctl
	@chmod +x $(1)/bin/datapathctl
endef

$(BIN)/datapathctl: $(PYTHON_STAMP)
	$(call use_tree,$(VENV))

# ---- what is run -----------------------------------------------------------------

demo: build
	$(BIN)/python -m ctl.cli.demo

N = 3
cluster: build
	$(BIN)/python -m ctl.cli.cluster_demo $(N)

REWRITTEN_STAMP := $(VENV)/.stamp-tests
TESTED := tests/net tests/model tests/bpf tests/unit

# In a new tree nothing is kept yet: else each process would rewrite the assertions of all tests at the same time. What
# is wrong is said when they are run.
$(REWRITTEN_STAMP): | build
	@$(PYTEST) -qq --collect-only $(TESTED) >/dev/null 2>&1 || true
	@touch $@

test: deps build $(REWRITTEN_STAMP)
	$(PYTEST) $(SIDE_BY_SIDE) $(TESTED)

# No test fails for time. Beside a second copy, from another clone, none does either.
HOGS ?= 4
test-busy: deps build
	$(call install,stress-ng)
	@stress-ng --quiet --cpu $(HOGS) & trap "kill $$!" EXIT INT TERM; $(MAKE) test

test-net: deps
test-unit test-bpf test-net: test-%: build
	$(PYTEST) tests/$*

test-model: build
	MODEL_SECONDS=$${MODEL_SECONDS:-60} $(PYTEST) tests/model

# From the last tag, or the commit that tests/release/last_release names; it is built from the history.
FROM ?=
test-upgrade: build
	DATAPATH_FROM='$(FROM)' $(PYTEST) tests/release

# Container runtimes drive the plugins: those of this release, and of others, whose roots are made once, by mmdebstrap,
# below .lab. Writes the tables of docs/doors.md; what came out is recorded, also if something failed.
DOORS_SEEN := build/doors.json
DOORS := $(addprefix tests/net/test_,docker.py docker_crashes.py compose.py clients.py coexistence.py) tests/doors
doors: deps build
	$(call install,mmdebstrap)
	@mkdir -p $(dir $(DOORS_SEEN)); rm -f $(DOORS_SEEN)
	DATAPATH_LONG=1 DOORS_SEEN=$(DOORS_SEEN) $(PYTEST) $(or $(TESTS),$(DOORS)); code=$$?; \
		$(BIN)/python -m tests.doors.table $(DOORS_SEEN) && exit $$code

# Writes the tables of docs/compatibility.md: the kernel's own forwarding beside ours, on hosts of many kinds. What came
# out is recorded, also if a case is not as it should be.
COMPARED := build/compared.json
compare-host: deps build
	@mkdir -p $(dir $(COMPARED)); rm -f $(COMPARED)
	COMPARE_HOST=$(COMPARED) TEST_PATIENCE=8 \
		$(PYTEST) $(SIDE_BY_SIDE) -m host_case tests/net; code=$$?; \
		$(BIN)/python -m tests.net.compared --whole $(COMPARED) && exit $$code

# Until a disagreement, or the bound, on all processors unless JOBS says less; it names its seed.
SECONDS ?= 0
JOBS ?= 0
fuzz: build
	$(BIN)/python -m tests.model.fuzz --seconds $(SECONDS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

# Until an answer is wrong, or so many were asked; it names its seed.
QUESTIONS ?= 1000000
fuzz-names: build
	$(BIN)/python -m tests.bpf.fuzz_names --questions $(QUESTIONS) $(if $(SEED),--seed $(SEED))

# Until the three differ, or so many packets were sent through all of them, 1,000 of a world; it names the world's seed.
PACKETS ?= 1000000
fuzz-policies: build
	$(BIN)/python -m tests.bpf.policy_worlds --packets $(PACKETS) $(if $(SEED),--seed $(SEED))

bench-deps: deps
	$(call install,$(BENCH_PACKAGES))

bench: build bench-deps
	$(BIN)/datapathctl bench run --suite quick --modes ebpf,iptables,none --seconds 0.5 --rounds 9 --budget 4.5

# Beside Docker's own overlay network of another release, in swarm mode: trixie's Docker is 26.1. Its root is that of `doors`.
SUITE ?= trixie
bench-swarm: build bench-deps
	$(call install,mmdebstrap)
	$(BIN)/datapathctl bench run --suite overlay --modes ebpf,direct,docker,none --dockerd "$$($(BIN)/python -m tests.doors.root $(SUITE))"

$(LAB_STAMP): $(PYTHON_STAMP)
	$(BIN)/python -m pip install -q $$($(BIN)/python setup.py -q requirements --with lab)
	@touch $@

KERNEL ?= 6.12
LAB := $(BIN)/python -m tests.vm.lab
LAB_OPTIONS = $(if $(ARCH),--arch $(ARCH)) $(if $(FLAVOUR),--flavour $(FLAVOUR)) $(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(filter-out 0,$(RECORD)),--record)

# The live page as people see it. Chromium is large, so it is installed for this alone; playwright brings none of its own.
BROWSER_STAMP := $(VENV)/.stamp-browser
BROWSER_PACKAGES := chromium fonts-dejavu-core

$(BROWSER_STAMP): $(PYTHON_STAMP)
	$(BIN)/python -m pip install -q $$($(BIN)/python setup.py -q requirements --with browser)
	@touch $@

web-deps: $(BROWSER_STAMP)
	$(call install,$(BROWSER_PACKAGES))

PICTURES ?=
web-test: build web-deps
	PICTURES='$(PICTURES)' $(PYTEST) tests/browser

lab-deps: $(LAB_STAMP)
	$(call install,$(LAB_PACKAGES) $(LAB_PACKAGES_$(ARCH)))

lab: build lab-deps
	$(LAB) run $(LAB_OPTIONS) $(if $(filter-out 0,$(COMPARE)),--compare) '$(KERNEL)' $(TESTS)

lab-shell: build lab-deps
	$(LAB) shell '$(KERNEL)'

lab-all: build lab-deps
	$(LAB) matrix $(LAB_OPTIONS) $(TESTS)

lab-bench: build lab-deps
	$(BIN)/python -m tests.vm.benched $(if $(TIMEOUT),--timeout $(TIMEOUT)) '$(KERNEL)' $(BENCH)

lab-packages: build lab-deps deb wheel
	$(BIN)/python -m tests.vm.packaged '$(KERNEL)' '$(ARCH)'

include packaging/packages.mk

# By npm, of which nothing else here needs anything. To take a newer version, name it in package.json and let
# `npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved` write the lock first.
vendor: $(PYTHON_STAMP)
	@command -v npm >/dev/null || { echo 'missing: npm (Debian: apt-get install --no-install-recommends npm)' >&2; exit 1; }
	$(BIN)/python packaging/vendor.py

lint: build
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/reuse lint --quiet || $(BIN)/reuse lint
	$(if $(C_FILES),$(CLANG_FORMAT) --dry-run -Werror $(C_FILES))

fmt: build
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(if $(C_FILES),$(CLANG_FORMAT) -i $(C_FILES))

clean:
	rm -rf $(VENV) .lab build dist *.egg-info datapath/objects .pytest_cache .mypy_cache .ruff_cache
	find datapath ctl tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f datapath/kernel/*.so datapath/kernel/_libbpf.c datapath/kernel/*.o
