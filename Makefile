# vzrun: `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := vzrun
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/sbin
LIBEXECDIR ?= $(PREFIX)/libexec/vzrun
UNITDIR ?= $(PREFIX)/lib/systemd/system
DATADIR ?= $(PREFIX)/share

# Debian's versioned packages and the upstream archive are not always in PATH.
GO ?= $(or $(shell command -v go),$(lastword $(wildcard /usr/lib/go-*/bin/go /usr/local/go/bin/go)),go)
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)

# runc_nocriu: checkpoint and restore are vzrun's own. The rest keeps the static
# binary free of libc's resolvers and of code that only makes manual pages.
TAGS := runc_nocriu seccomp netgo osusergo
# Without a build id, programs of two commits that change no code differ in their version only.
LDFLAGS := -s -w -buildid= -linkmode external -extldflags -static -X main.version=$(VERSION)
# The tag lean leaves out of vzrun what only some verbs need; for these it becomes vzrun-full.
LEAN_LDFLAGS := $(LDFLAGS) -X main.fullDir=$(LIBEXECDIR)
# cgo for libcontainer/nsenter, which enters namespaces before Go starts threads.
BUILD := CGO_ENABLED=1 $(GO) build -trimpath -buildvcs=false
# With musl each start takes less than with glibc, which asks the processor about its
# caches: docs/decisions/0026-two-programs.md. Without musl-gcc it is glibc.
MUSL_GCC ?= $(shell command -v musl-gcc)
MUSL := $(CURDIR)/.cache/musl
ifneq ($(MUSL_GCC),)
BUILD := CC='$(MUSL_GCC)' CGO_CFLAGS='-O2 -g -idirafter $(MUSL)/include' CGO_LDFLAGS='-O2 -g -L$(MUSL)/lib' $(BUILD)
endif

export GO TAGS

.PHONY: vzrun
vzrun: ## Build the static binaries vzrun and vzrun-full (the default)
	$(if $(MUSL_GCC),contrib/musl '$(MUSL)')
	$(BUILD) -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o $@-full .
	$(BUILD) -tags '$(TAGS) lean' -ldflags '$(LEAN_LDFLAGS)' -o $@ .

.PHONY: bootstrap
bootstrap: ## Install what building, running and testing needs (Debian 12 or 13, root)
	contrib/bootstrap

.PHONY: demo
demo: ## From a fresh checkout to a live guest: checkpointed, restored, cloned, moved
	contrib/bootstrap
	$(MAKE) vzrun
	VZRUN=$(CURDIR)/vzrun contrib/demo

.PHONY: test
test: ## Everything CI checks: bootstrap, build, lint, unit and integration tests
	contrib/bootstrap
	$(MAKE) vzrun
	$(MAKE) unit
# The suites mostly wait, and do not mind lint beside them; unit tests have things of
# the kernel that the suites would find left over.
	@log=$$(mktemp); nice $(MAKE) lint >"$$log" 2>&1 & lint=$$!; trap 'kill "$$lint" 2>/dev/null || true; rm -f "$$log"' EXIT; \
	status=0; $(MAKE) bats || status=$$?; wait "$$lint" || status=$$?; cat "$$log"; exit "$$status"

.PHONY: unit
unit: ## Unit tests (no root needed)
	CGO_ENABLED=1 $(GO) test -buildvcs=false -tags '$(TAGS)' ./...

.PHONY: bats
bats: ## Integration tests (root); one suite with SUITE=name
	VZRUN=$(CURDIR)/vzrun tests/run $(SUITE)

.PHONY: vmtest
vmtest: ready ## All in virtual machines (root); some with KERNEL=lane, SUITE=name or CMD=command; RESUME=1
	status=0; \
	$(if $(RESUME),VZRUN_VM_RESUME=$(RESUME)) VZRUN=$(CURDIR)/vzrun tests/vm/run $(or $(KERNEL),all) $(if $(CMD),-- "$$CMD",$(SUITE)) || status=$$?; \
	$(if $(KERNEL)$(SUITE)$(CMD),,VZRUN=$(CURDIR)/vzrun tests/vm/pair all trixie sid || status=$$?;) \
	exit "$$status"

.PHONY: vmshort
vmshort: ready ## A short part of vmtest: one lane, four suites (root)
	VZRUN=$(CURDIR)/vzrun tests/vm/run --short

.PHONY: vmpair
vmpair: ready ## Scenarios of two virtual machines (root); SCENARIO=name, KERNEL="lane lane"
	VZRUN=$(CURDIR)/vzrun tests/vm/pair $(or $(SCENARIO),all) $(KERNEL)

.PHONY: ready
ready:
	contrib/bootstrap
	$(MAKE) vzrun

.PHONY: conformance
conformance: ready ## The OCI conformance programs, beside runc (root)
	VZRUN=$(CURDIR)/vzrun tests/conformance/run

.PHONY: runc-suite
runc-suite: ready ## runc's own integration tests, beside runc (root); some with SUITE="name name"
	VZRUN=$(CURDIR)/vzrun tests/conformance/runc-suite $(SUITE)

.PHONY: bench
bench: ready ## Measure against other runtimes, into docs/benchmarks.md (root)
	VZRUN=$(CURDIR)/vzrun contrib/bench/run

.PHONY: lint
lint: ## Check form: shellcheck, gofumpt, vet, golangci-lint, modules
	contrib/lint

.PHONY: fmt
fmt: ## Format all Go files
	contrib/lint fmt

.PHONY: install
install: ## Install what was built (DESTDIR, PREFIX)
	@test -x vzrun -a -x vzrun-full || { echo "make: no ./vzrun to install" >&2; echo "hint: run make first" >&2; exit 1; }
	install -D -m 0755 vzrun '$(DESTDIR)$(BINDIR)/vzrun'
	install -D -m 0755 vzrun-full '$(DESTDIR)$(LIBEXECDIR)/vzrun-full'
	install -D -m 0755 -t '$(DESTDIR)$(LIBEXECDIR)' contrib/bootstrap contrib/debian-mirror
	$(call install_files,docs/man/*.8,$(DATADIR)/man/man8)
	install -d '$(DESTDIR)$(UNITDIR)'
	for unit in vzrun@.service vzrun-receive@.service; do \
		sed 's|@BINDIR@|$(BINDIR)|' "contrib/systemd/$$unit" >'$(DESTDIR)$(UNITDIR)'/"$$unit"; \
		chmod 0644 '$(DESTDIR)$(UNITDIR)'/"$$unit"; \
	done
	install -m 0644 -t '$(DESTDIR)$(UNITDIR)' contrib/systemd/vzrun-receive.socket
	$(call install_file,contrib/completions/vzrun.bash,$(DATADIR)/bash-completion/completions/vzrun)
	$(call install_file,contrib/completions/_vzrun,$(DATADIR)/zsh/site-functions/_vzrun)
	$(call install_file,contrib/completions/vzrun.fish,$(DATADIR)/fish/vendor_completions.d/vzrun.fish)

# Manual pages and completions are optional parts of the tree.
install_files = $(if $(wildcard $(1)),install -D -m 0644 -t '$(DESTDIR)$(2)' $(wildcard $(1)))
install_file = $(if $(wildcard $(1)),install -D -m 0644 $(1) '$(DESTDIR)$(2)')

.PHONY: clean
clean: ## Remove the binary and all caches (tools, root file systems)
	contrib/rootfs clean
	rm -rf vzrun vzrun-full .cache

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
