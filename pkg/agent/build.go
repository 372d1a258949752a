package agent

import (
	"context"
	"net"
	"net/netip"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/claims"
	"github.com/nodeagent/nodeagent/pkg/cni"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server"
	"github.com/nodeagent/nodeagent/pkg/source/file"
	"github.com/nodeagent/nodeagent/pkg/source/http"
	"github.com/nodeagent/nodeagent/pkg/source/push"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

const socketName = "nodeagent.sock"

// runner is a source.
type runner interface {
	Run(ctx context.Context, sink store.Sink) error
}

func (a *agent) statePath(name string) string { return filepath.Join(a.cfg.StateDir, name) }

// openStore declares the sources in their order of precedence.
func (a *agent) openStore(revisions *journal.Counter) (*store.Store, error) {
	var decls []store.SourceDecl
	if a.cfg.Manifests != "" {
		decls = append(decls, store.SourceDecl{Name: store.SourceFile, Target: a.cfg.Manifests})
	}
	if a.cfg.ManifestURL != "" {
		decls = append(decls, store.SourceDecl{Name: store.SourceHTTP, Target: http.Shown(a.cfg.ManifestURL)})
	}
	decls = append(decls, store.SourceDecl{Name: store.SourcePush, Target: filepath.Join(a.cfg.RunDir, socketName)})
	return store.Open(store.Options{
		Dir: a.statePath(podsDir), ResourceDir: a.statePath(resourcesDir), SecretDir: secretFolder(a.cfg.RunDir), NodeName: a.cfg.NodeName, Sources: decls, Revisions: revisions,
		Decode: manifest.Decode, Equal: manifest.SemanticEqual, Reconsider: a.reconsider, Clock: time.Now, Log: a.log,
	})
}

func (a *agent) newPush() (*push.Source, error) {
	return push.New(push.Options{
		Dir: a.statePath(objectsDir), NodeName: a.cfg.NodeName, Store: a.store,
		Decode: manifest.Decode, Log: a.log,
	})
}

// sources are the configured ones, ready to run.
func (a *agent) sources() []runner {
	runners := []runner{a.push}
	if a.cfg.Manifests != "" {
		runners = append(runners, file.New(file.Options{
			Path: a.cfg.Manifests, Poll: a.cfg.ManifestsPoll.Duration, NodeName: a.cfg.NodeName, Decode: manifest.Decode, Log: a.log,
		}))
	}
	if a.cfg.ManifestURL != "" {
		runners = append(runners, http.New(http.Options{
			URL: a.cfg.ManifestURL, Header: a.cfg.ManifestURLHeader, CAFile: a.cfg.ManifestURLCA,
			Interval: a.cfg.ManifestURLInterval.Duration, Timeout: a.cfg.ManifestURLTimeout.Duration,
			NodeName: a.cfg.NodeName, Decode: manifest.Decode,
		}))
	}
	return runners
}

func (a *agent) newCNI() (*cni.Manager, error) {
	var cidrs []netip.Prefix
	for _, s := range a.cfg.Network.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		cidrs = append(cidrs, p)
	}
	return cni.New(cni.Options{
		ConfDir: a.cfg.Network.ConfDir, BinDir: a.cfg.Network.BinDir, PodCIDRs: cidrs, Owner: a.instance,
		MinAge: networkAge, Log: a.log,
	})
}

func (a *agent) newVolumes() *volumes.Manager {
	return volumes.New(volumes.Options{
		PodsDir: a.statePath(podsDir), Objects: objects{a.store}, Allocatable: a.allocatable,
		NodeMatches: a.matches, Log: a.log,
	})
}

// matches says whether the node is one that a selector selects.
func (a *agent) matches(s *v1.NodeSelector) bool {
	return pod.MatchesNode(s, a.cfg.NodeName, a.nodeLabels())
}

func (a *agent) newClaims() *claims.Controller {
	return claims.New(claims.Options{Store: a.store, NodeMatches: a.matches, Event: a.events.Event, Clock: time.Now, Log: a.log})
}

func (a *agent) newServer() (*server.Server, error) {
	health := a.cfg.Listen
	if health == "none" {
		health = ""
	}
	return server.New(server.Options{
		Log: a.log, Metrics: a.metrics, Socket: filepath.Join(a.cfg.RunDir, socketName), Health: health, TCP: a.apiOverTCP(),
		NodeName: a.cfg.NodeName, Version: a.o.Build.Version, PodLogDir: a.cfg.PodLogDir,
		Pods: a.store, Push: a.push, Amend: a.store, Resources: a.store, PushResources: a.push, Events: a.events, Streams: streams{a}, Node: a, NodeObject: a.nodeObject, Images: imageAPI{a},
		Stats: a.readStats, CPUs: goruntime.NumCPU(),
		Checks: slices.Concat(a.proxyCheck(), a.clusterChecks()),
	})
}

// apiOverTCP is for kubectl.
func (a *agent) apiOverTCP() server.TCP {
	c := a.cfg.API
	if c.Listen == config.ListenNone {
		return server.TCP{}
	}
	host, _, _ := net.SplitHostPort(c.Listen) // it was validated
	return server.TCP{
		Listen: c.Listen, CertFile: c.TLSCertFile, KeyFile: c.TLSKeyFile, TokenFile: c.TokenFile,
		Dir: a.statePath(config.CredentialsDir), Hosts: append([]string{a.cfg.NodeName, host}, a.cfg.NodeIP...), Optional: c.Listen == config.DefaultAPIListen,
	}
}

// nodeLabels are those that the node has by itself, and those that clients of
// the API gave it.
func (a *agent) nodeLabels() map[string]string {
	labels := a.ownLabels()
	for k, v := range a.nodeObject.Labels() {
		if _, own := labels[k]; !own {
			labels[k] = v
		}
	}
	return labels
}

// ownLabels are the configuration's and those that every node has.
func (a *agent) ownLabels() map[string]string {
	labels := map[string]string{
		"kubernetes.io/hostname": a.cfg.NodeName,
		"kubernetes.io/os":       goruntime.GOOS,
		"kubernetes.io/arch":     goruntime.GOARCH,
	}
	for k, v := range a.cfg.NodeLabels {
		labels[k] = v
	}
	return labels
}
