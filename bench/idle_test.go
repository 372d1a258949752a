//go:build bench

package bench

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// idler is a system that has a node of its own and nothing to do.
type idler struct {
	s      system
	suffix string // of the measures: how many pods it has
	used   time.Duration
}

// idle reads memory and CPU after a while in which nothing happens. Every
// system has a node and a copy of its binary of its own, so that all can be
// idle at the same time and share no page.
func idle(t *testing.T, r results, p plan) {
	var all []*idler
	for _, pods := range []int{0, p.pods} {
		for _, s := range []system{&agent{}, &kubelet{tuned: true}, &kubelet{}} {
			t.Logf("idle with %d pods: %s", pods, s.name())
			l := newLab(t)
			s.start(l)
			names := l.names(pods)
			s.drop(l, names)
			if _, err := l.w.last(15*time.Minute, suffixed(names, ".up")); err != nil {
				t.Fatalf("%s: %v", s.name(), err)
			}
			suffix := "100"
			if pods == 0 {
				suffix = "0"
			}
			all = append(all, &idler{s: s, suffix: suffix})
		}
	}
	time.Sleep(p.idle / 2)
	from := time.Now()
	for _, i := range all {
		i.used = cpu(t, i.s.pid())
	}
	time.Sleep(p.idle - p.idle/2)
	over := time.Since(from)
	for _, i := range all {
		used := cpu(t, i.s.pid()) - i.used
		r.add("cpu"+i.suffix, i.s.name(), 100*used.Seconds()/over.Seconds())
		status, rollup := fmt.Sprintf("/proc/%d/status", i.s.pid()), fmt.Sprintf("/proc/%d/smaps_rollup", i.s.pid())
		r.add("rss"+i.suffix, i.s.name(), megabytes(t, status, "VmRSS"))
		r.add("anon"+i.suffix, i.s.name(), megabytes(t, status, "RssAnon"))
		r.add("peak"+i.suffix, i.s.name(), megabytes(t, status, "VmHWM"))
		r.add("pss"+i.suffix, i.s.name(), megabytes(t, rollup, "Pss"))
	}
}

// megabytes reads a line "Field:   123 kB"; the file's kB are 1024 bytes, the
// result's MB are 10^6.
func megabytes(t *testing.T, file, field string) float64 {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if words := strings.Fields(s.Text()); len(words) > 1 && words[0] == field+":" {
			kb, err := strconv.ParseFloat(words[1], 64)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return kb * 1024 / 1e6
		}
	}
	t.Fatalf("%s has no %s", file, field)
	return 0
}

// cpu is a process's user and system time so far. The kernel shows 1/100 s.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	file := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The name in parentheses may hold spaces; utime and stime are 12 and 13
	// words behind it.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		t.Fatalf("%s: short line", file)
	}
	var ticks int64
	for _, word := range f[11:13] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
