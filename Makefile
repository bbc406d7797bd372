# make build    bin/: berth, berth-shim, berth-cni and a pinned runc
# make test     unit tests, then the black-box tests under tests/ (root)
# make demo     a tour on a terminal (root)
# make bench    what a pod costs here, against the bare cost of its parts (root)
# make bench-cri  the CRI calls of Berth and of containerd, in turns (root)
# make bench-node pods through an API server, on a Berth and on a stock node of one cluster (root)
# make peers    bin/peers/: the kubelet and containerd that Berth is tested and measured with
# make cluster NODES=2   a Kubernetes control plane and two Berth nodes on this machine (root);
#               KIND=stock: nodes of kubelet and containerd; NAME=x: one more cluster, beside the one named dev
# make cluster-shell     a shell with kubectl in it; CMD='kubectl get pods -A' runs that instead
# make cluster-down      nothing of it is left
# make conformance FOCUS=... NODES=2   Kubernetes' own e2e suite on such a cluster (root)
# make critest CRITEST=PATH   the validation suite of cri-tools on Berth's runtime (root)
# make lint     gofmt, vet, staticcheck
# make fuzz     every fuzz target for FUZZTIME
# make clean
#
# Set-up is part of the targets: what is missing is installed by scripts/setup,
# which says so.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
# The tests look at the whole machine, and measure.
.NOTPARALLEL:

# sudo resets PATH to directories that hold no Go.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go/bin
# A clone that belongs to someone else than root must still build under sudo.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

GO       ?= go
VERSION  ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# Without the WebAssembly engine that the NRI library would bring: 3 MB, for
# plugins that are programs anyway. And without gRPC's trace pages, nor the
# templates they are made with: see tests/deps.
TAGS     := nri_no_wasm grpcnotrace
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
FUZZTIME ?= 1m

PACKAGES = $(shell $(GO) list ./... | grep -v '^github.com/berth-io/berth/tests/')

.PHONY: all build failpoints testbins peers kubelet try-peers containerd control metrics-server e2e e2e-images cluster-parts cluster cluster-shell cluster-down conformance FORCE lint test unit blackbox demo bench bench-cri bench-node critest fuzz clean setup-build setup-test root

all: build

build: setup-build bin/runc
	$(GOBUILD) -tags '$(TAGS)' -o bin/ ./cmd/berth ./cmd/berth-shim ./cmd/berth-cni

# runc is the only part with cgo: libseccomp compiles the seccomp filters. Static,
# as its releases are: it runs on hosts without libseccomp, and a start and an
# exec, which each execute it twice, take 3 ms less CPU time.
bin/runc: go.mod go.sum | setup-build
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '-s -w -linkmode external -extldflags -static' -tags 'seccomp osusergo netgo' -o $@ github.com/opencontainers/runc

# The same binaries with the failpoints of internal/failpoint compiled in, for
# the crash test.
failpoints: build
	$(GOBUILD) -tags '$(TAGS) failpoints' -o bin/failpoints/ ./cmd/berth ./cmd/berth-shim ./cmd/berth-cni
	ln -sf ../runc bin/failpoints/runc

# Programs that run inside test pods.
testbins: setup-build
	$(GOBUILD) -o bin/tests/ ./tests/images/cmd/...
	gcc -Os -static -s -o bin/tests/pause tests/images/pause/pause.c
	gcc -Os -static -s -o bin/tests/sh tests/images/sh/sh.c

# Peers are what Berth is tested and measured with. They come from modules of
# their own, which the product cannot see, and are built as upstream builds
# releases; bin/peers is also a directory of CNI plugins.
PEER    := CGO_ENABLED=0 $(GO) build -trimpath
CTRD    := github.com/containerd/containerd/v2
PLUGINS := github.com/containernetworking/plugins/plugins
# modversion MODULE DIRECTORY
modversion = $(shell sed -n 's|^[[:space:]]*$(1) \(v[^ ]*\).*|\1|p' $(2)/go.mod)

peers: kubelet containerd

kubelet: bin/peers/kubelet

