package server

import (
	"net/http"

	"github.com/nodeagent/nodeagent/pkg/server/usage"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// scrape serves kubelet's paths that tell what is used. One is served at a time:
// each reads thousands of files, and nobody has to wait for long.
func (s *Server) scrape(w http.ResponseWriter, r *http.Request, path string) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	reader, err := s.o.Stats()
	if err != nil {
		return err
	}
	select {
	case s.scraping <- struct{}{}:
		defer func() { <-s.scraping }()
	case <-r.Context().Done():
		return r.Context().Err()
	}
	if path == "stats/summary" {
		return s.summary(w, r, reader)
	}
	w.Header().Set("Content-Type", usage.ContentType)
	if r.Method == http.MethodHead {
		return nil
	}
	if path == "metrics/cadvisor" {
		err = usage.CAdvisor(w, reader, s.machine(reader))
	} else {
		err = usage.Resource(w, reader)
	}
	if err != nil {
		s.log.Debug("a client left before it had all metrics", "path", path, "err", err)
	}
	return nil
}

func (s *Server) machine(r *stats.Reader) usage.Machine {
	node, _ := s.o.NodeObject.Node()
	m := usage.Machine{Version: s.o.Version, Cores: s.o.CPUs}
	if node != nil {
		m.System = node.Status.NodeInfo
	}
	m.PhysicalCores, m.Sockets = r.Cores()
	return m
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request, reader *stats.Reader) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	little, err := boolParam(r.URL.Query(), "only_cpu_and_memory")
	if err != nil {
		return err
	}
	sum, err := usage.Summary(r.Context(), reader, s.o.NodeName, little)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, sum)
	return nil
}
