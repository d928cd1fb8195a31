# Two commands do all the set-up on a fresh machine: `make demo` and `make check`. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
export GOFLAGS := -buildvcs=false
export PATH := $(CURDIR)/bin:$(PATH)

VERSION ?= dev
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/bulwark-mesh/bulwark/pkg/version.Version=$(VERSION) -X github.com/bulwark-mesh/bulwark/pkg/version.Commit=$(COMMIT)
MODULES := pkg pilot citadel mixer agent cni meshctl manifests e2e tools
BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
CLUSTER ?= local

comma := ,

# What a command needs and the machine may lack: $(call need,command,Debian package).
need = command -v $(1) >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2); }

##@ Building
.PHONY: build tools images generate
build: generate ## build every binary into bin/
	$(BUILD) -o bin/ ./pilot/cmd/pilot ./citadel/cmd/citadel ./mixer/cmd/mixer ./agent/cmd/agent ./cni/cmd/cni ./meshctl/cmd/meshctl ./e2e/cmd/sample ./e2e/cmd/demo ./tools/cmd/images

CRDS := manifests/charts/bulwark/crds/istio.yaml
generate: $(CRDS) ## take the CRDs that Bulwark has to do with from the Istio API's module

$(CRDS): pkg/go.mod Makefile
	@mkdir -p $(@D)
	@cd pkg && go mod download istio.io/api
	awk 'BEGIN {RS = ORS = "---\n"} /\n  (group: security|name: (sidecars|serviceentries|destinationrules)\.networking)\.istio\.io\n/' "$$(cd pkg && go list -m -f '{{.Dir}}' istio.io/api)/kubernetes/customresourcedefinitions.gen.yaml" > $@

.PHONY: proto proto-check
proto: ## generate Go code from the protobuf definitions
	@$(call need,protoc,protobuf-compiler)
	cd pkg && GOBIN=$(CURDIR)/bin go install google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	cd pkg && protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative api/telemetry/v1/telemetry.proto api/identity/v1/identity.proto api/node/v1/node.proto api/pilot/v1/pilot.proto

proto-check: proto ## fail when generated code is not what the definitions generate
	git diff --exit-code -- pkg/api

# The filter that closes open connections, in C as a WebAssembly module. What is checked in is what these compilers make of it; a test compares sums, so
# that no other machine needs them, or those of the same version.
CLOSER := pkg/closer
.PHONY: closer
closer: ## compile the filter that closes connections which new policies forbid
	@$(call need,clang,clang)
	@$(call need,wasm-ld,lld)
	clang --target=wasm32 -mbulk-memory -fno-builtin -Oz -Wall -Wextra -Wno-unused-parameter -nostdlib -Wl,--no-entry -Wl,--allow-undefined -Wl,--strip-all -o $(CLOSER)/closer.wasm $(CLOSER)/source/closer.c
	chmod 0644 $(CLOSER)/closer.wasm
	cd $(CLOSER)/source && sha256sum *.c *.h ../closer.wasm > closer.sum

# A tag says what is in the image: with the version "dev" it is made of the binaries, so that what was built anew is
# rolled out anew.
PROGRAMS := bin/pilot bin/citadel bin/mixer bin/agent bin/cni bin/sample
images: build ## build the images as OCI archives in bin/oci, without a container engine
	@if [ "$(VERSION)" = dev ]; then echo "dev-$$(cat $(PROGRAMS) | sha256sum | cut -c1-12)"; else echo "$(VERSION)"; fi > bin/tag
	@[ -n "$${BULWARK_ENVOY:-}" ] || $(call need,pip3,python3-pip)
	bin/images build --version "$$(cat bin/tag)"

##@ Cluster
.PHONY: cluster cluster-down bin/cluster
bin/cluster:
	GOWORK=off go -C tools/cluster build -o ../../bin/cluster .

cluster: bin/cluster ## start a real Kubernetes on this machine (or use the running one); IP_FAMILIES=dual for IPv6, too
	bin/cluster up

cluster-down: bin/cluster ## stop it and remove everything that it made
	bin/cluster down

##@ Using
.PHONY: demo demo-down
ifeq ($(CLUSTER),external)
demo: images ## prove the mesh on the cluster of KUBECONFIG, which can pull the images (see README.md)
	bin/demo --tag "$$(cat bin/tag)" $(if $(REGISTRY),--registry $(REGISTRY))
demo-down: build
	bin/demo --down
