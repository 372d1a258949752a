//go:build bench

package bench

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// servicesPlan is how much of Services is measured.
type servicesPlan struct {
	sizes   []int         // BENCH_SIZES: Services of two endpoints, comma-separated
	systems []string      // BENCH_SYSTEMS: by name, comma-separated; also "floors"
	big     int           // BENCH_BIG: endpoints of one Service more
	samples int           // BENCH_SAMPLES: new Services, one after the other
	churn   time.Duration // BENCH_CHURN: how long 100 endpoint changes a second go on
	load    time.Duration // how long connections are made for latency, and for requests per second
	limit   time.Duration // BENCH_LIMIT: after that a first sync is given up
}

// readServicesPlan is about a quarter of an hour with BENCH_SIZES=0,1000,10000;
// BENCH_SHORT=1 makes it a few minutes, and the single variables change either.
func readServicesPlan(t *testing.T) servicesPlan {
	p := servicesPlan{
		sizes: []int{0, 1000, 5000, 10000}, big: 5000, samples: 15, churn: 10 * time.Second, load: 2 * time.Second, limit: 3 * time.Minute,
	}
	for _, s := range proxies() {
		p.systems = append(p.systems, s.name)
	}
	p.systems = append(p.systems, floors)
	if os.Getenv("BENCH_SHORT") != "" {
		p.sizes, p.big, p.samples, p.churn, p.load = []int{0, 500}, 500, 5, 3*time.Second, time.Second
	}
	list := func(key string, use func([]string)) {
		if s := os.Getenv(key); s != "" {
			use(strings.Split(s, ","))
		}
	}
	number := func(key, s string) int {
		v, err := strconv.Atoi(s)
		if err != nil || v < 0 {
			t.Fatalf("%s=%q is no number of things", key, s)
		}
		return v
	}
	list("BENCH_SIZES", func(words []string) {
		p.sizes = nil
		for _, w := range words {
			p.sizes = append(p.sizes, number("BENCH_SIZES", w))
		}
		slices.Sort(p.sizes)
	})
	list("BENCH_SYSTEMS", func(words []string) {
		for _, w := range words {
			if !slices.Contains(p.systems, w) {
				t.Fatalf("BENCH_SYSTEMS: there is no %q; there are: %s", w, strings.Join(p.systems, ", "))
			}
		}
		p.systems = words
	})
	for key, to := range map[string]*int{"BENCH_BIG": &p.big, "BENCH_SAMPLES": &p.samples} {
		list(key, func(words []string) { *to = number(key, words[0]) })
	}
	for key, to := range map[string]*time.Duration{"BENCH_CHURN": &p.churn, "BENCH_LIMIT": &p.limit} {
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
