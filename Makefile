# Every command that a person or CI runs. The tools are pinned here and built into the cache, so that go.mod holds only what
# the program needs.

CACHE         ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ledgerline
GOLANGCI_LINT := v2.15.0
GOFUMPT       := v0.12.0
GOVULNCHECK   := v1.9.0

# Packages tested at once, and the bound on one package's tests: starting engines and killing processes takes minutes at
# most, so a test that hangs is seen.
TEST_PARALLEL ?= 2
TEST_TIMEOUT  ?= 30m
# What to test, and further flags: make test PACKAGES=./ledger/... TEST_FLAGS='-run Replay -v'
PACKAGES      ?= ./...
TEST_FLAGS    ?=
# What make up starts: one server of each engine; three Kafka nodes with Redis Sentinel, or with a Redis Cluster. NODES=1 starts
# a master, two slaves and nginx, too.
TOPOLOGY      ?= single
NODES         ?=
# How long make chaos goes on beginning rounds, keeps Kafka away, and soaks.
CHAOS_FOR     ?= 1h
CHAOS_BOUNDED ?= 10m
CHAOS_SOAK    ?= 1h
CHAOS_FLAGS   ?=
# The packages whose SQL must hold on MySQL as well as on MariaDB.
MYSQL_PACKAGES ?= ./ledger/sqlstore/... ./ledger/usagelog/...

GO_TEST = go test -p $(TEST_PARALLEL) -timeout $(TEST_TIMEOUT) $(TEST_FLAGS)

.PHONY: build test chaos race sim histories fuzz lint fmt vuln bench bench-compare bench-limits bench-consumers bench-growth bench-steps demo up down status engines test-mysql clean

build: ## the program: bin/ledgerline
	go build -trimpath -o bin/ledgerline ./cmd/ledgerline

# One set of engines serves the whole run; it is stopped when the run ends, however it ends.
test: bin/local ## vet, then all tests: unit, conformance, golden, fuzz seeds, end to end on embedded and on real engines
	go vet $(PACKAGES)
	cd compose/local/chserver && go vet ./... && go test ./...
	bin/local run -- $(GO_TEST) $(PACKAGES)

chaos: ## everything breaks under traffic, in the order of a seed (CHAOS_FLAGS='-chaos.seed=N'); writes compose/e2e/README.md's table
	go test ./compose/e2e -run 'TestChaos$$|TestRollingUpdate|TestKafkaAwayAtFullLoad|TestSoak' -count=1 -v -parallel 1 -timeout 24h \
		-chaos.for=$(CHAOS_FOR) -chaos.bounded=$(CHAOS_BOUNDED) -chaos.soak=$(CHAOS_SOAK) -chaos.table $(CHAOS_FLAGS)

race: bin/local ## the tests under the race detector
	bin/local run -- $(GO_TEST) -race $(PACKAGES)

# How long make fuzz runs each target, or how many inputs it tries. Go would spend up to a minute on making one input smaller, and that is all of it.
FUZZTIME ?= 10s
FUZZMIN  ?= 100x

fuzz: ## every decoder on hostile input, from the committed corpus on; FUZZTIME=10s, or 2000x inputs, for each target
	@grep -ro --include=*_test.go '^func Fuzz[A-Za-z0-9_]*' . | sed 's|/[^/]*_test.go:func | |' | sort | while read -r package target; do \
		echo "$$package $$target"; \
		go test "$$package" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime $(FUZZMIN) || exit 1; \
	done

# Histories of make sim, and what else it is told: make sim SEED=7 SIM_FLAGS=-calls
HISTORIES ?= 10000
SIM_FLAGS ?=

histories: ## the first half of make sim: HISTORIES=10000 random histories
	go test ./compose/sim -count 1 -v -timeout 30m -run 'Histories$$' -histories $(HISTORIES) $(SIM_FLAGS)

ifdef SEED
sim: ## one history of the simulation, printed
	go test ./compose/sim -count 1 -run Histories -seed $(SEED) $(SIM_FLAGS)
else
sim: histories ## the shipping packages under a seeded adversary: random histories, then one mistake after the other planted and found
	go test ./compose/sim -count 1 -v -timeout 30m -run MistakesAreFound -blind
endif

bench: build bin/local ## what it costs: direct, a bare reverse proxy, and the relay, on embedded and on real engines
	LEDGERLINE_KAFKA_JVM='-XX:+UseG1GC' bin/local run -- bin/ledgerline bench $(BENCH_FLAGS)

