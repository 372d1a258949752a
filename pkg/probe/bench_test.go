package probe

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// BenchmarkHTTPProbe measures what one probe costs the agent: 100 pods with a
// probe each second may take 5 % of a core, which is 500 µs for one.
func BenchmarkHTTPProbe(b *testing.B) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.Skip("needs a server in a process of its own: busybox is not installed")
	}
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "healthz"), []byte("ok"), 0o600); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	server := exec.Command(busybox, "httpd", "-f", "-p", "127.0.0.1:"+strconv.Itoa(port), "-h", dir)
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	p := New(Options{})
	c := Container{Host: "127.0.0.1", Spec: &v1.Container{Name: "c"}}
	spec := &v1.Probe{TimeoutSeconds: 1, ProbeHandler: v1.ProbeHandler{HTTPGet: &v1.HTTPGetAction{Port: intstr.FromInt(port), Path: "/healthz", Scheme: v1.URISchemeHTTP}}}
	for !p.ask(b.Context(), c, spec).good {
		// it starts
	}
	before := cpuTime(b)
	for b.Loop() {
		if a := p.ask(b.Context(), c, spec); !a.good {
			b.Fatal(a.output)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what this process has used of the CPU.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
