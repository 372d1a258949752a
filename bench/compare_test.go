//go:build bench

package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plan is how much is measured; the environment can make it smaller.
type plan struct {
	rounds  int           // BENCH_ROUNDS: turns that each system takes
	samples int           // BENCH_SAMPLES: pods one after the other per turn
	bursts  []int         // BENCH_BURSTS: pods at once, comma-separated
	floors  []int         // in flight, for bursts
	idle    time.Duration // BENCH_IDLE: before memory is read; 0 leaves it out
	idlePod int           // BENCH_IDLE_PODS
}

func readPlan(t *testing.T) plan {
	p := plan{rounds: 4, samples: 5, bursts: []int{20, 100}, floors: []int{1, 2, 4, 8}, idle: 5 * time.Minute, idlePod: 100}
	number := func(key string, to *int) {
		if s := os.Getenv(key); s != "" {
			v, err := strconv.Atoi(s)
			if err != nil {
				t.Fatalf("%s=%q: %v", key, s, err)
			}
			*to = v
		}
	}
	number("BENCH_ROUNDS", &p.rounds)
	number("BENCH_SAMPLES", &p.samples)
	number("BENCH_IDLE_PODS", &p.idlePod)
	if s, ok := os.LookupEnv("BENCH_BURSTS"); ok {
		p.bursts = nil
		for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
			v, err := strconv.Atoi(f)
			if err != nil {
				t.Fatalf("BENCH_BURSTS=%q: %v", s, err)
			}
			p.bursts = append(p.bursts, v)
		}
	}
	if s := os.Getenv("BENCH_IDLE"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("BENCH_IDLE=%q: %v", s, err)
		}
		p.idle = d
	}
	return p
}

// TestCompare measures and prints the table.
func TestCompare(t *testing.T) {
	p := readPlan(t)
	r := results{}
	l := newLab(t)
	version, err := l.n.CRI().Version(context.Background(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for round := 1; round <= p.rounds; round++ {
		for _, s := range []system{&floor{inFlight: 1}, &agent{}, &kubelet{tuned: true}, &kubelet{}} {
			t.Logf("round %d of %d: %s", round, p.rounds, s.name())
			l.turn(s, func() { l.starts(r, s, p.samples); l.restarts(r, s, p.samples) })
		}
		for _, size := range p.bursts {
			for _, s := range l.burstSystems(p) {
				t.Logf("round %d of %d: %d at once: %s", round, p.rounds, size, s.name())
				l.turn(s, func() { l.burst(r, s, size) })
			}
		}
	}
	if p.idle > 0 {
		idle(t, r, p)
	}
	out := header(version.RuntimeVersion) + "\n" + r.table()
	fmt.Println("\n" + out)
	if file := os.Getenv("BENCH_OUT"); file != "" {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *lab) burstSystems(p plan) []system {
	var all []system
	for _, n := range p.floors {
		all = append(all, &floor{inFlight: n})
	}
	return append(all, &agent{}, &kubelet{tuned: true}, &kubelet{})
}

// turn gives the node to a system, and takes all it made away afterwards.
func (l *lab) turn(s system, measure func()) {
	s.start(l)
	measure()
	s.stop(l)
	l.sweep()
}

func suffixed(pods []string, suffix string) []string {
	files := make([]string, len(pods))
	for i, p := range pods {
		files[i] = p + suffix
	}
	return files
}

// starts drops one pod at a time.
func (l *lab) starts(r results, s system, samples int) {
	for range samples {
		pods := l.names(1)
		s.drop(l, pods)
		at, err := l.w.last(2*time.Minute, suffixed(pods, ".up"))
		if err != nil {
			l.t.Fatalf("%s: %v", s.name(), err)
		}
		r.add("start", s.name(), at.Sub(l.began).Seconds())
		l.gone(s, pods)
	}
}

// burst drops many pods at once.
func (l *lab) burst(r results, s system, size int) {
	pods := l.names(size)
	s.drop(l, pods)
	at, err := l.w.last(10*time.Minute, suffixed(pods, ".up"))
	if err != nil {
		l.t.Fatalf("%s: %v", s.name(), err)
	}
	took := at.Sub(l.began).Seconds()
	l.t.Logf("  %s: %d in %.2f s", s.name(), size, took)
	r.add(fmt.Sprintf("burst%d", size), s.name(), took)
	l.gone(s, pods)
}

// restarts tells a container to exit and waits for its successor. It is the
// first exit of each pod, which neither side answers with a back-off.
func (l *lab) restarts(r results, s system, samples int) {
	for range samples {
		pods := l.names(1)
		fifo := filepath.Join(l.shared, pods[0]+".fifo")
		if err := syscall.Mkfifo(fifo, 0o666); err != nil {
			l.t.Fatal(err)
		}
		s.drop(l, pods)
		if _, err := l.w.last(2*time.Minute, suffixed(pods, ".up")); err != nil {
			l.t.Fatalf("%s: %v", s.name(), err)
		}
		// Opening blocks until the container reads, so it waits for the script.
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		logAt := l.agentLogSize()
		told := time.Now()
		if _, err := f.WriteString("exit\n"); err != nil {
			l.t.Fatal(err)
		}
		f.Close()
		if fl, ok := s.(*floor); ok {
			l.floorRestart(fl, pods[0])
		}
		at, err := l.w.last(2*time.Minute, suffixed(pods, ".again"))
		if err != nil {
			l.t.Fatalf("%s: %v", s.name(), err)
		}
		r.add("restart", s.name(), at.Sub(told).Seconds())
		if _, ok := s.(*agent); ok {
			if d, ok := l.decision(logAt, pods[0], told); ok {
				r.add("decide", s.name(), float64(d)/float64(time.Millisecond))
			}
		}
		l.gone(s, pods)
	}
}

// floorRestart makes the two calls of a restart as soon as the runtime says
// that the container has ended.
func (l *lab) floorRestart(f *floor, pod string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		list, err := l.n.CRI().ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			PodSandboxId: f.sandboxes[pod].PodSandboxId,
			State:        &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}}})
		if err != nil {
			l.t.Fatal(err)
		}
		if len(list.Containers) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := f.container(ctx, l, pod, 1); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) agentLogSize() int64 {
	st, err := os.Stat(l.n.Path("agent.log"))
	if err != nil {
		return 0
	}
	return st.Size()
}

