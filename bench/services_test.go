//go:build bench

package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// TestServices measures and prints the table. It fails when something does not
// work, never because something is slow.
func TestServices(t *testing.T) {
	p := readServicesPlan(t)
	began := time.Now()
	r := results{}
	testbed.Binary(t, "") // builds it
	c := &cluster{cp: testbed.NewControlPlane(t)}
	if err := c.makeBig(t.Context(), p.big); err != nil {
		t.Fatal(err)
	}
	for round, size := range p.sizes {
		if slices.Contains(p.systems, floors) {
			measureFloors(t, r, size, p.samples)
		}
		from := time.Now()
		if err := c.fill(t.Context(), size); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d Services made in %s", size, time.Since(from).Round(time.Second))
		all := proxies()
		for i := range all { // another one begins at each size
			s := all[(i+round)%len(all)]
			if slices.Contains(p.systems, s.name) {
				t.Run(fmt.Sprintf("%d Services, %s", size, s.name), func(t *testing.T) { c.measure(t, r, p, s, size) })
			}
		}
	}
	out := servicesHeader(p, time.Since(began)) + "\n" + servicesTable(r, p)
	fmt.Println("\n" + out)
	if file := os.Getenv("BENCH_OUT"); file != "" {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func sized(id string, size int) string { return fmt.Sprintf("%s %d", id, size) }

// measure takes all measures of one system at one size.
func (c *cluster) measure(t *testing.T, r results, p servicesPlan, s proxy, size int) {
	st := newStand(t, c, s.legacy)
	began := time.Now()
	st.start(c, s)
	defer st.stop()
	ctx, cancel := context.WithTimeout(t.Context(), p.limit)
	defer cancel()
	var last time.Time
	for _, ip := range c.probes {
		at, err := firstConnect(ctx, st.n, ip)
		if dead := st.alive(); dead != nil {
			t.Fatalf("%s: %v", s.name, dead)
		}
		if err != nil {
			t.Logf("%s: nothing answers after %s; given up", s.name, p.limit)
			r.add(sized("first", size), s.name, math.Inf(1))
			return
		}
		if at.After(last) {
			last = at
		}
	}
	r.add(sized("first", size), s.name, last.Sub(began).Seconds())
	if s.program == "nodeagent" && s.mode == "iptables" {
		c.measureBare(t, r, s, st, size)
	}
	rules, chains, elements := st.kernel(s.mode == "iptables")
	r.add(sized("rules", size), s.name, float64(rules))
	r.add(sized("chains", size), s.name, float64(chains))
	r.add(sized("elements", size), s.name, float64(elements))
	took, err := connects(st.n, c.probes[len(c.probes)-1], p.load)
	if err != nil {
		t.Fatal(err)
	}
	r.add(sized("connect", size), s.name, took...)
	rate, failed, err := requests(st.n, c.probes[len(c.probes)-1], p.load)
	if err != nil || rate == 0 {
		t.Fatalf("%s: no request is answered, %d failed: %v", s.name, failed, err)
	}
	r.add(sized("rate", size), s.name, rate)
	r.add(sized("lost", size), s.name, float64(failed))
	c.newServices(t, r, p, s, st, size)
	if size > 0 {
		c.underChurn(t, r, p, s, st, size)
	}
	r.add(sized("peak", size), s.name, megabytes(t, fmt.Sprintf("/proc/%d/status", st.p.PID()), "VmHWM"))
}

// newServices makes Services one by one.
func (c *cluster) newServices(t *testing.T, r results, p servicesPlan, s proxy, st *stand, size int) {
	var names []string
	for range p.samples {
		c.last++
		name := fmt.Sprintf("new%d", c.last)
		ip, asked, had, err := c.create(t.Context(), name, answering)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
		ctx, cancel := context.WithTimeout(t.Context(), p.limit)
		at, err := firstConnect(ctx, st.n, ip)
		cancel()
		if err != nil {
			t.Fatalf("%s: Service %s never answers: %v; %v", s.name, name, err, st.alive())
		}
		r.add(sized("new", size), s.name, float64(at.Sub(asked))/float64(time.Millisecond))
		r.add(sized("had", size), s.name, float64(had.Sub(asked))/float64(time.Millisecond))
		// A proxy that saves its work up is not always met at its worst.
		time.Sleep(200 * time.Millisecond)
	}
	for _, name := range names {
		if err := c.remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// underChurn changes endpoints and looks at what that costs.
func (c *cluster) underChurn(t *testing.T, r results, p servicesPlan, s proxy, st *stand, size int) {
	ctx, cancel := context.WithTimeout(t.Context(), p.churn)
	defer cancel()
	changes := make(chan int, 1)
	failed := make(chan error, 1)
	began, used, mem := time.Now(), withChildren(t, st.p.PID()), 0.0
	go func() {
		n, err := c.churn(ctx)
		changes <- n
		failed <- err
	}()
	status := fmt.Sprintf("/proc/%d/status", st.p.PID())
	for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; {
		select {
		case <-tick.C:
			mem = max(mem, megabytes(t, status, "VmRSS"))
		case <-ctx.Done():
			tick.Stop()
		}
	}
	took := time.Since(began).Seconds()
	r.add(sized("cpu", size), s.name, 100*(withChildren(t, st.p.PID())-used).Seconds()/took)
	r.add(sized("mem", size), s.name, mem)
	r.add(sized("changes", size), s.name, float64(<-changes)/took)
	if err := <-failed; err != nil {
		t.Fatalf("change endpoints: %v", err)
	}
	if err := c.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func servicesHeader(p servicesPlan, took time.Duration) string {
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	more := ""
	if p.big > 0 {
		more = fmt.Sprintf("; one more Service of %d endpoints", p.big)
	}
	return fmt.Sprintf("One run on %s, %s long: %d CPUs, Linux %s, %s, nodeagent %s, kube-proxy and kube-apiserver %s%s. "+
		"Load average at the end: %s.\nEach cell: median / p99 (samples).\n",
		time.Now().UTC().Format("2006-01-02"), took.Round(time.Second), runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version(),
		strings.TrimSpace(string(commit)), kubeProxyVersion(), more, strings.Join(strings.Fields(string(load))[:3], " "))
}

func kubeProxyVersion() string {
	program, err := testbed.KubernetesProgram("kube-proxy")
	if err != nil {
		return "unknown"
	}
	out, _ := exec.Command(program, "--version").Output()
	return strings.TrimSpace(strings.TrimPrefix(string(out), "Kubernetes "))
}
