//go:build bench

package bench

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// plan is how much is measured.
type plan struct {
	rounds  int           // BENCH_ROUNDS: turns that each system takes at starts and restarts
	samples int           // BENCH_SAMPLES: pods one after the other in each of those turns
	repeats int           // BENCH_REPEATS: how often each burst is dropped
	bursts  []int         // BENCH_BURSTS: pods at once, comma-separated
	floors  []int         // BENCH_FLOORS: bursts of bare CRI calls, by how many are in flight
	idle    time.Duration // BENCH_IDLE: before memory is read; 0 leaves it out
	pods    int           // BENCH_IDLE_PODS
	probed  int           // BENCH_PROBES: pods that are probed each second; 0 leaves them out
	window  time.Duration // BENCH_WINDOW: how long the CPU of probing is looked at
	updates int           // BENCH_UPDATES: changes of a ConfigMap; 0 leaves them out
}

// readPlan is half an hour's work; BENCH_SHORT=1 makes it a few minutes, and
// the single variables change either.
func readPlan(t *testing.T) plan {
	p := plan{rounds: 6, samples: 4, repeats: 3, bursts: []int{20, 100}, floors: []int{2, 4, 8}, idle: 5 * time.Minute, pods: 100,
		probed: 100, window: 30 * time.Second, updates: 5}
	if os.Getenv("BENCH_SHORT") != "" {
		p.rounds, p.samples, p.repeats, p.floors, p.idle = 2, 3, 1, []int{4, 8}, 30*time.Second
		p.probed, p.window, p.updates = 50, 10*time.Second, 1
	}
	number := func(key string, to *int) {
		if s := os.Getenv(key); s != "" {
			v, err := strconv.Atoi(s)
			if err != nil || v < 0 {
				t.Fatalf("%s=%q is not a number of things", key, s)
			}
			*to = v
		}
	}
	numbers := func(key string, to *[]int) {
		s, ok := os.LookupEnv(key)
		if !ok {
			return
		}
		*to = nil
		for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) {
			v, err := strconv.Atoi(f)
			if err != nil || v < 1 {
				t.Fatalf("%s=%q is not a list of numbers", key, s)
			}
			*to = append(*to, v)
		}
	}
	number("BENCH_ROUNDS", &p.rounds)
	number("BENCH_SAMPLES", &p.samples)
	number("BENCH_REPEATS", &p.repeats)
	number("BENCH_IDLE_PODS", &p.pods)
	number("BENCH_PROBES", &p.probed)
	number("BENCH_UPDATES", &p.updates)
	numbers("BENCH_BURSTS", &p.bursts)
	numbers("BENCH_FLOORS", &p.floors)
	for key, to := range map[string]*time.Duration{"BENCH_IDLE": &p.idle, "BENCH_WINDOW": &p.window} {
		if s := os.Getenv(key); s != "" {
			d, err := time.ParseDuration(s)
			if err != nil {
				t.Fatalf("%s=%q: %v", key, s, err)
			}
			*to = d
		}
	}
	return p
}