# For the tests, which go without containerd, a kubelet and a cluster where their
# modules cannot be had. On two cores they take a quarter of an hour to build,
# once.
try-peers: setup-build
	@if [ -e bin/peers/containerd ] || (cd tests/peers && $(GO) list -deps $(CTRD)/cmd/containerd >/dev/null); then \
		$(MAKE) --no-print-directory containerd; \
	else echo "no containerd: its modules could not be had"; fi
	@if [ -e bin/peers/kubelet ] || (cd tests/tools && $(GO) list -deps k8s.io/kubernetes/cmd/kubelet >/dev/null); then \
		$(MAKE) --no-print-directory kubelet control; \
	else echo "no kubelet and no cluster: their modules could not be had"; fi
	@if [ -e bin/peers/metrics-server ] || (cd tests/metricsserver && $(GO) list -deps sigs.k8s.io/metrics-server/cmd/metrics-server >/dev/null); then \
		$(MAKE) --no-print-directory metrics-server; \
	else echo "no metrics-server: its modules could not be had"; fi

containerd: bin/peers/containerd bin/peers/containerd-shim-runc-v2 bin/peers/runc \
	$(addprefix bin/peers/,bridge host-local loopback portmap)

# The control plane, for clusters.
CONTROL := kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubeadm kubectl
control: $(addprefix bin/peers/,etcd coredns $(CONTROL))

# What scales workloads, and kubectl top, ask.
metrics-server: bin/peers/metrics-server

# What the e2e suite needs beside a cluster.
e2e: $(addprefix bin/peers/,e2e.test ginkgo agnhost nonewprivs regression-issue-74839 sample-apiserver)

K8S      = $(call modversion,k8s.io/kubernetes,tests/tools)
K8SX    := -X k8s.io/component-base/version
# The suite reads the numbers, too.
K8SFLAGS = -s -w $(K8SX).gitVersion=$(K8S) $(K8SX).gitMajor=1 $(K8SX).gitMinor=$(word 2,$(subst ., ,$(K8S)))
TOOLS   := tests/tools/go.mod tests/tools/go.sum

$(addprefix bin/peers/,kubelet $(CONTROL)): bin/peers/%: $(TOOLS) | setup-build
	cd tests/tools && $(PEER) -ldflags '$(K8SFLAGS)' -o $(CURDIR)/$@ k8s.io/kubernetes/cmd/$*
bin/peers/e2e.test: $(TOOLS) | setup-build
	cd tests/tools && CGO_ENABLED=0 $(GO) test -c -trimpath -ldflags '$(K8SFLAGS)' -o $(CURDIR)/$@ k8s.io/kubernetes/test/e2e
bin/peers/ginkgo: $(TOOLS) | setup-build
	cd tests/tools && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ github.com/onsi/ginkgo/v2/ginkgo
$(addprefix bin/peers/,agnhost nonewprivs regression-issue-74839): bin/peers/%: $(TOOLS) | setup-build
	cd tests/tools && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ k8s.io/kubernetes/test/images/$*
# What agnhost's porter serves TLS with.
bin/peers/localhost.crt bin/peers/localhost.key: $(TOOLS) | setup-build
	mkdir -p $(@D) && cp "$$(cd tests/tools && $(GO) list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost/porter/$(@F)" $@ && chmod 644 $@
bin/peers/sample-apiserver: $(TOOLS) | setup-build
	cd tests/tools && $(PEER) -ldflags '$(K8SFLAGS)' -o $(CURDIR)/$@ k8s.io/sample-apiserver
bin/peers/etcd: tests/etcd/go.mod tests/etcd/go.sum | setup-build
	cd tests/etcd && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ go.etcd.io/etcd/server/v3
bin/peers/coredns: tests/coredns/go.mod tests/coredns/go.sum | setup-build
	cd tests/coredns && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ github.com/coredns/coredns

bin/peers/metrics-server: tests/metricsserver/go.mod tests/metricsserver/go.sum | setup-build
	cd tests/metricsserver && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ sigs.k8s.io/metrics-server/cmd/metrics-server

bin/peers/containerd bin/peers/containerd-shim-runc-v2: bin/peers/%: tests/peers/go.mod tests/peers/go.sum | setup-build
	cd tests/peers && $(PEER) -o $(CURDIR)/$@ -tags 'urfave_cli_no_docs $(SHIMTAGS)' \
		-ldflags '-s -w -X $(CTRD)/version.Version=$(call modversion,$(CTRD),tests/peers)' $(CTRD)/cmd/$*
bin/peers/containerd-shim-runc-v2: SHIMTAGS = no_grpc

bin/peers/bridge bin/peers/loopback: bin/peers/%: tests/peers/go.mod tests/peers/go.sum | setup-build
	cd tests/peers && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ $(PLUGINS)/main/$*
bin/peers/host-local: tests/peers/go.mod tests/peers/go.sum | setup-build
	cd tests/peers && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ $(PLUGINS)/ipam/host-local
