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

// measure is one row of the table. The target is what nodeagent's median must
// not exceed: the figure itself or, with perFloor, its ratio to the floor.
type measure struct {
	id, text, unit string
	target         float64
	perFloor       bool
}

// measures are the rows in order. The exit's targets are about the call that
// starts the successor; whether the runtime then is quick is not the agent's.
func measures() []measure {
	return []measure{
		{"start", "manifest renamed into the folder → process runs", "s", 1.15, true},
		{"burst20", "20 pods at once → all run", "s", 0, false},
		{"burst100", "100 pods at once → all run", "s", 1.2, true},
		{"decide", "container exits → its successor is asked for", "ms", 20, false},
		{"restart", "container exits → its successor runs", "s", 0, false},
		{"probe-cpu-http", "100 pods with an HTTP probe each second: CPU of one core", "%", 5, false},
		{"probe-cpu-exec", "100 pods with an exec probe each second: CPU of one core", "%", 0, false},
		{"probe-seen-http", "its health is gone → the container is told to end, HTTP", "s", 0, false},
		{"probe-seen-exec", "… exec", "s", 0, false},
		{"configmap", "a ConfigMap changes → its file in the container has", "s", 1, false},
		{"rss0", "memory (VmRSS), no pod", "MB", 30, false},
		{"anon0", "… of it anonymous (RssAnon)", "MB", 0, false},
		{"pss0", "… proportional share (Pss)", "MB", 0, false},
		{"peak0", "… highest since its start (VmHWM)", "MB", 0, false},
		{"rss100", "memory (VmRSS), 100 idle pods", "MB", 45, false},
		{"anon100", "… of it anonymous (RssAnon)", "MB", 0, false},
		{"pss100", "… proportional share (Pss)", "MB", 0, false},
		{"peak100", "… highest since its start (VmHWM)", "MB", 0, false},
		{"cpu0", "CPU of one core, no pod", "%", 0, false},
		{"cpu100", "CPU of one core, 100 idle pods", "%", 0.5, false},
	}
}

var columns = [...]string{"kubelet", "kubelet, tuned", "nodeagent"}

// table is the whole outcome as markdown: median / p99 (number of samples).
func (r results) table() string {
	var b strings.Builder
	fmt.Fprintln(&b, "| measured | unit | floor | "+strings.Join(columns[:], " | ")+" | nodeagent ÷ floor | better kubelet ÷ nodeagent | target |")
	fmt.Fprintln(&b, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, m := range measures() {
		if len(r[m.id]) == 0 {
			continue
		}
		_, floor := r.bestFloor(m.id)
		cells := []string{m.text, m.unit, cell(floor)}
		for _, c := range columns {
			cells = append(cells, cell(r[m.id][c]))
		}
		ours := median(r[m.id]["nodeagent"])
		peer := median(r[m.id]["kubelet"])
		if tuned := median(r[m.id]["kubelet, tuned"]); !(tuned >= peer) && !math.IsNaN(tuned) {
			peer = tuned
		}
		cells = append(cells, ratio(ours, median(floor)), ratio(peer, ours), m.verdict(ours, median(floor)))
		fmt.Fprintln(&b, "| "+strings.Join(cells, " | ")+" |")
	}
	for _, m := range measures() {
		if name, v := r.bestFloor(m.id); len(v) > 0 && strings.HasPrefix(m.id, "burst") {
			fmt.Fprintf(&b, "\nThe best floor of %q is the %s.", m.text, strings.TrimPrefix(name, "floor "))
		}
	}
	fmt.Fprintln(&b)
	return b.String()
}

// verdict says whether the target holds; it is printed and never asserted.
func (m measure) verdict(ours, floor float64) string {
	if m.target == 0 {
		return ""
	}
	figure, target := ours, fmt.Sprintf("≤ %v %s", m.target, m.unit)
	if m.perFloor {
		figure, target = ours/floor, fmt.Sprintf("≤ %v × floor", m.target)
	}
	switch {
	case math.IsNaN(figure):
		return target + ": not measured"
	case figure <= m.target:
		return target + ": met"
	default:
		return target + ": missed"
	}
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
func header(containerd string, p plan, took time.Duration) string {
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("One run on %s, %s long: %d CPUs, Linux %s, containerd %s, %s, nodeagent %s; memory after %s idle. "+
		"Load average at the end: %s.\nEach cell: median / p99 (samples).\n",
		time.Now().UTC().Format("2006-01-02"), took.Round(time.Minute), runtime.NumCPU(), strings.TrimSpace(string(kernel)), containerd,
		runtime.Version(), strings.TrimSpace(string(commit)), p.idle, strings.Join(strings.Fields(string(load))[:3], " "))
}