else
demo: images cluster ## prove the mesh on a cluster of this machine
	bin/cluster load bin/oci/*.tar
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/demo --tag "$$(cat bin/tag)"
demo-down: cluster-down
endif

##@ Checking
.PHONY: check fmt-check tidy-check vet lint test e2e
check: fmt-check tidy-check vet lint proto-check test e2e demo-twice ## everything that a change must pass
	@echo "check: all passed"

fmt-check:
	@unformatted=$$(gofmt -l $(MODULES)); if [ -n "$$unformatted" ]; then echo "gofmt -w these:" >&2; echo "$$unformatted" >&2; exit 1; fi

tidy-check:
	@for m in $(MODULES) tools/cluster tools/helm tools/nats tools/kafka tools/opa; do GOWORK=off go -C $$m mod tidy -diff >/dev/null || { echo "go mod tidy in $$m" >&2; exit 1; }; done

vet: generate
	go vet $(addsuffix /...,$(addprefix ./,$(MODULES)))
	GOWORK=off go -C tools/cluster vet ./...
	GOWORK=off go -C tools/kafka vet ./...

lint: generate ## staticcheck, pinned as a tool of tools/
	go build -C tools -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck $(addsuffix /...,$(addprefix ./,$(MODULES)))

# Without the cache (-count=1): it does not see a change in a file of another module, which some tests read.
test: images ## unit, golden and integration tests with the race detector
	@$(call need,gcc,gcc libc6-dev)
	CGO_ENABLED=1 BULWARK_ENVOY=$$(bin/images envoy-path) go test -race -count=1 $(addsuffix /...,$(addprefix ./,$(filter-out e2e,$(MODULES)))) ./e2e/internal/... ./e2e/cmd/... ./e2e/applications
	go test -count=1 -run 'StarvesNobody|StallIsBounded' ./citadel/internal/run # they measure, which the race detector would spoil
	BULWARK_ENVOY=$$(bin/images envoy-path) go test -count=1 -run 'InEveryWorld|IncrementalEqualsFresh|EnvoyAndEvaluatorAgree' ./pkg/deltaxds ./pkg/nodexds ./pilot/internal/featuretest ./pilot/internal/translate # as often as the race detector is too slow for
	go test -count=1 ./pkg/authz/... # with all the rounds of random tests
	GOWORK=off go -C tools/cluster test -count=1 ./...

e2e: images cluster bin/helm ## the claims, on a real cluster with real proxies
	bin/cluster load bin/oci/*.tar
	cd e2e && KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -v -count=1 -timeout 45m . -tag "$$(cat ../bin/tag)"
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/meshctl install --reset --set image.tag="$$(cat bin/tag)"
	BULWARK_TEST_KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -count=1 -run 'RealAPIServer|StoredBadPolicy' ./citadel/internal/origin ./citadel/internal/issue ./pilot/internal/status

.PHONY: e2e-dual
e2e-dual: images bin/cluster ## what only a cluster of IPv4 and IPv6 can show, on one that is made for it (in the place of one that runs) and removed
	trap 'bin/cluster down' EXIT; bin/cluster up --ip-families dual; bin/cluster load bin/oci/*.tar; \
		KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -C e2e -v -count=1 -timeout 20m -run 'DualStack|LoadBalancers' . -tag "$$(cat bin/tag)"

# The image of real programs: Debian's packages, and what Debian does not have. It is large and changes seldom, so only this target builds it.
APPLICATIONS := bin/applications/nats bin/applications/kafka bin/applications/opa
bin/applications/nats: tools/nats/go.mod
	CGO_ENABLED=0 GOWORK=off go -C tools/nats build -trimpath -ldflags '-s -w' -o ../../$@ github.com/nats-io/natscli/nats
bin/applications/kafka: tools/kafka/go.mod tools/kafka/main.go
	CGO_ENABLED=0 GOWORK=off go -C tools/kafka build -trimpath -ldflags '-s -w' -o ../../$@ .

bin/applications/opa: tools/opa/go.mod
	CGO_ENABLED=0 GOWORK=off go -C tools/opa build -trimpath -ldflags '-s -w' -o ../../$@ github.com/open-policy-agent/opa-envoy-plugin/cmd/opa-envoy-plugin

PROGRAM ?= .
.PHONY: applications
applications: images cluster $(APPLICATIONS) ## real programs between pods of the mesh, each with its own client's self-test (docs/applications.md); one with PROGRAM=redis
	@$(call need,mmdebstrap,mmdebstrap)
	bin/images applications --binaries $(subst $() $(),$(comma),$(APPLICATIONS)) > bin/applications/tag
	bin/cluster load bin/oci/*.tar bin/applications/image.tar
	cd e2e && KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -v -count=1 -timeout 30m ./applications -run 'Test(Programs|Authorizers|Balancers)/$(PROGRAM)' -tag "$$(cat ../bin/tag)" -image "$$(cat ../bin/applications/tag)"

bin/helm: tools/helm/go.mod
	GOWORK=off go -C tools/helm build -o ../../bin/helm helm.sh/helm/v4/cmd/helm

.PHONY: demo-twice
demo-twice: images cluster ## the demo where one was killed in the middle, and again where it has run
	bin/cluster load bin/oci/*.tar
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig timeout -s KILL 25 bin/demo --tag "$$(cat bin/tag)" || true
	for run in first second; do KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/demo --tag "$$(cat bin/tag)"; done

FUZZTIME ?= 1h
EACH ?= 20s
.PHONY: fuzz
fuzz: build ## every fuzz target for EACH (20s), whose seeds run with the tests; then new policies and requests for FUZZTIME (1h) in Envoy and in the evaluator
	@[ -n "$${BULWARK_ENVOY:-}" ] || $(call need,pip3,python3-pip)
	@grep -rn --include=*_test.go -o 'func Fuzz[A-Za-z0-9]*' $(MODULES) | while IFS=: read -r file _ func; do \
		echo "$${func#func } in $$(dirname $$file)"; go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(EACH) ./$$(dirname $$file) || exit 1; done
	BULWARK_ENVOY=$$(bin/images envoy-path) go test -count=1 -timeout 0 -run EnvoyAndEvaluatorAgree ./pilot/internal/translate -lasting $(FUZZTIME)

.PHONY: soak
soak: images cluster ## the rotations under traffic at their full length, five minutes each, ten minutes of Services that come and go, 50 pods replaced
	bin/cluster load bin/oci/*.tar
	cd e2e && KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -v -count=1 -timeout 90m . -run 'Rotate|Rotation|NoProxyIsStuck|ACrowd' -soak 5m -churn 10m -crowd 50 -tag "$$(cat ../bin/tag)"

.PHONY: bench bench-scale bench-install
bench: images cluster ## measure all but the installation (docs/benchmarks.md); installs Bulwark if it is not there
	bin/cluster load bin/oci/*.tar
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/meshctl install --reset --set image.tag="$$(cat bin/tag)" --set '$(BENCH_AUTHORIZER)'
	go build -o bin/bench ./tools/bench
	BULWARK_TEST_KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -run '^$$' -bench . -benchtime 2s ./citadel/internal/issue ./agent/internal/pods
	for what in policy "policy --services 1000" dataplane "dataplane --vary= --add rs256,es256,custom-elsewhere,custom" memory identity; do KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/bench $$what; done
	$(BENCH_SCALE)
	$(BENCH_REQUESTS)

# Of the benchmarks' own namespace: what policies of action CUSTOM ask, as the installation has to know it.
BENCH_AUTHORIZER = extensionProviders[0].name=bench,extensionProviders[0].envoyExtAuthzGrpc.service=authorizer.bulwark-bench.svc.cluster.local,extensionProviders[0].envoyExtAuthzGrpc.port=9191

# Pilot and the agents with 200 proxies whose workloads take tokens and ask an external authorizer, too.
BENCH_REQUESTS = bin/bench xds --kubeconfig $(CURDIR)/.cluster/kubeconfig --world closed --services 1000 --requests --envoy=false

# Pilot and the agents with 200 proxies, in both worlds, as 250, 1,000 and 4,000 services; then with 30 pods on each node.
BENCH_SCALE = bin/bench xds --kubeconfig $(CURDIR)/.cluster/kubeconfig --world open,closed --growth 250,1000,4000 --dense 30
bench-scale: images cluster ## measure Pilot at scale alone, in both worlds (more than an hour); installs Bulwark if it is not there
	bin/cluster load bin/oci/*.tar
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/meshctl install --reset --set image.tag="$$(cat bin/tag)"
	go build -o bin/bench ./tools/bench
	$(BENCH_SCALE)
	$(BENCH_REQUESTS)

bench-install: images cluster ## measure the installation: uninstalls and installs three times
	bin/cluster load bin/oci/*.tar
	go build -o bin/bench ./tools/bench
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig bin/bench install --set image.tag="$$(cat bin/tag)"

.PHONY: mutate
mutate: ## show that tests fail when a protection is switched off (about half an hour)
	go run ./e2e/cmd/mutate

.PHONY: help
help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
