// Package preflight looks at a host before an agent runs on it and says what
// it has, what it lacks, and what to do about that. It changes nothing.
package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// Level is how much a finding matters.
type Level string

// Only a Fail keeps pods from running.
const (
	OK   Level = "ok"
	Info Level = "info"
	Warn Level = "warn"
	Fail Level = "FAIL"
)

// Result is one line of the table.
type Result struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`           // what was found
	Remedy string `json:"remedy,omitempty"` // what to do; empty when nothing
}

// Files reads the host's file system. Paths are absolute; a missing one is
// fs.ErrNotExist.
type Files interface {
	ReadFile(path string) ([]byte, error)
	// List returns the names in a folder.
	List(path string) ([]string, error)
	// Filesystem describes what path, or its nearest folder that exists, is on.
	Filesystem(path string) (Filesystem, error)
}

// Filesystem is what statfs says.
type Filesystem struct {
	Type        string // ext4, xfs, tmpfs, …; the magic number when unknown
	Free, Total uint64 // bytes, for an ordinary user
	NoExec      bool
}

// Programs finds and runs programs.
type Programs interface {
	// Find returns the path of a program, or an error.
	Find(name string) (string, error)
	// Output runs a program and returns what it prints.
	Output(ctx context.Context, name string, args ...string) (string, error)
}

// Network asks the host's sockets and resolver.
type Network interface {
	// Listen tells whether an address can be listened on; it stops at once.
	Listen(ctx context.Context, address string) error
	// Resolve looks a host name up.
	Resolve(ctx context.Context, name string) ([]string, error)
	// Answers says whether somebody accepts connections on a unix socket.
	Answers(ctx context.Context, socket string) bool
	// CRI asks the runtime behind a unix socket what it is.
	CRI(ctx context.Context, socket string) (Runtime, error)
}

// Runtime is a CRI runtime's answer to Version.
type Runtime struct{ Name, Version, API string }

// Clock tells the time and whether the kernel thinks that it is synchronised.
type Clock interface {
	Now() time.Time
	Synchronised() (bool, error)
}

// Host is where the checks look.
type Host struct {
	Files    Files
	Programs Programs
	Network  Network
	Clock    Clock
}

// check is one line's worth of looking.
type check struct {
	name string
	run  func(context.Context, *probe) Result
}

// probe is what a check works with.
type probe struct {
	Host
	cfg *config.NodeAgentConfiguration
	// release is the kernel's, as in uname -r.
	release string
	// kernel is the kernel's build configuration, "" when it is not to be had.
	kernel map[string]string
}

func checks() []check {
	return []check{
		{"privileges", privileges},
		{"kernel", kernelVersion},
		{"cgroups", cgroups},
		{"namespaces", namespaces},
		{"mount propagation", propagation},
		{"overlayfs", overlayfs},
		{"bridge", feature("CONFIG_BRIDGE", "bridge", Fail, "pods share a bridge")},
		{"veth", feature("CONFIG_VETH", "veth", Fail, "pods are wired with veth pairs")},
		{"iptables", iptables},
		{"nftables", nftables},
		{"conntrack", conntrack},
		{"ipvs", feature("CONFIG_IP_VS", "ip_vs", Warn, "only an ipvs proxy needs it")},
		{"proxy mode", proxyMode},
		{"proxy health port", proxyPort},
		{"container runtime", containerRuntime},
		{"runc", runc},
		{"CNI plugins", cniPlugins},
		{"CNI configuration", cniConfiguration},
		{"ip forwarding", forwarding},
		{"bridge netfilter", bridgeNetfilter},
		{"state folder", stateFolder},
		{"open files", openFiles},
		{"clock", clock},
		{"swap", swap},
		{"node name", nodeName},
		{"listen address", listenAddress},
		{"DNS", dns},
	}
}

// Run makes every check on h for an agent configured by cfg, which must have
// its defaults.
func Run(ctx context.Context, h Host, cfg *config.NodeAgentConfiguration) []Result {
	p := &probe{Host: h, cfg: cfg, release: strings.TrimSpace(h.text("/proc/sys/kernel/osrelease"))}
	p.kernel = p.kernelConfig()
	var out []Result
	for _, c := range checks() {
		r := c.run(ctx, p)
		if r.Level == Fail && cfg.ServicesOnly() && forPods(c.name) {
			r = info("needed for pods, not for Services: %s", r.Detail)
		}
		r.Check = c.name
		out = append(out, r)
	}
	return out
}

// forPods says that a check is about what only pods need.
func forPods(name string) bool {
	return slices.Contains([]string{
		"cgroups", "namespaces", "mount propagation", "overlayfs", "bridge", "veth", "iptables", "container runtime", "runc", "CNI plugins", "CNI configuration",
	}, name)
}

// Passed says that nothing failed; warnings do not count.
func Passed(results []Result) bool {
	for _, r := range results {
		if r.Level == Fail {
			return false
		}
	}
	return true
}

// WriteTable writes results for people.
func WriteTable(w io.Writer, results []Result) error {
	t := table.New(w, "CHECK", "STATUS", "FOUND", "REMEDY")
	count := map[Level]int{}
	for _, r := range results {
		t.Row(r.Check, string(r.Level), r.Detail, r.Remedy)
		count[r.Level]++
	}
	if err := t.Flush(); err != nil {
		return err
	}
	verdict := "This host can run pods."
	if count[Fail] > 0 {
		verdict = "This host cannot run pods yet."
	}
	_, err := fmt.Fprintf(w, "\n%s %d failed, %d warnings, %d in order.\n", verdict, count[Fail], count[Warn], count[OK]+count[Info])
	return err
}

// WriteJSON writes results for programs.
func WriteJSON(w io.Writer, results []Result) error {
	b, err := json.MarshalIndent(struct {
		Passed bool     `json:"passed"`
		Checks []Result `json:"checks"`
	}{Passed(results), results}, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// text is a file's content, empty when it cannot be read.
func (h Host) text(path string) string {
	b, err := h.Files.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func ok(format string, args ...any) Result {
	return Result{Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func info(format string, args ...any) Result {
	return Result{Level: Info, Detail: fmt.Sprintf(format, args...)}
}

func bad(l Level, detail, remedy string) Result {
	return Result{Level: l, Detail: detail, Remedy: remedy}
}
