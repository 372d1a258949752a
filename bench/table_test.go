//go:build bench

package bench

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"time"
)

// results are samples by measure and system.
type results map[string]map[string][]float64

func (r results) add(measure, system string, v ...float64) {
	if r[measure] == nil {
		r[measure] = map[string][]float64{}
	}
	r[measure][system] = append(r[measure][system], v...)
}

// median and p99 by the nearest rank; of few samples the p99 is the largest.
func median(v []float64) float64 { return rank(v, 0.50) }
func p99(v []float64) float64    { return rank(v, 0.99) }

func rank(v []float64, q float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[max(0, i)]
}

// bestFloor folds the floors with different numbers in flight into one, the
// one with the smallest median.
func (r results) bestFloor(measure string) (string, []float64) {
	best, name := []float64(nil), ""
	for s, v := range r[measure] {
		if strings.HasPrefix(s, "floor") && (best == nil || median(v) < median(best)) {
			best, name = v, s
		}
	}
	return name, best
}

// measure is one row of the table.
type measure struct{ id, text, unit string }

var measures = []measure{
	{"start", "manifest renamed into the folder → process runs", "s"},
	{"burst20", "20 pods at once → all run", "s"},
	{"burst100", "100 pods at once → all run", "s"},
	{"restart", "container exits → runs again", "s"},
	{"decide", "container exits → restart decided", "ms"},
	{"rss0", "memory (VmRSS), no pod", "MiB"},
	{"rss100", "memory (VmRSS), 100 idle pods", "MiB"},
	{"cpu0", "CPU of one core, no pod", "%"},
	{"cpu100", "CPU of one core, 100 idle pods", "%"},
}

var columns = []string{"kubelet, defaults", "kubelet, tuned", "nodeagent"}

// table is the whole outcome as markdown: median / p99 (number of samples).
func (r results) table() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| measured | unit | floor | "+strings.Join(columns, " | ")+" | nodeagent ÷ floor | kubelet (tuned) ÷ nodeagent |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, m := range measures {
		if len(r[m.id]) == 0 {
			continue
		}
		_, floor := r.bestFloor(m.id)
		cells := []string{m.text, m.unit, cell(floor)}
		for _, c := range columns {
			cells = append(cells, cell(r[m.id][c]))
		}
		ours := median(r[m.id]["nodeagent"])
		cells = append(cells, ratio(ours, median(floor)), ratio(median(r[m.id]["kubelet, tuned"]), ours))
		fmt.Fprintln(&b, "| "+strings.Join(cells, " | ")+" |")
	}
	for _, m := range measures {
		if name, v := r.bestFloor(m.id); len(v) > 0 && strings.HasPrefix(m.id, "burst") {
			fmt.Fprintf(&b, "\nThe floor of %q is the %s.", m.text, name)
		}
	}
	fmt.Fprintln(&b)
	return b.String()
}

func cell(v []float64) string {
	switch len(v) {
	case 0:
		return "–"
	case 1:
		return number(v[0])
	}
	return fmt.Sprintf("%s / %s (%d)", number(median(v)), number(p99(v)), len(v))
}

func number(f float64) string {
	switch {
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	case f >= 1:
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.3f", f)
}

func ratio(a, b float64) string {
	if math.IsNaN(a) || math.IsNaN(b) || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ×", a/b)
}

// header says what the numbers were measured on.
func header(containerd string) string {
	commit, _ := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("Medians / p99 (samples) of one run on %s: %d CPUs, Linux %s, containerd %s, %s, nodeagent %s.\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), strings.TrimSpace(string(kernel)), containerd, runtime.Version(),
		strings.TrimSpace(string(commit)))
}
