# Bulkhead. `make help` lists the targets.
#
# Two commands set a fresh Debian 12 machine (Go, root) up by themselves: `make demo` and `make test`.

SHELL       := /bin/bash
.DEFAULT_GOAL := help

SCENARIO    ?= bank
KEEP        ?=
BIN         := bin
TOOLS       := .tools/bin
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO_LDFLAGS  := -s -w -X bulkhead/internal/version.version=$(VERSION)
COMMANDS    := bulkhead bulkhead-agent bulkhead-controller

# Debian packages, by the names of Debian 12.
DEMO_PACKAGES     := postgresql-15 postgresql-client-15
TEST_PACKAGES     := nftables iptables
RIVAL_PACKAGES    := nftables iptables ipset
GENERATE_PACKAGES := clang-19 llvm-19 libbpf-dev linux-libc-dev protobuf-compiler

# Kernel tests are mandatory for root and skipped, with the reason, for anybody else.
REQUIRE     ?= $(if $(filter 0,$(shell id -u)),netns$(comma)bpf$(comma)nftables$(comma)firewalls)
comma       := ,

# A package may take long on a machine that has much else to do; TESTFLAGS are more flags of go test.
TESTFLAGS   ?=
GO_TEST     := go test -timeout 20m $(TESTFLAGS)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the three programs into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 go build -trimpath -ldflags '$(GO_LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

.PHONY: demo
demo: demo-setup build ## watch a breach stay in its compartment (SCENARIO=bank|hospital|factory, KEEP=1)
	$(BIN)/bulkhead lab run $(SCENARIO) --report out/demo-$(SCENARIO).json $(if $(KEEP),--keep)

.PHONY: demo-setup
demo-setup:
	@mkdir -p out
	@if [ "$$(id -u)" = 0 ]; then tools/install-packages $(DEMO_PACKAGES); fi  # without root the lab says what is missing

.PHONY: test
test: build ## run every test (as root also those that need the kernel)
	@if [ "$$(id -u)" = 0 ]; then tools/install-packages $(TEST_PACKAGES); fi
	BULKHEAD_REQUIRE=$(REQUIRE) $(GO_TEST) ./...

.PHONY: race
race: ## run the concurrent parts under the race detector
	@# Short: the tests that only start our programs, which are not built with the detector, are left to `test`.
	$(GO_TEST) -race -short ./internal/core/... ./internal/wire/... ./internal/agent/... ./internal/controller/... ./internal/store/... ./internal/flowstore/...
	@# Of nftables what is shared between goroutines, in namespaces of its own where this is root's, and what needs no kernel.
	BULKHEAD_REQUIRE=$(REQUIRE) $(GO_TEST) -race -short -run '^Test(AtOnce|Port|Table.*|Spans|Blocks|LostEnds)$$' ./internal/dataplane/nft

.PHONY: lint
lint: $(TOOLS)/staticcheck ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	$(TOOLS)/staticcheck ./...

.PHONY: generate
generate: generate-setup $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-connect-go $(TOOLS)/bpf2go ## write the protobuf code and the eBPF objects anew
	PATH=$(CURDIR)/$(TOOLS):$$PATH protoc -Iapi --go_out=. --go_opt=module=bulkhead --connect-go_out=. --connect-go_opt=module=bulkhead $$(cd api && ls bulkhead/v1/*.proto)
	cd internal/dataplane/ebpf && PATH=$(CURDIR)/$(TOOLS):$$PATH go generate ./...

.PHONY: generate-setup
generate-setup:
	@tools/install-packages $(GENERATE_PACKAGES)

.PHONY: generate-check
generate-check: ## fail if the generated code is not what its sources give
	@sums() { find api internal/dataplane/ebpf -type f \( -name '*.pb.go' -o -name '*.connect.go' -o -name 'programs_bpf*' \) | sort | xargs sha256sum; }; \
	before=$$(sums) && $(MAKE) --no-print-directory generate && after=$$(sums) && \
	{ diff <(echo "$$before") <(echo "$$after") || { echo "generated code differs; commit what make generate has written"; exit 1; }; }

.PHONY: bench
bench: build ## run the benchmarks that docs/benchmarks.md records
	@if [ "$$(id -u)" = 0 ]; then tools/install-packages $(RIVAL_PACKAGES); fi
	tools/bench

.PHONY: bench-dataplane
bench-dataplane: ## measure the dataplanes against nftables, iptables and ipset (as root; ROUNDS=20)
	@tools/install-packages $(RIVAL_PACKAGES)
	tools/bench dataplane

$(TOOLS)/%: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	cd tools && GOBIN=$(CURDIR)/$(TOOLS) ./retry go install $$(go list -f '{{.ImportPath}}' tool | grep '/$*$$')

.PHONY: clean
clean: ## remove what the targets made
	rm -rf $(BIN) out .tools
