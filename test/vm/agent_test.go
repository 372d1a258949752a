package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/vm"
)

// limited is a pod that uses every limit that a cgroup has.
const limited = `apiVersion: v1
kind: Pod
metadata:
  name: limited
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "864001"]
    resources:
      requests: {cpu: 100m, memory: 16Mi, hugepages-2Mi: 4Mi}
      limits: {cpu: 500m, memory: 64Mi, hugepages-2Mi: 4Mi}
`

// agent is the installed agent and its one pod.
type agent struct {
	*testing.T
	vm *vm.VM
}

// testAgent installs the agent as a user does, and treats its unit as systemd,
// users and accidents do. The pod must not notice, but for a reboot.
func testAgent(t *testing.T, v *vm.VM) {
	a := agent{t, v}
	a.install()
	steps := []struct {
		name string
		f    func(agent)
	}{
		{"Start", agent.start},
		{"Limits", agent.limits},
		{"AppArmor", agent.appArmor},
		{"OtherPods", agent.otherPods},
		{"Reload", agent.reload},
		{"Kill", agent.kill},
		{"StopAndStart", agent.stopAndStart},
		{"Watchdog", agent.watchdog},
		{"Reboot", agent.reboot},
		{"Remove", agent.remove},
	}
	for _, s := range steps {
		ok := t.Run(s.name, func(t *testing.T) { s.f(agent{t, v}) })
		if !ok {
			t.Log(v.Sh(t, "journalctl --no-pager -u nodeagent -n 100 -o short-monotonic"))
			return // the next step stands on this one
		}
	}
}

