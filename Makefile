# `make help` lists what there is. Paths are relative, so that a clone may lie in a path with spaces.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for p in /usr/bin/python3 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { echo $$p; break; }; done)
PY := .venv/bin/python
C_FILES := $(wildcard csrc/*/*.c csrc/*/*.h)

# What Debian calls the things that are needed: to build, to run, for the examples, for tests and peers.
APT_RUN := gcc libc6-dev e2fsprogs python3-dev python3-venv libcap-dev libseccomp2 libnftables1 ca-certificates
APT_DEMO := mmdebstrap umoci skopeo docker-registry
APT_TEST := busybox-static openssl erofs-utils xfsprogs attr libcap2-bin iproute2 nftables zstd clang-format chromium strace golang-github-containers-common
APT_FUZZ := clang libclang-rt-dev
APT_BENCH := crun runc podman bubblewrap containerd
APT_VM := qemu-system-x86 mmdebstrap e2fsprogs debian-archive-keyring git
APT_VAGRANT := vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients dnsmasq-base iptables qemu-utils rsync

.PHONY: help
help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: demo
demo: build ## Set up all that is needed, build two images, run a task and show its bill.
	@$(call apt,$(APT_DEMO))
	@examples/demo.sh

.PHONY: test
test: build ## Set up all that is needed and run every test; as root those that need it.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	@$(MAKE) lint
	@[ "$$(id -u)" != 0 ] || examples/images/build.sh
	$(PY) -m pytest tests --ignore tests/focus

.PHONY: unit
unit: build ## Tests that need no root.
	$(PY) -m pytest tests/unit

.PHONY: root
root: build ## Tests that need root and this kernel.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	@examples/images/build.sh
	$(PY) -m pytest tests/root tests/definitions tests/attacks tests/faults tests/soak

.PHONY: faults
faults: build ## Every fault point, not the choice that make test has: an hour.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	FARGATELITE_FAULTS=all $(PY) -m pytest tests/faults -q -s

.PHONY: soak
soak: build ## 2,000 lives in a row and 50 at a time, 10,000 looks: the table of docs/reliability.md.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	MALLOC_ARENA_MAX=1 FARGATELITE_SOAK_LIVES=2000 FARGATELITE_SOAK_LOOKS=10000 $(PY) -m pytest tests/soak -q -s

.PHONY: ci
ci: ## What CI runs (.ci/run), the default guest, the run through Vagrant, and ratios beside peers.
	@.ci/run test-vm test-vagrant bench-guard

GUEST ?= default
.PHONY: test-vm
test-vm: build ## Run the tests marked vm in a throw-away guest: GUEST=default, debian12, debian13, nofeatures, reboot or newest.
	@$(call apt,$(APT_VM))
	$(PY) -m vagrant test $(GUEST)

.PHONY: test-vm-all
test-vm-all: build ## The same in every guest, one after the other.
	@$(call apt,$(APT_VM))
	$(PY) -m vagrant test-all

.PHONY: test-focus
test-focus: build ## Check FOCUS exports with focus-validator, run as a task; builds its image first.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	$(PY) -m pytest tests/focus

.PHONY: hosts
hosts: build ## Rewrite docs/hosts.md from what each guest's check says.
	@$(call apt,$(APT_VM))
	$(PY) -m vagrant hosts

