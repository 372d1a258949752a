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
}

// readPlan is half an hour's work; BENCH_SHORT=1 makes it a few minutes, and
// the single variables change either.
func readPlan(t *testing.T) plan {
	p := plan{rounds: 6, samples: 4, repeats: 3, bursts: []int{20, 100}, floors: []int{2, 4, 8}, idle: 5 * time.Minute, pods: 100}
	if os.Getenv("BENCH_SHORT") != "" {
		p.rounds, p.samples, p.repeats, p.floors, p.idle = 2, 3, 1, []int{4, 8}, 30*time.Second
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
	numbers("BENCH_BURSTS", &p.bursts)
	numbers("BENCH_FLOORS", &p.floors)
	if s := os.Getenv("BENCH_IDLE"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("BENCH_IDLE=%q: %v", s, err)
		}
		p.idle = d
	}
	return p
}