func (a agent) install() {
	a.Helper()
	root, err := testbed.Root()
	if err != nil {
		a.Fatal(err)
	}
	dir := a.TempDir()
	install := exec.Command("make", "-s", "build", "install", "DESTDIR="+dir, "PREFIX=/usr")
	install.Dir = root
	if out, err := install.CombinedOutput(); err != nil {
		a.Fatalf("make install: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(a.Context(), 10*time.Minute)
	defer cancel()
	if err := a.vm.Copy(ctx, dir, "/"); err != nil {
		a.Fatal(err)
	}
	if err := a.vm.Copy(ctx, testbed.BusyboxImages(a), "/root/images.tar"); err != nil {
		a.Fatal(err)
	}
	a.write("/etc/nodeagent/manifests/limited.yaml", limited)
	a.vm.Sh(a, `ctr -n k8s.io images import /root/images.tar && rm /root/images.tar
printf 'pods:\n  pidsLimit: 100\nmemoryReservationPolicy: TieredReservation\nmemoryThrottlingFactor: 0.5\nsystemReserved: {pid: "100"}\n' >>/etc/nodeagent/nodeagent.yaml
echo vm.nr_hugepages=4 >/etc/sysctl.d/60-pods.conf; echo 4 >/proc/sys/vm/nr_hugepages`)
}

// write puts a file into the guest.
func (a agent) write(path, text string) {
	a.Helper()
	f := filepath.Join(a.TempDir(), "f")
	if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
		a.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(a.Context(), 5*time.Minute)
	defer cancel()
	if err := a.vm.Copy(ctx, f, path); err != nil {
		a.Fatal(err)
	}
}

// running waits for the pod and returns its process: PID, start time and boot.
func (a agent) running() string {
	a.Helper()
	return a.vm.Sh(a, `until nodeagent get pods 2>/dev/null | grep -q '^limited .*Running'; do sleep 0.3; done
pid=$(pgrep -fx 'sleep 864001') && echo $pid $(cut -d' ' -f22 /proc/$pid/stat) $(cat /proc/sys/kernel/random/boot_id)`)
}

// process is the pod's, while nobody may be there to ask about pods.
func (a agent) process() string {
	a.Helper()
	return a.vm.Sh(a, `pid=$(pgrep -fx 'sleep 864001') && echo $pid $(cut -d' ' -f22 /proc/$pid/stat) $(cat /proc/sys/kernel/random/boot_id)`)
}

// same fails when the pod's process is not the one before.
func (a agent) same(before string) {
	a.Helper()
	if now := a.running(); now != before {
		a.Errorf("the pod was restarted: it was %q and is %q (PID, start, boot)", before, now)
	}
}

// restarted waits until systemd has started another main process and it is
// ready.
func (a agent) restarted(old string) {
	a.Helper()
	a.vm.Sh(a, fmt.Sprintf(`until [ "$(systemctl show -P SubState nodeagent)" = running ] && [ "$(systemctl show -P MainPID nodeagent)" != %s ]; do sleep 0.3; done`, old))
}

func (a agent) mainPID() string {
	a.Helper()
	return strings.TrimSpace(a.vm.Sh(a, "systemctl show -P MainPID nodeagent"))
}

// start returns when the agent has said READY=1.
func (a agent) start() {
	out := a.vm.Sh(a, "systemctl daemon-reload; systemctl enable --now nodeagent 2>&1; systemctl show -P SubState -P StatusText nodeagent; until curl -sf http://127.0.0.1:10248/readyz; do sleep 0.3; done")
	if !strings.Contains(out, "\nrunning\n") || !strings.Contains(out, "\nrunning pods of vm\n") {
		a.Errorf("after systemctl start: %s", out)
	}
	a.running()
}

// limits reads the pod's limits where the kernel keeps them: the container's
// scope and the pod's slice, in systemd's tree. (containerd 1.6 leaves huge pages
// to the slice.)
func (a agent) limits() {
	pid := strings.Fields(a.running())[0]
	path, ok := strings.CutPrefix(strings.TrimSpace(a.vm.Sh(a, "cat /proc/"+pid+"/cgroup")), "0::")
	slice, scope := filepath.Split(path)
	if !ok || !strings.HasPrefix(slice, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod") || !strings.HasSuffix(slice, ".slice/") ||
		!strings.HasPrefix(scope, "cri-containerd-") || !strings.HasSuffix(scope, ".scope") {
		a.Errorf("the container is in the cgroup %q", path)
	}
	out := a.vm.Sh(a, "cd /sys/fs/cgroup"+path+" && tail -n +1 cpu.max cpu.weight memory.max memory.high memory.low ../cpu.max ../cpu.weight ../memory.max ../memory.low ../hugetlb.2MB.max ../pids.max "+
		"../../memory.low ../../../memory.low ../../../memory.min ../../../hugetlb.2MB.max; echo $(($(cat ../../../pids.max) + 100 - $(cat /proc/sys/kernel/threads-max))); "+
		"systemctl show -P MemoryMax -P TasksMax "+filepath.Base(slice)+"; cat /proc/"+pid+"/oom_score_adj")
	want := `==> cpu.max <==
50000 100000

==> cpu.weight <==
4

==> memory.max <==
67108864

==> memory.high <==
41943040

==> memory.low <==
16777216

==> ../cpu.max <==
50000 100000

==> ../cpu.weight <==
4

==> ../memory.max <==
67108864

==> ../memory.low <==
16777216

==> ../hugetlb.2MB.max <==
4194304

==> ../pids.max <==
100

==> ../../memory.low <==
16777216

==> ../../../memory.low <==
16777216

==> ../../../memory.min <==
16777216

==> ../../../hugetlb.2MB.max <==
8388608
0
67108864
100
992
`
	if out != want {
		a.Errorf("limits in %s:\n%s\nwant\n%s", path, out, want)
	}
}

// reload takes a changed configuration over, and refuses a wrong one.
func (a agent) reload() {
	before, pid := a.running(), a.mainPID()
	a.vm.Sh(a, `cd /etc/nodeagent; sed -i s/10248/10249/ nodeagent.yaml; systemctl reload nodeagent
until curl -sf http://127.0.0.1:10249/readyz; do sleep 0.3; done; ! curl -s http://127.0.0.1:10248/readyz
cp nodeagent.yaml good.yaml; echo 'nonsense: 1' >>nodeagent.yaml; ! systemctl reload nodeagent
mv good.yaml nodeagent.yaml; systemctl reload nodeagent; until curl -sf http://127.0.0.1:10249/readyz; do sleep 0.3; done`)
	if now := a.mainPID(); now != pid {
		a.Errorf("a reload made process %s of %s", now, pid)
	}
	a.same(before)
}

func (a agent) kill() {
	before, pid := a.running(), a.mainPID()
	a.vm.Sh(a, "kill -9 "+pid)
	a.restarted(pid)
	a.same(before)
}

// stopAndStart also shortens the watchdog's time for the next step.
func (a agent) stopAndStart() {
	before := a.running()
	a.vm.Sh(a, `systemctl stop nodeagent; ! systemctl is-active nodeagent
mkdir -p /etc/systemd/system/nodeagent.service.d; printf '[Service]\nWatchdogSec=20s\n' >/etc/systemd/system/nodeagent.service.d/watchdog.conf
systemctl daemon-reload`)
	if now := a.process(); now != before {
		a.Errorf("the pod after systemctl stop: %q, before it: %q", now, before)
	}
	a.vm.Sh(a, "systemctl start nodeagent")
	a.same(before)
}

// watchdog stops the agent from turning: systemd ends it and starts another.
func (a agent) watchdog() {
	before, pid := a.running(), a.mainPID()
	a.vm.Sh(a, "kill -STOP "+pid)
	a.restarted(pid)
	if log := a.vm.Sh(a, "journalctl --no-pager -o cat -u nodeagent"); !strings.Contains(log, "Watchdog timeout") {
		a.Error("the agent was restarted, but not by the watchdog")
	}
	a.same(before)
}

// reboot brings agent and pod back: the unit is enabled.
func (a agent) reboot() {
	before := strings.Fields(a.running())
	a.vm.Reboot()
	now := strings.Fields(a.running())
	if now[2] == before[2] || now[2] != a.vm.BootID() {
		a.Errorf("the boot was %s and is %s; the console says %s", before[2], now[2], a.vm.BootID())
	}
	a.limits()
}

// remove takes pod and agent away; nothing of either is left to systemd.
func (a agent) remove() {
	a.running()
	out := a.vm.Sh(a, `rm /etc/nodeagent/manifests/limited.yaml
while nodeagent get pods | grep -q ^limited; do sleep 0.3; done
pgrep -fx 'sleep 864001' && echo kubepods process; systemctl list-units --no-legend 'kubepods-*pod*' 'cri-containerd-*'
systemctl disable --now nodeagent 2>/dev/null; nodeagent cleanup; find /sys/fs/cgroup -name 'kubepods-*pod*'; ls -d /var/lib/nodeagent/pods || true`)
	if strings.Contains(out, "cri-containerd") || strings.Contains(out, "kubepods") || !strings.Contains(out, "No such file") {
		a.Errorf("left: %s", out)
	}
}

// testIPVS has the installed agent serve through IPVS, and looks whether a
// cleanup on a host without IPVS loads it.
func testIPVS(t *testing.T, v *vm.VM) {
	if v.Sh(t, "ls /usr/bin/nodeagent 2>/dev/null || true") == "" {
		agent{t, v}.install()
	}
	v.GoTest(t, "./test/vm/inside", "-test.run=^TestIPVS$")
	// Network namespaces are taken down after they were removed.
	out := v.Sh(t, `while lsmod | grep -q ^ip_vs; do rmmod $(lsmod | awk '/^ip_vs_/ { print $1 }') ip_vs 2>/dev/null || sleep 0.3; done
nodeagent cleanup >/dev/null; lsmod | grep ^ip_vs || true`)
	if out != "" {
		t.Errorf("cleanup loads %s", out)
	}
}
