package server

import (
	"net/http"
	"testing"
)

// TestNoCheckpoints: kubelet writes a container's memory to disk for anybody who
// asks its port (CVE-2025-0426). Nothing here does, on any listener.
func TestNoCheckpoints(t *testing.T) {
	f := newFixture(t, nil)
	health := start(t, func(o *Options) { o.Health = "127.0.0.1:0" })
	for _, path := range []string{"/checkpoint/default/web/main", "/api/v1/namespaces/default/pods/web/checkpoint"} {
		f.call(t, "POST", path, "").code(404)
		resp, err := http.Post("http://"+health.Addr(kindHealth).String()+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("POST %s without authentication: %d", path, resp.StatusCode)
		}
	}
}