.PHONY: wheel
wheel: build ## A wheel and an sdist into dist/, with man pages and completions inside.
	rm -rf dist build/wheel
	$(PY) -m release.share
	$(PY) -m hatchling build -t sdist
	$(PY) -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir build/wheel dist/*.tar.gz
	@# Says by its name which C libraries it works with: those of Debian 12 and later.
	PATH=$$PWD/.venv/bin:$$PATH $(PY) -m auditwheel repair --wheel-dir dist build/wheel/*.whl 2>&1 | tail -n 1

.PHONY: test-wheel
test-wheel: wheel ## Install dist/ in clean guests, Debian 12 and 13: no compiler for the wheel, one for the sdist.
	@$(call apt,$(APT_VM))
	$(PY) -m vagrant test-wheel

.PHONY: box
box: build ## Build the box of vagrant/Vagrantfile.
	@$(call apt,$(APT_VM) $(APT_VAGRANT))
	$(PY) -m vagrant box

.PHONY: test-vagrant
test-vagrant: box ## The Vagrantfile for real: up, a few tests, destroy.
	vagrant/test-vagrant

.PHONY: lint
lint: build ## ruff, mypy, import directions, C format.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	@if command -v clang-format >/dev/null; then clang-format --style=file:csrc/.clang-format --dry-run --Werror $(C_FILES); fi

.PHONY: format
format: build ## Format Python and C.
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	clang-format --style=file:csrc/.clang-format -i $(C_FILES)

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: build ## Fuzz every parser of strangers' bytes, Python and C: FUZZ_SECONDS=60 in all.
	@$(call apt,$(APT_FUZZ))
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-fuzz.lock
	$(PY) -m tests.fuzz.run $(FUZZ_SECONDS)

.PHONY: golden
golden: build ## Rewrite golden plans and generated headers; read the diff.
	$(PY) -m fargatelite.sandbox.plan
	FARGATELITE_REWRITE_GOLDEN=1 $(PY) -m pytest -q tests/unit/sandbox

.PHONY: docs
docs: build ## Rewrite docs/fargate-compatibility.md from fields and marked tests.
	$(PY) -m fargatelite.taskdef.compatibility

.PHONY: bench
bench: build ## Everything that has goals beside peers, in one run: benchmarks/results/*.json.
	@$(call apt,$(APT_DEMO) $(APT_TEST) $(APT_BENCH))
	$(PY) -m benchmarks.run_all

BENCHES := launch cli pull inside density
.PHONY: $(BENCHES:%=bench-%)
$(BENCHES:%=bench-%): build ## One of them.
	@$(call apt,$(APT_DEMO) $(APT_TEST) $(APT_BENCH))
	$(PY) -m benchmarks.run_all --only $(@:bench-%=%)

.PHONY: bench-guard
bench-guard: build ## A minute: ratios beside peers that must not get twice as bad unseen.
	@$(call apt,$(APT_DEMO) $(APT_TEST) crun)
	@$(PY) -m benchmarks.guard

.PHONY: profile-launch
profile-launch: build ## Where the time of one launch goes, in microseconds.
	@$(call apt,$(APT_DEMO) $(APT_TEST))
	@$(PY) -m benchmarks.profile_launch

.PHONY: attacks-podman
attacks-podman: build ## The attack program beside podman's defaults: a table in docs/security.md.
	$(PY) -m benchmarks.attacks

.PHONY: bench-neighbours
bench-neighbours: build ## A victim's p99 beside hostile tasks: JSON and a table in docs/security.md.
	$(PY) -m benchmarks.neighbours

.PHONY: bench-meter
bench-meter: build ## What metering costs: benchmarks/results/meter.json and docs/meter-cost.svg.
	$(PY) -m benchmarks.meter

.PHONY: build
build: .venv/.installed ## Virtual environment and C parts; compiles what is stale.
	@FARGATELITE_WERROR=1 $(PY) csrc/build.py >/dev/null
	@$(PY) -m compileall -q fargatelite  # as an installer does: 90 ms of each command

# The lock has versions and hashes only; where packages come from is pip's configuration.
.venv/.installed: requirements.lock pyproject.toml
	@$(call apt,$(APT_RUN))
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is missing: apt-get install python3" >&2; exit 1; }
	[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	FARGATELITE_WERROR=1 $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: lock
lock: build ## Resolve requirements.lock anew.
	$(PY) -m piptools compile --quiet --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate --allow-unsafe --strip-extras -o requirements.lock pyproject.toml
	echo atheris | $(PY) -m piptools compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate -o requirements-fuzz.lock -

.PHONY: clean
clean: ## Remove what was built; images, registry and virtual environment too.
	rm -rf build .venv fargatelite/_bin fargatelite/meter/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Installs the Debian packages that are missing; asks apt for nothing when none is.
define apt
missing=""; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
if [ -n "$$missing" ]; then \
  command -v apt-get >/dev/null || { echo "missing:$$missing; install them with this system's package manager" >&2; exit 1; }; \
  [ "$$(id -u)" = 0 ] || { echo "missing:$$missing; run as root: apt-get install$$missing" >&2; exit 1; }; \
  echo "installing:$$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef
