package podworker

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Classes are the objects that pods name to say how they are run. What is not
// there is errdefs.ErrNotFound.
type Classes interface {
	RuntimeClass(name string) (*nodev1.RuntimeClass, error)
	ServiceAccount(namespace, name string) (*v1.ServiceAccount, error)
	// Priority is the one that a pod's class gives it, or its own.
	Priority(p *v1.Pod) (int32, error)
}

// ground is what a pod's sandbox is made with that its spec only points at.
type ground struct {
	handler   string
	overhead  v1.ResourceList
	firstUser uint32
}

// weighted is the pod with the overhead of its class, as an API server would
// have written it into the spec.
func (g ground) weighted(p *v1.Pod) *v1.Pod {
	if len(g.overhead) == 0 {
		return p
	}
	heavy := *p
	heavy.Spec.Overhead = g.overhead
	return &heavy
}

// findGround looks the pod's class up and gives it users of its own if it wants
// them. What is missing is kubelet's error, and heals when the object comes.
func (m *Manager) findGround(p *v1.Pod) (ground, error) {
	g := ground{overhead: p.Spec.Overhead}
	if err := m.findAccount(p); err != nil {
		return g, err
	}
	if name := p.Spec.PriorityClassName; name != "" {
		if _, err := m.Classes.Priority(p); errors.Is(err, errdefs.ErrNotFound) {
			return g, errdefs.Errorf(runtime.ErrConfig, "no PriorityClass with name %s was found", name)
		}
	}
	if name := p.Spec.RuntimeClassName; name != nil && *name != "" {
		class, err := m.Classes.RuntimeClass(*name)
		if errors.Is(err, errdefs.ErrNotFound) {
			return g, errdefs.Errorf(runtime.ErrConfig, "runtimeclass.node.k8s.io %q not found", *name)
		}
		if err != nil {
			return g, fmt.Errorf("cannot look up RuntimeClass %s: %w", *name, err)
		}
		g.handler = class.Handler
		if class.Overhead != nil && len(g.overhead) == 0 {
			g.overhead = class.Overhead.PodFixed
		}
	}
	var err error
	if p.Spec.HostUsers != nil && !*p.Spec.HostUsers {
		g.firstUser, err = m.userRange(p.UID)
	}
	return g, err
}

// scheduled is the pod as an API server would have it scheduled: with the node
// selector and the tolerations of its runtime class. A class that is not there
// is waited for later on.
func (m *Manager) scheduled(p *v1.Pod) (*v1.Pod, *status.Refusal) {
	if p.Spec.RuntimeClassName == nil || *p.Spec.RuntimeClassName == "" {
		return p, nil
	}
	class, err := m.Classes.RuntimeClass(*p.Spec.RuntimeClassName)
	if err != nil || class.Scheduling == nil {
		return p, nil
	}
	q := *p
	q.Spec.NodeSelector = maps.Clone(p.Spec.NodeSelector)
	for k, v := range class.Scheduling.NodeSelector {
		if own, ok := q.Spec.NodeSelector[k]; ok && own != v {
			return p, rejected(ReasonNodeAffinity, fmt.Sprintf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, own))
		}
		if q.Spec.NodeSelector == nil {
			q.Spec.NodeSelector = map[string]string{}
		}
		q.Spec.NodeSelector[k] = v
	}
	q.Spec.Tolerations = slices.Concat(p.Spec.Tolerations, class.Scheduling.Tolerations)
	return &q, nil
}

// findAccount: there are no tokens without an API server, and so nothing of a
// service account to give to a pod; one that is misspelt is told all the same,
// where kubelet tells it. Every namespace has its default one.
func (m *Manager) findAccount(p *v1.Pod) error {
	name := p.Spec.ServiceAccountName
	if name == "" || name == "default" {
		return nil
	}
	_, err := m.Classes.ServiceAccount(p.Namespace, name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return errdefs.Errorf(errMount, "serviceaccount %q not found in namespace %s", name, p.Namespace)
	}
	return err
}

// The ids that pods with users of their own get lie between those of
// systemd-nspawn and what does not fit into a signed number of 32 bits: nobody
// else on a host hands them out.
const (
	firstUser  = 0x70000000
	userRanges = (1<<31 - firstUser) / runtime.UserRange
)

// userFile holds the first id of the pod's range, in its folder: it is the
// pod's for as long as anything of it is there.
const userFile = "userns"

// userRange is the pod's range, which it keeps over restarts of agent and host.
func (m *Manager) userRange(uid types.UID) (uint32, error) {
	m.users.Lock()
	defer m.users.Unlock()
	own := filepath.Join(m.podDir(uid), userFile)
	first, err := readUsers(own)
	if !errors.Is(err, fs.ErrNotExist) {
		return first, err
	}
	files, err := filepath.Glob(filepath.Join(m.PodsDir, "*", userFile))
	if err != nil {
		return 0, fmt.Errorf("cannot list the user ids of pods: %w", err)
	}
	taken := map[uint32]bool{}
	for _, f := range files {
		n, err := readUsers(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its pod has just ended
		}
		if err != nil {
			return 0, err
		}
		taken[n] = true
	}
	for i := range uint32(userRanges) {
		first := firstUser + i*runtime.UserRange
		if taken[first] {
			continue
		}
		if err := store.WriteFile(own, []byte(strconv.FormatUint(uint64(first), 10)+"\n")); err != nil {
			return 0, fmt.Errorf("cannot note down the user ids of pod %s: %w", uid, err)
		}
		return first, nil
	}
	return 0, fmt.Errorf("all %d ranges of user ids are in use: remove pods with hostUsers: false", userRanges)
}

func readUsers(file string) (uint32, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || n < firstUser || n%runtime.UserRange != 0 {
		return 0, fmt.Errorf("%s does not hold the first of a range of user ids: restore it, or remove its pod", file)
	}
	return uint32(n), nil
}
