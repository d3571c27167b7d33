# SPDX-License-Identifier: Apache-2.0
# Part of the Makefile: what is installed, packaged and released.

# ---- both ends of what pyproject.toml allows ---------------------------------------

# Listings, run, port, doctor, rules for iptables and nftables, reports: whatever speaks to a dependency.
VERSIONS := lowest newest
VERSIONS_TESTS := tests/unit/test_cli.py tests/unit/test_formats.py tests/unit/test_bench_report.py \
	tests/net/test_port_command.py tests/net/test_doctor.py tests/net/test_linuxbridge.py tests/net/test_modes.py
# What click says itself has other quotation marks before 8.4.
OF_NEWEST := test_a_mistake_is_one_line

$(VENV)/versions-lowest/bin/datapathctl: WANTED = $$($(BIN)/python setup.py -q requirements --with bench --lowest) 'numpy<2'
$(VENV)/versions-newest/bin/datapathctl: WANTED = --upgrade $$($(BIN)/python setup.py -q requirements --with bench)
$(VERSIONS:%=$(VENV)/versions-%/bin/datapathctl): $(VENV)/versions-%/bin/datapathctl: $(PYTHON_STAMP)
	$(PYTHON) -m venv --system-site-packages $(VENV)/versions-$*
	$(VENV)/versions-$*/bin/python -m pip install -q $(WANTED) pytest
	$(call use_tree,$(VENV)/versions-$*)

.PHONY: test-versions $(VERSIONS:%=test-versions-%)
test-versions: $(VERSIONS:%=test-versions-%)
$(VERSIONS:%=test-versions-%): test-versions-%: build $(VENV)/versions-%/bin/datapathctl
	@$(VENV)/versions-$*/bin/python -m pip freeze 2>/dev/null | grep -iE '^(cffi|click|pyroute2|jinja2|matplotlib)='
	$(VENV)/versions-$*/bin/python -m pytest $(VERSIONS_TESTS) $(if $(filter lowest,$*),-k 'not $(OF_NEWEST)')
