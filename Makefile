# nodeagent. `make help` lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
GOFLAGS += -buildvcs=false
export GOFLAGS
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR    ?= /lib/systemd/system
DESTDIR    ?=

# What install installs. The configuration is root's: it may hold a token.
BIN            ?= bin/nodeagent
CONFIG         = $(DESTDIR)$(SYSCONFDIR)/nodeagent/nodeagent.yaml
DEFAULT_CONFIG = sed 's|/etc/nodeagent|$(SYSCONFDIR)/nodeagent|g' systemd/nodeagent.yaml

# The tiers that need no node: every package but those of the node and VM tiers.
UNIT = $$(go list ./... | grep -v -e /test/node -e /test/vm)
NODE_TIMEOUT ?= 20m

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: go
go:
	@hack/require-go.sh

.PHONY: deps-test containerd2 kubernetes
deps-test:
	@hack/install-deps.sh test
containerd2: go deps-test
	@hack/build-containerd2.sh
kubernetes: go deps-test
	@hack/build-kubernetes.sh kube-apiserver kubectl

.PHONY: build
build: go ## one static binary, bin/nodeagent
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/nodeagent ./cmd/nodeagent

.PHONY: run
run: go ## show a node that runs examples/, in namespaces of its own
	@hack/run-demo

.PHONY: verify
verify: go ## formatting, vet, staticcheck, import rules, vulnerabilities
	@hack/verify.sh

# The tiers wait more than they work, for packets that must not come and for
# kernels and guests: they run side by side, the longest first. What a tier
# prints comes when it has ended.
.PHONY: test tiers
test: go deps-test verify ## everything; installs what is missing
	@$(MAKE) --no-print-directory -j3 --output-sync=target tiers
	@echo "test: all tiers passed"
tiers: test-vm test-unit test-node soak-short test-judge

.PHONY: test-short
test-short: go ## unit tests only, for the inner loop
	go test -short $(UNIT)

.PHONY: test-unit
test-unit: go deps-test containerd2 kubernetes ## unit and kernel tiers, and the seeds of every fuzz target
	go test -race -timeout 25m -p 3 -parallel 4 $(UNIT)

.PHONY: test-judge
test-judge: go ## our defaults and validation against k8s.io/kubernetes' own
	go test -C test/kubernetes -timeout 15m ./judge/ ./openapi/

.PHONY: test-node
test-node: go deps-test containerd2 kubernetes ## the real agent on Debian's containerd and on containerd 2
	NODE_CONTAINERD=1.6 go test -race -count=1 -timeout $(NODE_TIMEOUT) -skip '^TestSoak$$' ./test/node
	NODE_CONTAINERD=2.4 go test -race -count=1 -timeout $(NODE_TIMEOUT) -skip '^TestSoak$$' ./test/node

.PHONY: test-vm
test-vm: go deps-test ## systemd, cgroup v2, SCTP and IPVS in a Debian guest under qemu
	@hack/build-vm.sh >/dev/null
	go test -count=1 -timeout 40m ./test/vm

.PHONY: soak-short
soak-short: go deps-test ## the soak with a few kills
	SOAK_KILLS=$${SOAK_KILLS:-8} go test -race -count=1 -timeout 10m -run '^TestSoak$$' ./test/node

.PHONY: soak
soak: go deps-test ## 200 kills of the agent with pods coming and going; all of IPVS's suite
	SOAK_KILLS=$${SOAK_KILLS:-200} go test -race -count=1 -timeout 3h -v -run '^TestSoak$$' ./test/node
	SOAK=1 go test -count=1 -timeout 3h -run '^TestGuest$$/^ipvs' ./test/vm

FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: go ## every fuzz target for FUZZTIME each
	@for pkg in $$(go list -f '{{if .TestGoFiles}}{{.ImportPath}}{{end}}' ./... ); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "fuzz: $$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; done

