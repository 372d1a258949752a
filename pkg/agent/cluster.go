package agent

import (
	"k8s.io/utils/clock"

	"github.com/nodeagent/nodeagent/pkg/server"
	"github.com/nodeagent/nodeagent/pkg/source/apiserver"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// newCluster makes what follows the API server of the kubeconfig; nil without
// one, or when Services are left to somebody else.
func (a *agent) newCluster() *apiserver.Source {
	if a.cfg.Kubeconfig == "" || !a.servesServices() {
		return nil
	}
	return apiserver.New(apiserver.Options{
		Kubeconfig: a.cfg.Kubeconfig, NodeName: a.cfg.NodeName, UserAgent: "nodeagent/" + a.o.Build.Version,
		Sink: a.proxy, Clock: clock.RealClock{}, Log: a.log,
	})
}

// sourceStates are those of all sources, the API server last.
func (a *agent) sourceStates() []store.SourceState {
	all := a.store.Sources()
	if a.cluster != nil {
		all = append(all, a.cluster.State())
	}
	return all
}

// allTried says that every source was read once, well or not.
func (a *agent) allTried() bool {
	return a.store.AllTried() && (a.cluster == nil || a.cluster.State().Tried)
}

// clusterChecks are lines of readyz. An API server that is lost is one, though
// everything goes on as it is: somebody should know.
func (a *agent) clusterChecks() []server.Check {
	if a.cluster == nil {
		return nil
	}
	return []server.Check{{Name: apiserver.Name, Check: a.cluster.Err}}
}