// decision finds in the agent's log when it set out to restart the pod's
// container: the first line after the exit that names the pod and a restart.
func (l *lab) decision(from int64, pod string, told time.Time) (time.Duration, bool) {
	f, err := os.Open(l.n.Path("agent.log"))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if _, err := f.Seek(from, 0); err != nil {
		return 0, false
	}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if !strings.Contains(line, pod) || !strings.Contains(line, "restart") {
			continue
		}
		for _, field := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(field, "time="); ok {
				if at, err := time.Parse(time.RFC3339Nano, v); err == nil {
					return at.Sub(told), true
				}
			}
		}
	}
	return 0, false
}

// idle reads memory and CPU after a while in which nothing happens. Each system
// has a node of its own, so that they can be idle at the same time: what is
// read is of the one process only.
func idle(t *testing.T, r results, p plan) {
	var mu sync.Mutex
	for _, pods := range []int{0, p.idlePod} {
		suffix := "100"
		if pods == 0 {
			suffix = "0"
		}
		t.Run(fmt.Sprintf("idle with %d pods", pods), func(t *testing.T) {
			for _, s := range []system{&agent{}, &kubelet{tuned: true}, &kubelet{}} {
				l := newLab(t)
				s.start(l)
				names := l.names(pods)
				s.drop(l, names)
				if _, err := l.w.last(15*time.Minute, suffixed(names, ".up")); err != nil {
					t.Fatalf("%s: %v", s.name(), err)
				}
				t.Run(s.name(), func(t *testing.T) {
					t.Parallel()
					mem, load := idleOf(t, s.pid(), p.idle)
					mu.Lock()
					defer mu.Unlock()
					r.add("rss"+suffix, s.name(), mem)
					r.add("cpu"+suffix, s.name(), load)
				})
			}
		})
	}
}

// idleOf waits and returns MiB and percent of a core over the wait's second half.
func idleOf(t *testing.T, pid int, d time.Duration) (mem, load float64) {
	time.Sleep(d / 2)
	before, err := cpu(pid)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	time.Sleep(d - d/2)
	after, err := cpu(pid)
	if err != nil {
		t.Fatal(err)
	}
	if mem, err = rss(pid); err != nil {
		t.Fatal(err)
	}
	return mem, 100 * float64(after-before) / float64(time.Since(from))
}
