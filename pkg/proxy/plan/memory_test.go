package plan_test

import (
	"runtime"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// mostPerService is what a Service of two endpoints may cost between its
// objects and a backend, in bytes that stay: 1.5 times what it does.
const mostPerService = 2000

// TestMemory: what is kept of Services is in compact form.
func TestMemory(t *testing.T) {
	const n = 10_000
	before := heap()
	m := servicemap.New()
	for i := range n {
		for _, o := range objects(i) {
			if _, err := m.Upsert(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	atMap := heap()
	snapshot := m.Snapshot()
	var p plan.Planner
	r := p.Make(snapshot, plan.Node{Name: "here"})
	all := heap()
	t.Logf("%d bytes for each Service in the map, %d in the plan", (atMap-before)/n, (all-atMap)/n)
	if per := (all - before) / n; per > mostPerService {
		t.Errorf("%d bytes for each Service, want %d at most", per, mostPerService)
	}
	runtime.KeepAlive(m)
	runtime.KeepAlive(&p)
	runtime.KeepAlive(r)
	runtime.KeepAlive(snapshot)
}

// heap is what is in use.
func heap() int {
	runtime.GC()
	runtime.GC() // what the first one finalised
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int(s.HeapAlloc)
}
