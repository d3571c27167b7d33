# SPDX-License-Identifier: Apache-2.0
# Part of the Makefile: what is installed, packaged and released.

# ---- what is installed ---------------------------------------------------------------

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# A package of Debian's, of two: datapath, datapath-bench. Empty: both.
PART ?=
MANUAL := build/man/datapathctl.8
LIST = $(BUILD_PYTHON) packaging/install.py --destdir '$(DESTDIR)/' --prefix '$(PREFIX)' --sysconfdir '$(SYSCONFDIR)' \
	--python '$(PYTHON)' $(if $(PART),--part $(PART))

.PHONY: packaged install uninstall
packaged: bpf $(EXTENSION) $(MANUAL)

$(MANUAL): $(wildcard packaging/man/* ctl/*.py ctl/*/*.py) packaging/manual.py datapath/__init__.py bpf/abi.h | $(PYTHON_STAMP)
	$(BUILD_PYTHON) packaging/manual.py $(@D)

# The interpreter that will run it has to have what it needs: said now, not by a traceback.
install: packaged
	@[ -n '$(DESTDIR)' ] || $(PYTHON) -c 'import _cffi_backend, click, dns, pyroute2, yaml' || { \
		echo "$(PYTHON) lacks that; as root: apt-get install python3-click python3-cffi-backend python3-dnspython python3-pyroute2 python3-yaml" >&2; exit 1; }
	$(LIST) install
	@[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

uninstall: packaged
	$(LIST) uninstall
	@[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

# ---- packages --------------------------------------------------------------------------

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' datapath/__init__.py)
SDIST := dist/datapathctl-$(VERSION).tar.gz
DEB_PACKAGES := dpkg-dev debhelper click-man python3-cffi python3-click python3-setuptools
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)

# ARCH=arm64: for that architecture, if it is another than this machine's. What they are linked with is in a root of its
# own; here, the compiler is installed and nothing else of it.
CROSS := $(if $(ARCH),$(filter-out $(shell dpkg --print-architecture),$(ARCH)))
CROSS_ROOT = $(CURDIR)/.lab/roots/build-$(CROSS)
CROSS_MACHINE_arm64 := aarch64
CROSS_MACHINE = $(or $(CROSS_MACHINE_$(CROSS)),$(error ARCH=$(ARCH): packages are made for amd64 and arm64))
CROSS_TRIPLET = $(CROSS_MACHINE)-linux-gnu
DEB_ARCH = $(or $(CROSS),$(shell dpkg --print-architecture))

.PHONY: sdist wheel deb cross-root
sdist: $(PYTHON_STAMP)
	@rm -f dist/*.tar.gz
	$(BIN)/python -m build -q --sdist

cross-root:
	$(call install,mmdebstrap gcc-$(CROSS_TRIPLET))
	@$(MAKE) -s $(CROSS_ROOT).made ARCH=$(ARCH)

$(CURDIR)/.lab/roots/build-%.made: debian/control packaging/cross.sh
	packaging/cross.sh make $(@:.made=) $*
	@touch $@

# From the sdist, so it is known to be whole. One for Debian 12 and 13, if it is built in 12.
deb: sdist $(if $(CROSS),cross-root)
	$(if $(CROSS),,$(call install,$(DEB_PACKAGES)))
	rm -rf build/deb && mkdir -p build/deb
	tar -xzf $(SDIST) -C build/deb
	@printf 'datapath (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' '$(VERSION)' \
		"$$(sed -n 's/^Maintainer: //p' debian/control)" "$$(date -uRd @$(SOURCE_DATE_EPOCH))" \
		>build/deb/datapathctl-$(VERSION)/debian/changelog
	cd build/deb/datapathctl-$(VERSION) && $(if $(CROSS),\
		DEB_BUILD_OPTIONS=nocheck $(CURDIR)/packaging/cross.sh run $(CROSS_ROOT) $(CURDIR)/build/deb \
		env -C datapathctl-$(VERSION)) dpkg-buildpackage --no-sign -b $(CROSS:%=-a%)
	@rm -f dist/*_$(DEB_ARCH).deb
	cp build/deb/datapath_*.deb build/deb/datapath-bench_*.deb dist/

# For others than Debian: libbpf and libelf are inside.
wheel: WHEEL_MACHINE = $(if $(CROSS),$(CROSS_MACHINE),$(shell uname -m))
# Another architecture's is named by the platform, and its compiler is told where the other libraries are. pip is not to
# look for what builds it on that platform, too.
wheel: WHEEL_ENVIRONMENT = $(if $(CROSS),CC='$(CROSS_TRIPLET)-gcc --sysroot=$(CROSS_ROOT)' \
	_PYTHON_HOST_PLATFORM=linux-$(CROSS_MACHINE) AUDITWHEEL_LD_LIBRARY_PATH=$(CROSS_ROOT)/usr/lib/$(CROSS_TRIPLET))
wheel: sdist $(if $(CROSS),cross-root)
	$(BIN)/python -m pip install -q $$($(BIN)/python setup.py -q requirements --with wheel)
	rm -rf build/wheel dist/*_$(WHEEL_MACHINE).whl
	$(WHEEL_ENVIRONMENT) $(BIN)/python -m pip wheel -q --no-deps $(if $(CROSS),--no-build-isolation) -w build/wheel $(SDIST)
	$(WHEEL_ENVIRONMENT) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python packaging/wheel.py build/wheel/*.whl dist

# What a release consists of, in a fresh dist/: all of it from one sdist, with the sums by which whoever fetches it checks
# that (`sha256sum -c SHA256SUMS`), and what CHANGELOG.md says of this version.
.PHONY: release
release:
	rm -rf dist
	$(MAKE) wheel deb
	sed -n '/^## \[$(VERSION)\]/,/^## \[/{/^## \[/!p}' CHANGELOG.md >dist/NOTES.md
	cd dist && LC_ALL=C sha256sum -- *.deb *.whl *.tar.gz NOTES.md >SHA256SUMS
	@cat dist/SHA256SUMS

# ---- both ends of what pyproject.toml allows ---------------------------------------

# Listings, run, port, doctor, rules for iptables and nftables, reports: whatever speaks to a dependency.
VERSIONS := lowest newest
VERSIONS_TESTS := tests/unit/test_cli.py tests/unit/test_encryption.py tests/unit/test_words.py tests/unit/test_help.py tests/unit/test_formats.py tests/unit/test_bench_report.py \
	tests/unit/test_policy_text.py tests/unit/test_series.py tests/unit/test_top.py tests/net/test_metrics.py tests/net/test_port_command.py tests/net/test_doctor.py tests/net/test_linuxbridge.py tests/net/test_modes.py

$(VENV)/versions-lowest/bin/datapathctl: WANTED = $$($(BIN)/python setup.py -q requirements --with bench,metrics,top --lowest) 'numpy<2'
$(VENV)/versions-newest/bin/datapathctl: WANTED = --upgrade $$($(BIN)/python setup.py -q requirements --with bench,metrics,top)
$(VERSIONS:%=$(VENV)/versions-%/bin/datapathctl): $(VENV)/versions-%/bin/datapathctl: $(PYTHON_STAMP)
	$(PYTHON) -m venv --system-site-packages $(VENV)/versions-$*
	$(VENV)/versions-$*/bin/python -m pip install -q $(WANTED) pytest pytest-xdist
	$(call use_tree,$(VENV)/versions-$*)

.PHONY: test-versions $(VERSIONS:%=test-versions-%)
test-versions: $(VERSIONS:%=test-versions-%)
$(VERSIONS:%=test-versions-%): test-versions-%: build $(VENV)/versions-%/bin/datapathctl
	@$(VENV)/versions-$*/bin/python -m pip freeze 2>/dev/null | grep -iE '^(cffi|click|dnspython|pyroute2|pyyaml|jinja2|matplotlib|prometheus_client|textual)='
	$(VENV)/versions-$*/bin/python -m pytest $(SIDE_BY_SIDE) $(VERSIONS_TESTS)

# ---- what was built, as others install it ---------------------------------------------

.PHONY: test-packages
test-packages: build packaged release
	$(call install,mmdebstrap man-db lintian)
	$(PYTEST) tests/packages --ignore tests/packages/test_arm64.py

# Beside this machine's own, with which they are compared.
.PHONY: test-packages-arm64
test-packages-arm64: build packaged
	$(MAKE) deb wheel
	$(MAKE) deb wheel ARCH=arm64
	$(PYTEST) tests/packages/test_arm64.py