# The other revision is built from a work tree of its own, which goes again. README.md's table of figures is written anew.
bench-compare: build bin/local ## BASE=<rev>: both revisions in turn in one run, ratios with their spread, and the README's figures
	@test -n "$(BASE)" || { echo "make bench-compare BASE=<rev>: the revision to compare with is needed"; exit 2; }
	rm -rf bin/base-tree && git worktree prune && git worktree add --detach bin/base-tree $(BASE)
	cd bin/base-tree && go build -trimpath -o ../base ./cmd/ledgerline; code=$$?; cd ../.. && git worktree remove --force bin/base-tree; exit $$code
	LEDGERLINE_KAFKA_JVM='-XX:+UseG1GC' bin/local run -- bin/ledgerline bench -base bin/base -readme README.md $(BENCH_FLAGS)

bench-consumers: build bin/local ## the journal, the projections and replay in events per CPU-second, and that writes grow with accounts
	LEDGERLINE_KAFKA_JVM='-XX:+UseG1GC' bin/local run -- bin/ledgerline bench consumers $(BENCH_FLAGS)

bench-growth: build ## cost per request with more users, tokens and channels; memory and start on a million tokens (minutes)
	bin/ledgerline bench growth $(BENCH_FLAGS)

bench-steps: build bin/local ## where each microsecond of the relay goes, from profiles at 1, 32 and 128 clients; writes relay/README.md's tables
	LEDGERLINE_KAFKA_JVM='-XX:+UseG1GC' bin/local run -- bin/ledgerline bench steps -readme relay/README.md $(BENCH_FLAGS)

bench-limits: build ## what the tables do not show: a lone client, 1,000 and 5,000 streams, 10,000 idle connections, overload
	bin/ledgerline bench -only direct,proxy,embedded -measure latency,streams,idle,overload $(BENCH_FLAGS)
	bin/ledgerline bench -only embedded -measure streams -streams 5000 -hold 60s $(BENCH_FLAGS)

demo: build ## a relay with a mock upstream and traffic, nothing else needed
	bin/ledgerline demo

up: bin/local $(if $(NODES),build) ## start the engines on loopback and print the environment; TOPOLOGY=single|sentinel|cluster, NODES=1 for nodes and nginx, too
	bin/local up -topology $(TOPOLOGY) $(if $(NODES),-nodes bin/ledgerline)

down: bin/local ## end what make up started; their data stays
	bin/local down

status: bin/local ## what of it runs
	bin/local status

engines: bin/local ## install the engines into the cache
	bin/local install

test-mysql: bin/local ## the tests that write SQL, on MySQL in place of MariaDB (Debian and its relatives)
	bin/local run -mysql -- $(GO_TEST) $(MYSQL_PACKAGES)

# govulncheck ends with 3 when it found something, and with 1 when it cannot reach its database, which is no finding.
lint: $(CACHE)/golangci-lint-$(GOLANGCI_LINT) $(CACHE)/gofumpt-$(GOFUMPT) vuln ## linters, format, known vulnerabilities
	$(CACHE)/golangci-lint-$(GOLANGCI_LINT) run ./...
	cd compose/local/chserver && $(CACHE)/golangci-lint-$(GOLANGCI_LINT) run -c ../../../.golangci.yml ./...
	@unformatted=$$($(CACHE)/gofumpt-$(GOFUMPT) -l .); if [ -n "$$unformatted" ]; then echo "not gofumpt-formatted (make fmt):"; echo "$$unformatted"; exit 1; fi

vuln: $(CACHE)/govulncheck-$(GOVULNCHECK)
	@$(CACHE)/govulncheck-$(GOVULNCHECK) ./... || { code=$$?; if [ $$code -eq 3 ]; then exit 3; fi; echo "govulncheck: not checked (exit code $$code)"; }

fmt: $(CACHE)/golangci-lint-$(GOLANGCI_LINT) ## gofumpt and the order of imports
	$(CACHE)/golangci-lint-$(GOLANGCI_LINT) fmt ./...

clean: ## build output; engines and tools stay in the cache
	rm -rf bin

bin/local: $(wildcard compose/local/*.go ledger/ledgertest/engines/*.go ledger/ledgertest/engines/kafka/*) go.mod
	go build -o $@ ./compose/local

# A tool is built under a name that holds its version: another version is another file.
$(CACHE)/golangci-lint-$(GOLANGCI_LINT):
	$(call tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT),golangci-lint)

$(CACHE)/gofumpt-$(GOFUMPT):
	$(call tool,mvdan.cc/gofumpt@$(GOFUMPT),gofumpt)

$(CACHE)/govulncheck-$(GOVULNCHECK):
	$(call tool,golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK),govulncheck)

define tool
	@echo "building $(1)"
	@mkdir -p $(CACHE) && tmp=$$(mktemp -d) && GOBIN=$$tmp go install $(1) && mv $$tmp/$(2) $@ && rmdir $$tmp
endef