bin/peers/portmap: tests/peers/go.mod tests/peers/go.sum | setup-build
	cd tests/peers && $(PEER) -ldflags '-s -w' -o $(CURDIR)/$@ $(PLUGINS)/meta/portmap

bin/peers/runc: bin/runc
	mkdir -p $(@D) && ln -sfn ../runc $@

lint: setup-build
	@out=$$(gofmt -l agent cmd cni cri csi internal systemd tests); \
		[ -z "$$out" ] || { echo "gofmt: run gofmt -w on:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./...
	$(GO) tool staticcheck ./...

test: root build failpoints testbins setup-test unit blackbox

# The end of a log says what failed, and why: it may be all that is kept of it.
FAILURES = $(GO) run ./tests/failures

unit: setup-build
	$(GO) test $(PACKAGES) 2>&1 | $(FAILURES)

# One package at a time: each looks at the whole machine for what it left. The
# virtual machine comes last and says so when there is none.
blackbox: export BERTH_TEST_BIN = $(CURDIR)/bin
blackbox: root build failpoints testbins try-peers setup-test
	$(GO) test -count=1 -p 1 -parallel 8 -timeout 60m $$($(GO) list ./tests/... | grep -v '/tests/vm$$') 2>&1 | $(FAILURES)
	$(GO) test -count=1 -v -timeout 60m ./tests/vm 2>&1 | $(FAILURES)

demo: root build testbins setup-test
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/demo

bench: root build testbins setup-test
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/bench

# Berth's runtime and containerd, in turns.
bench-cri: root build testbins containerd setup-test
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/benchcri

# A Berth and a stock node in one cluster.
bench-node: root build testbins peers control setup-test
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/benchnode

# CRITEST is a binary of critest, v1.36 or later. FOCUS and SKIP select specs by
# name, NRI= leaves those of NRI out, LOG=FILE keeps the suite's own output.
# CONTAINERD=DIRECTORY runs it on the containerd there instead, with CNI plugins
# beside it; ARGS are more arguments of critest.
CRITEST ?=
FOCUS   ?=
SKIP    ?=
NRI     ?= 1
critest: root build testbins
	@scripts/setup critest
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/critest -critest '$(CRITEST)' -focus '$(FOCUS)' -skip '$(SKIP)' \
		-nri=$(if $(NRI),true,false) -keep '$(LOG)' -containerd '$(CONTAINERD)' -- $(ARGS)

NAME  ?= dev
NODES ?= 2
KIND  ?= berth
CLUSTERCTL = bin/clusterctl

$(CLUSTERCTL): FORCE
	@$(GOBUILD) -o $@ ./tests/clusterctl
FORCE:

# What a cluster stands on.
cluster-parts: root build testbins control $(CLUSTERCTL) $(if $(filter stock,$(KIND)),peers)
	@scripts/setup test

cluster: cluster-parts
	$(CLUSTERCTL) up -name '$(NAME)' -nodes $(NODES) -kind $(KIND) $(if $(wildcard out/images/index.json),-images out/images)

cluster-shell: root $(CLUSTERCTL)
	@$(CLUSTERCTL) shell -name '$(NAME)' $(CMD)

cluster-down: root $(CLUSTERCTL)
	$(CLUSTERCTL) down -name '$(NAME)'

# FOCUS and SKIP select specs by name; without them, those for conformance that
# may run beside others. CLUSTER=NAME uses a cluster that is there.
CLUSTER ?=
REPORT  ?= out/conformance
conformance: cluster-parts e2e e2e-images
	BERTH_TEST_BIN=$(CURDIR)/bin $(GO) run ./tests/conformance -nodes $(NODES) -kind $(KIND) -cluster '$(CLUSTER)' -report '$(REPORT)' \
		$(if $(FOCUS),-focus '$(FOCUS)') $(if $(SKIP),-skip '$(SKIP)') -- $(ARGS)

e2e-images: out/images/index.json

out/images/index.json: $(addprefix bin/peers/,agnhost localhost.crt localhost.key coredns etcd nonewprivs regression-issue-74839 sample-apiserver) \
		$(wildcard tests/images/*.go tests/images/sh/* tests/images/cmd/hostpathplugin/*) | $(CLUSTERCTL) testbins
	@scripts/setup conformance
	$(CLUSTERCTL) images out/images

fuzz:
	@$(GO) list ./... | while read -r pkg; do \
		for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg"; \
		done; done

clean:
	rm -rf bin out

setup-build:
	@scripts/setup build

setup-test: root
	@scripts/setup test

root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root, for namespaces, mounts and cgroups: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
