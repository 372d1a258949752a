//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCompare measures and prints the table. It fails when something does not
// work, never because something is slow.
func TestCompare(t *testing.T) {
	p := readPlan(t)
	began := time.Now()
	r := results{}
	l := newLab(t)
	version, err := l.n.CRI().Version(context.Background(), &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for round := range p.rounds {
		for _, s := range inTurn(round, []system{&floor{inFlight: 1}, &agent{}, &kubelet{tuned: true}, &kubelet{}}) {
			t.Logf("round %d of %d: %s", round+1, p.rounds, s.name())
			l.turn(s, false, func() { l.starts(r, s, p.samples) })
			l.turn(s, true, func() { l.restarts(r, s, p.samples) })
		}
	}
	for round := range p.repeats {
		for _, size := range p.bursts {
			for _, s := range inTurn(round, burstSystems(p)) {
				l.turn(s, false, func() { l.burst(r, s, size) })
			}
		}
	}
	if p.probed > 0 {
		for i, how := range []string{"http", "exec"} {
			for _, s := range inTurn(i, []system{&agent{}, &kubelet{}}) {
				t.Logf("%d pods probed over %s: %s", p.probed, how, s.name())
				l.turn(s, false, func() { l.probes(r, s, p, how) })
			}
		}
	}
	if p.updates > 0 {
		configMaps(t, r, p)
	}
	if p.idle > 0 {
		idle(t, r, p)
	}
	out := header(version.RuntimeVersion, p, time.Since(began)) + "\n" + r.table()
	fmt.Println("\n" + out)
	if file := os.Getenv("BENCH_OUT"); file != "" {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// inTurn lets another system begin in each round, so that none always follows
// the same one.
func inTurn(round int, all []system) []system {
	i := round % len(all)
	return append(append([]system(nil), all[i:]...), all[:i]...)
}

func burstSystems(p plan) []system {
	var all []system
	for _, n := range p.floors {
		all = append(all, &floor{inFlight: n})
	}
	return append(all, &agent{}, &kubelet{tuned: true}, &kubelet{})
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
	l.t.Logf("%d at once: %s: %.2f s", size, s.name(), took)
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
		again := func() error { return nil }
		if fl, ok := s.(*floor); ok {
			again = fl.awaitExit(l, pods[0])
		}
		if _, err := f.WriteString("exit\n"); err != nil {
			l.t.Fatal(err)
		}
		f.Close()
		if err := again(); err != nil {
			l.t.Fatal(err)
		}
		at, err := l.w.last(2*time.Minute, suffixed(pods, ".again"))
		if err != nil {
			l.t.Fatalf("%s: %v", s.name(), err)
		}
		exited := l.exitOf(pods[0])
		asked := l.tap.last(pods[0])
		if asked.Before(exited) {
			l.t.Fatalf("%s: nobody asked for a successor of %s after it ended", s.name(), pods[0])
		}
		r.add("restart", s.name(), at.Sub(exited).Seconds())
		r.add("decide", s.name(), asked.Sub(exited).Seconds()*1000)
		l.gone(s, pods)
	}
}

// exitOf is when the pod's first container ended, as the runtime notes it; it
// may note that after the successor runs.
func (l *lab) exitOf(pod string) time.Time {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var at time.Time
	l.n.Eventually(30*time.Second, pod+" shows when its first container ended", func() error {
		for _, c := range l.n.Containers() {
			if !strings.HasPrefix(c.Labels["io.kubernetes.pod.name"], pod) || c.Metadata.Attempt != 0 {
				continue
			}
			st, err := l.n.CRI().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.Id})
			if err != nil {
				return err
			}
			if st.Status.FinishedAt != 0 {
				at = time.Unix(0, st.Status.FinishedAt)
				return nil
			}
			return fmt.Errorf("container %s is %s", c.Id, c.State)
		}
		return fmt.Errorf("it has none")
	})
	return at
}
