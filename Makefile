# The commands of the README. `make help` lists them.
SHELL    := /bin/bash
GO       ?= go
TOOLS    := $(CURDIR)/.cache/tools
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
export CGO_ENABLED = 0
# The race detector leaves out what only computes and takes most of the time under
# it: SQLite, which is C translated to Go, whose memory is no Go memory, so that it
# finds nothing there; and the keys made of passwords (scrypt, argon2), whose memory
# nobody else sees. make check vets.
RACE     := -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc/...=-race=false \
            -gcflags=golang.org/x/crypto/...=-race=false

.PHONY: help build test check demo bench fuzz soak generate tools test-tools clean
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## static binaries in bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

# Random walks are the same ones each time, so that what fails is the change; make
# soak draws new ones. RAPID_SEED=0 does here too.
test: test-tools ## every test, with the race detector and real servers
	RAPID_SEED=$${RAPID_SEED:-1} CGO_ENABLED=1 $(GO) test $(RACE) -vet=off -timeout 15m ./... && raced=0 || raced=$$?; \
	$(GO) test -vet=off -timeout 15m ./internal/sim && exit $$raced

check: tools ## formatting, vet, staticcheck, generated code, import rules, known vulnerabilities
	@scripts/check.sh

demo: ## the main job: real firmware rolled out to 20 agents, then a bad release stopped
	@scripts/demo.sh $(DEMOFLAGS)

bench: build test-tools ## the table of docs/benchmarks.md
	@scripts/bench.sh

fuzz: ## each fuzz target for FUZZTIME (30s)
	@scripts/fuzz.sh

soak: build test-tools ## long runs of kills, simulations, random walks, probes, connections and fuzzing, SOAKTIME (10m) each
	@scripts/soak.sh

generate: tools ## Go code from proto/
	PATH=$(TOOLS):$$PATH buf generate

tools: ## developer tools, pinned by tools/go.mod and tools/package-lock.json
	@scripts/tools.sh

test-tools: ## real servers that the tests start: mosquitto and PostgreSQL (Debian), versitygw (Go)
	@scripts/test-tools.sh

clean:
	rm -rf bin .cache