.PHONY: bench
bench: go deps-test build ## nodeagent, kubelet and the floor side by side; takes about half an hour
	@hack/build-kubernetes.sh kubelet
	NODEAGENT_BIN=$(CURDIR)/bin/nodeagent go test -tags bench -count=1 -timeout 4h -v -run '^TestCompare$$' ./bench

.PHONY: bench-services
bench-services: go deps-test ## Services beside kube-proxy and the bare programs; takes about half an hour
	@hack/build-kubernetes.sh kube-apiserver kube-proxy
	go test -tags bench -count=1 -timeout 4h -v -run '^TestServices$$' ./bench

.PHONY: bench-ipvs
bench-ipvs: go deps-test ## IPVS beside kube-proxy and its bare messages, in the guest of the VM tier
	@hack/build-vm.sh >/dev/null
	@hack/build-kubernetes.sh kube-apiserver kube-proxy
	BENCH_SIZES=$${BENCH_SIZES:-0,100,1000,10000} BENCH_SAMPLES=$${BENCH_SAMPLES:-5} BENCH_LIMIT=$${BENCH_LIMIT:-3m} \
	go test -tags bench -count=1 -timeout 2h -v -run '^TestIPVS$$' ./bench

SKEW ?= 1.34 1.35 1.36
.PHONY: test-skew
test-skew: go deps-test ## Services from older API servers, which are built on demand
	@for v in $(SKEW); do echo "test-skew: kube-apiserver $$v"; \
	  KUBERNETES_MINOR=$$v hack/build-kubernetes.sh kube-apiserver && \
	  KUBERNETES_MINOR=$$v CI=true go test -count=1 -timeout 15m -run '^TestServicesOfAnAPIServer$$' ./test/node || exit 1; done

.PHONY: test-container
TESTS ?= .
test-container: go deps-test ## the node tier inside a privileged container; TESTS=PATTERN for some
	@hack/test-container '$(TESTS)'

.PHONY: install
install: ## binary, unit, configuration and folders, below $(DESTDIR)
	@test -x $(BIN) || { echo "install: run make build first" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(SYSCONFDIR)/nodeagent/manifests $(DESTDIR)$(UNITDIR)
	install -d -m 0700 $(DESTDIR)/var/lib/nodeagent
	install -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/nodeagent
	sed 's|/usr/bin/nodeagent|$(PREFIX)/bin/nodeagent|; s|/etc/nodeagent|$(SYSCONFDIR)/nodeagent|' systemd/nodeagent.service >$(DESTDIR)$(UNITDIR)/nodeagent.service
	chmod 0644 $(DESTDIR)$(UNITDIR)/nodeagent.service
	@umask 077; $(DEFAULT_CONFIG) >$(CONFIG).dist
	@if cmp -s $(CONFIG).dist $(CONFIG) || ! test -e $(CONFIG); then mv $(CONFIG).dist $(CONFIG); \
	else echo "install: kept your $(CONFIG); the new default is nodeagent.yaml.dist beside it"; fi
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; \
	  echo "install: start it with: systemctl enable --now nodeagent"; fi

.PHONY: uninstall
uninstall: ## what install put there, but for a changed configuration and the state
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl disable --now nodeagent 2>/dev/null || true; fi
	rm -f $(DESTDIR)$(PREFIX)/bin/nodeagent $(DESTDIR)$(UNITDIR)/nodeagent.service $(CONFIG).dist
	@if $(DEFAULT_CONFIG) | cmp -s - $(CONFIG); then rm -f $(CONFIG); fi
	@for d in $(DESTDIR)$(SYSCONFDIR)/nodeagent/manifests $(DESTDIR)$(SYSCONFDIR)/nodeagent $(DESTDIR)/var/lib/nodeagent; do \
	  rmdir $$d 2>/dev/null || test ! -e $$d || echo "uninstall: kept $$d: it is not empty"; done
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

.PHONY: deb
deb: build ## a Debian package in dist/
	@hack/build-deb.sh "$(VERSION)"

.PHONY: clean
clean: ## what builds left here; the caches under /var/tmp/nodeagent-build stay
	rm -rf bin dist
	@hack/run-demo stop
