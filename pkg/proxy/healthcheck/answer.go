package healthcheck

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// toBeDeletedTaint is what the cluster autoscaler puts on a node that it is
// about to remove.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// health is when the kernel was last told, and since when a change waits for it.
type health struct{ updated, queued time.Time }

// status is the body of /healthz and /livez.
type status struct {
	LastUpdated  time.Time                        `json:"lastUpdated"`
	CurrentTime  time.Time                        `json:"currentTime"`
	NodeEligible *bool                            `json:"nodeEligible,omitempty"`
	Healthy      bool                             `json:"healthy"`
	Status       map[corev1.IPFamily]familyStatus `json:"status,omitempty"`
}

type familyStatus struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// Queued says that there is a change that the kernel has yet to be told.
func (s *Server) Queued() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.health.queued.IsZero() {
		s.health.queued = s.opts.Now()
	}
}

// Updated says that the kernel knows everything.
func (s *Server) Updated() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = health{updated: s.opts.Now()}
}

// SetNode says how the node is; nil is that it was deleted.
func (s *Server) SetNode(node *corev1.Node) {
	eligible := node != nil && node.DeletionTimestamp.IsZero()
	if eligible {
		for _, t := range node.Spec.Taints {
			eligible = eligible && t.Key != toBeDeletedTaint
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eligible = eligible
}

// Healthy says that no change has waited too long. A proxy that has not begun is healthy.
func (s *Server) Healthy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthy()
}

func (s *Server) healthy() bool {
	h := s.health
	return h.updated.IsZero() || h.queued.IsZero() || s.opts.Now().Sub(h.queued) < s.opts.Timeout
}

func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	st, _ := s.status()
	s.answer(w, "/livez", st.Healthy, st)
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	st, eligible := s.status()
	st.NodeEligible = &eligible
	s.answer(w, "/healthz", st.Healthy && eligible, st)
}

func (s *Server) status() (st status, eligible bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st = status{LastUpdated: s.health.updated, CurrentTime: s.opts.Now(), Healthy: s.healthy()}
	if !s.health.updated.IsZero() {
		f := familyStatus{s.health.updated, st.Healthy}
		st.Status = map[corev1.IPFamily]familyStatus{corev1.IPv4Protocol: f, corev1.IPv6Protocol: f}
	}
	return st, s.eligible
}

func (s *Server) answer(w http.ResponseWriter, path string, ok bool, st status) {
	code := http.StatusServiceUnavailable
	if ok {
		code = http.StatusOK
		// Who is well is up to date, whether or not there was anything to do.
		st.LastUpdated = st.CurrentTime
	}
	body, err := json.Marshal(st)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.opts.Answered(path, code)
	reply(w, code, body)
}

// service answers for the Service that has that port now.
func (s *Server) service(w http.ResponseWriter, at netip.AddrPort) {
	s.mu.Lock()
	check, wanted := s.want[at]
	healthy := s.healthy()
	s.mu.Unlock()
	code := http.StatusServiceUnavailable
	if wanted && check.Local > 0 && healthy {
		code = http.StatusOK
	}
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(check.Local))
	reply(w, code, fmt.Appendf(nil, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %t\n}",
		check.Namespace, check.Name, check.Local, healthy))
}

func reply(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // who went away asked for nothing
}
