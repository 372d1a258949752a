package cni

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestPackets: pods reach each other, the outside sees the node's address,
// and a host port leads to its pod; both families, both sets of plugins.
func TestPackets(t *testing.T) {
	for _, name := range []string{"debian", "latest"} {
		t.Run(name, func(t *testing.T) {
			dir, ok := binDirs(t)[name]
			if !ok {
				t.Skip("these plugins are not built on this machine")
			}
			if !inNode(t) {
				return
			}
			// A host with Docker drops what it does not know.
			must(t, exec.Command("iptables", "-P", "FORWARD", "DROP").Run())
			must(t, exec.Command("ip6tables", "-P", "FORWARD", "DROP").Run())
			n := newNode(t, dir, "10.88.0.0/16", "fd00:88::/64")
			ctx := context.Background()
			must(t, n.Ensure(ctx))
			must(t, n.Ready(ctx))

			outside := newNS(t, "outside")
			addLink(t, outside, "up0", []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
			serve(t, outside, ":80")
			a, ipsA := n.add("aaa", 8080, 80)
			b, ipsB := n.add("bbb", 0, 0)
			serve(t, a, ":80")
			if len(ipsA) != 2 || len(ipsB) != 2 {
				t.Fatalf("addresses %v, %v: want one of each family", ipsA, ipsB)
			}
			wantAnswer(t, "pod to pod", b, ipsA[0]+":80", ipsB[0])
			wantAnswer(t, "pod to pod, IPv6", b, "["+ipsA[1]+"]:80", ipsB[1])
			wantAnswer(t, "pod to outside", b, "192.0.2.2:80", "192.0.2.1")
			wantAnswer(t, "pod to outside, IPv6", b, "[2001:db8::2]:80", "2001:db8::1")
			wantAnswer(t, "outside to host port", outside, "192.0.2.1:8080", "192.0.2.2")
			wantAnswer(t, "outside to host port, IPv6", outside, "[2001:db8::1]:8080", "2001:db8::2")
			wantAnswer(t, "pod to its own host port (hairpin)", a, "192.0.2.1:8080", "10.88.0.1")
			wantAnswer(t, "node to pod", "", ipsA[0]+":80", "10.88.0.1")

			// Somebody flushes the rules: the next look puts them back.
			before := rules(t)
			must(t, exec.Command("iptables", "-t", "nat", "-F", "POSTROUTING").Run())
			must(t, exec.Command("iptables", "-t", "filter", "-F", "NODEAGENT-FORWARD").Run())
			if got, err := ask(b, "192.0.2.2:80"); err == nil && got == "192.0.2.1" {
				t.Fatal("the flush had no effect; this test shows nothing")
			}
			must(t, n.Repair(ctx))
			wantAnswer(t, "pod to outside after repair", b, "192.0.2.2:80", "192.0.2.1")
			// portmap's own jump is not ours to repair; all else is as before.
			for _, l := range strings.Split(before, "\n") {
				if strings.Contains(l, "NODEAGENT") && strings.HasPrefix(l, "-A") && !strings.Contains(rules(t), l) {
					t.Errorf("after repair this is missing: %s", l)
				}
			}
		})
	}
}

// TestEnsureIsIdempotent: a second call changes neither rules nor file.
func TestEnsureIsIdempotent(t *testing.T) {
	if !inNode(t) {
		return
	}
	for name, dir := range binDirs(t) {
		n := newNode(t, dir, "10.88.0.0/16", "fd00:88::/64")
		must(t, n.Ensure(context.Background()))
		file := filepath.Join(n.opts.ConfDir, confName)
		info, err := os.Stat(file)
		must(t, err)
		before := rules(t)
		for _, c := range portmapChains() { // two pods at once would both make them
			if strings.Count(before, ":"+c+" ") != 2 {
				t.Errorf("%s: chain %s is not there for both families:\n%s", name, c, before)
			}
		}
		n.restart()
		n.step = func(s string) {
			if s == "created" {
				t.Errorf("%s: the file is written again", name)
			}
		}
		must(t, n.Ensure(context.Background()))
		must(t, n.Repair(context.Background()))
		again, err := os.Stat(file)
		must(t, err)
		if !os.SameFile(info, again) || rules(t) != before {
			t.Errorf("%s: not the same after a second Ensure:\n%s\nbefore:\n%s", name, rules(t), before)
		}
		c := readConfig(file)
		must(t, c.err)
		want := "1.0.0"
		if name == "latest" {
			want = "1.1.0"
		}
		if c.list.CNIVersion != want || c.edited {
			t.Errorf("%s: cniVersion %s, want %s; edited %v", name, c.list.CNIVersion, want, c.edited)
		}
		must(t, n.Cleanup(context.Background()))
		if left := rules(t); strings.Contains(left, "NODEAGENT") || strings.Contains(left, "CNI-HOSTPORT") {
			t.Errorf("%s: cleanup left rules:\n%s", name, left)
		}
	}
}

// TestForeignNetwork: with a user's file in the folder nothing is written,
// programmed or collected.
func TestForeignNetwork(t *testing.T) {
	if !inNode(t) {
		return
	}
	ctx := context.Background()
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	must(t, os.MkdirAll(n.opts.ConfDir, 0o755))
	file := filepath.Join(n.opts.ConfDir, "20-mine.conflist")
	mine := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"bridge","bridge":"mine0","isGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.99.0.0/24"}]]}}]}`, n.opts.DataDir)
	must(t, os.WriteFile(file, []byte(mine), 0o644))
	before := rules(t)
	must(t, n.Ensure(ctx))
	must(t, n.Ready(ctx))
	n.add("userpod", 0, 0)
	n.forget("userpod")
	if rep := n.gc(); asJSON(rep) != "{}" {
		t.Errorf("collected from a user's network: %s", asJSON(rep))
	}
	must(t, n.Cleanup(ctx))
	if rules(t) != before {
		t.Errorf("rules changed:\n%s", rules(t))
	}
	if _, err := os.Stat(filepath.Join(n.opts.DataDir, "mine", "10.99.0.2")); err != nil {
		t.Errorf("the user's address is gone: %v", err)
	}
	if l, err := linkByName("mine0"); err != nil || l == nil {
		t.Errorf("the user's bridge is gone: %v", err)
	}
	entries, err := os.ReadDir(n.opts.ConfDir)
	must(t, err)
	data, err := os.ReadFile(file)
	must(t, err)
	if len(entries) != 1 || string(data) != mine {
		t.Errorf("the folder changed: %v", entries)
	}
}

// TestEditedFile: what somebody changed in our file stays.
func TestEditedFile(t *testing.T) {
	if !inNode(t) {
		return
	}
	ctx := context.Background()
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	must(t, n.Ensure(ctx))
	file := filepath.Join(n.opts.ConfDir, confName)
	data, err := os.ReadFile(file)
	must(t, err)
	edited := strings.Replace(string(data), `"bridge": "na0",`, `"bridge": "na0", "mtu": 1400,`, 2)
	if edited == string(data) {
		t.Fatal("nothing was edited")
	}
	must(t, os.WriteFile(file, []byte(edited), 0o644))
	n.opts.PodCIDRs = newNode(t, "/usr/lib/cni", "10.77.0.0/16").opts.PodCIDRs
	n.restart()
	must(t, n.Ensure(ctx))
	if got, err := os.ReadFile(file); err != nil || string(got) != edited {
		t.Fatalf("an edited file was written again (%v):\n%s", err, got)
	}
	if !strings.Contains(rules(t), "10.88.0.0/16") {
		t.Error("the rules for the edited network's range are gone")
	}
}

// TestNewCIDR: pods on the old range keep working beside pods on the new one,
// and the old bridge goes with its last pod.
func TestNewCIDR(t *testing.T) {
	if !inNode(t) {
		return
	}
	ctx := context.Background()
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	must(t, n.Ensure(ctx))
	outside := newNS(t, "outside")
	addLink(t, outside, "up0", []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
	serve(t, outside, ":80")
	old, oldIPs := n.add("old", 0, 0)
	serve(t, old, ":80")

	n.opts.PodCIDRs = newNode(t, "/usr/lib/cni", "10.77.0.0/16").opts.PodCIDRs
	n.restart()
	must(t, n.Ensure(ctx))
	fresh, freshIPs := n.add("new", 0, 0)
	if !strings.HasPrefix(freshIPs[0], "10.77.") {
		t.Fatalf("the new pod has %v", freshIPs)
	}
	wantAnswer(t, "old pod to outside", old, "192.0.2.2:80", "192.0.2.1")
	wantAnswer(t, "new pod to outside", fresh, "192.0.2.2:80", "192.0.2.1")
	if _, err := ask(fresh, oldIPs[0]+":80"); err != nil {
		t.Errorf("new pod to old pod: %v\n%s", err, dump())
	}
	n.forget("old")
	if rep := n.gc(); len(rep.Attachments) != 1 || rep.Attachments[0] != "old/eth0" {
		t.Errorf("collected %s", asJSON(rep))
	}
	must(t, n.Ensure(ctx))
	if l, err := linkByName("na0"); err != nil || l != nil {
		t.Errorf("the old bridge is still there: %v %v", l, err)
	}
	if strings.Contains(rules(t), "10.88.0.0") {
		t.Error("the old range's rules are still there")
	}
	wantAnswer(t, "new pod to outside, later", fresh, "192.0.2.2:80", "192.0.2.1")
}

// TestOverlap: a range that the node has an address in is refused before
// anything is changed.
func TestOverlap(t *testing.T) {
	if !inNode(t) {
		return
	}
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "podman0"}}))
	l, err := netlink.LinkByName("podman0")
	must(t, err)
	addr, err := netlink.ParseAddr("10.88.0.1/16")
	must(t, err)
	must(t, netlink.AddrAdd(l, addr))
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	before := rules(t)
	err = n.Ensure(context.Background())
	if err == nil || !strings.Contains(err.Error(), "podman0") || !strings.Contains(err.Error(), "podCIDRs") {
		t.Errorf("error %v: want the interface and what to set", err)
	}
	if rules(t) != before {
		t.Error("rules were changed all the same")
	}
	if files, _ := configFiles(n.opts.ConfDir); len(files) > 0 {
		t.Errorf("files were written all the same: %v", files)
	}
}

// TestKilledBetweenSteps: Ensure and Cleanup die at each of their steps; the
// runtime sees the old or the new file, never half of one, and the next
// Ensure or Cleanup finishes the work.
func TestKilledBetweenSteps(t *testing.T) {
	if !inNode(t) {
		return
	}
	ctx := context.Background()
	for _, step := range []string{"decided", "sysctls", "rules", "created", "written", "renamed"} {
		n := newNode(t, "/usr/lib/cni", "10.88.0.0/16", "fd00:88::/64")
		dieAt(n, step, func() error { return n.Ensure(ctx) })
		files, err := configFiles(n.opts.ConfDir)
		must(t, err)
		if want := step == "renamed"; want != (len(files) == 1) {
			t.Errorf("killed at %s: files %v", step, files)
		}
		n.restart()
		must(t, n.Ensure(ctx))
		must(t, n.Ready(ctx))
		if left, _ := filepath.Glob(filepath.Join(n.opts.ConfDir, ".*")); len(left) > 0 {
			t.Errorf("killed at %s: %v is left over", step, left)
		}
		n.add(fmt.Sprintf("ensure%s", step), 0, 0)
		must(t, n.Cleanup(ctx))
	}
	for _, step := range []string{"released", "collected", "rules", "bridges", "addresses"} {
		n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
		before := rules(t)
		must(t, n.Ensure(ctx))
		n.add("cleanup"+step, 80, 80)
		n.add("cleanup2"+step, 81, 81)
		dieAt(n, step, func() error { return n.Cleanup(ctx) })
		n.restart()
		must(t, n.Cleanup(ctx))
		must(t, n.Cleanup(ctx)) // nothing left is fine, too
		if got := rules(t); strings.Contains(got, "NODEAGENT") || strings.Contains(got, "HOSTPORT") || strings.Contains(got, "CNI-DN") {
			t.Errorf("killed at %s: rules are left:\n%s\nbefore:\n%s", step, got, before)
		}
		if l, err := linkByName("na0"); err != nil || l != nil {
			t.Errorf("killed at %s: the bridge is left: %v %v", step, l, err)
		}
		if ips := n.reserved(); len(ips) > 0 {
			t.Errorf("killed at %s: addresses are left: %v", step, ips)
		}
		if left, err := os.ReadDir("/run/netns"); err != nil || len(left) > 0 {
			t.Errorf("killed at %s: namespaces are left: %v %v", step, left, err)
		}
	}
}

// dieAt runs f on a goroutine that never comes back from the step: nothing
// after it runs, deferred calls included, as after a SIGKILL.
func dieAt(n *node, step string, f func() error) {
	n.t.Helper()
	reached := make(chan struct{})
	ended := make(chan error, 1)
	n.step = func(s string) {
		if s == step {
			close(reached)
			select {}
		}
	}
	go func() { ended <- f() }()
	select {
	case <-reached:
	case err := <-ended:
		n.t.Fatalf("step %s was never reached: %v", step, err)
	}
}

// leak leaves behind what crashes leave: sandboxes "lost", "early" and "gone",
// an empty reservation, and "foreign", which lives but is not ours.
func (n *node) leak() {
	t := n.t
	// 1: the runtime lost a sandbox that it had finished.
	n.add("lost", 8081, 80)
	n.forget("lost")
	// 2: it was killed before the library remembered the sandbox.
	n.add("early", 8082, 80)
	n.forget("early")
	must(t, os.RemoveAll(filepath.Join(n.opts.CacheDir, "results", netName+"-early-eth0")))
	// 3: the same, and the namespace is gone.
	goneNS, _ := n.add("gone", 8083, 80)
	n.forget("gone")
	must(t, os.RemoveAll(filepath.Join(n.opts.CacheDir, "results", netName+"-gone-eth0")))
	must(t, syscall.Unmount(goneNS, syscall.MNT_DETACH))
	must(t, os.Remove(goneNS))
	// 4: host-local was killed between making the file and writing to it.
	must(t, os.WriteFile(filepath.Join(n.opts.DataDir, netName, "10.88.7.7"), nil, 0o600))
	// 5: no sandbox, but somebody lives there: another runtime's pod.
	foreignNS, _ := n.add("foreign", 0, 0)
	n.forget("foreign")
	p := exec.Command("nsenter", "--net="+foreignNS, "sleep", "1000")
	must(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	waitFor(t, func() bool {
		a, err := nsOf(fmt.Sprintf("/proc/%d/ns/net", p.Process.Pid))
		b, err2 := nsOf(foreignNS)
		return err == nil && err2 == nil && a == b
	})
}

// TestCollect: a leaked sandbox's address, ports, interface and namespace go;
// the live one's stay and keep working.
func TestCollect(t *testing.T) {
	for _, name := range []string{"debian", "latest"} {
		t.Run(name, func(t *testing.T) {
			dir, ok := binDirs(t)[name]
			if !ok {
				t.Skip("these plugins are not built on this machine")
			}
			if !inNode(t) {
				return
			}
			ctx := context.Background()
			n := newNode(t, dir, "10.88.0.0/16", "fd00:88::/64")
			must(t, n.Ensure(ctx))
			outside := newNS(t, "outside")
			addLink(t, outside, "up0", []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
			liveNS, liveIPs := n.add("live", 8080, 80)
			serve(t, liveNS, ":80")
			if rep := n.gc(); asJSON(rep) != "{}" {
				t.Fatalf("collected from live pods: %s", asJSON(rep))
			}

			n.leak()
			rep := n.gc()
			for _, id := range []string{"lost/eth0", "early/eth0", "gone/eth0"} {
				if !slices.Contains(rep.Attachments, id) {
					t.Errorf("%s was not collected: %s", id, asJSON(rep))
				}
			}
			if !slices.Contains(rep.Kept, "foreign/eth0") {
				t.Errorf("the inhabited namespace's attachment: %s", asJSON(rep))
			}
			want := 2 * 2 // live and foreign, two families
			if got := n.reserved(); len(got) != want || !slices.Contains(got, liveIPs[0]) || !slices.Contains(got, liveIPs[1]) {
				t.Errorf("reserved: %v, want %d with %v", got, want, liveIPs)
			}
			if r := rules(t); strings.Contains(r, "8081") || strings.Contains(r, "8082") || strings.Contains(r, "8083") {
				t.Errorf("forwarded ports are left:\n%s", r)
			}
			for _, id := range []string{"lost", "early", "gone"} {
				if _, err := os.Stat("/run/netns/cni-" + id); !os.IsNotExist(err) {
					t.Errorf("namespace of %s is left: %v", id, err)
				}
			}
			br, err := linkByName("na0")
			must(t, err)
			waitFor(t, func() bool { // the kernel takes interfaces down with their namespace, a little later
				ps, err := ports(br)
				return err == nil && len(ps) == 2
			})
			wantAnswer(t, "outside to the live pod", outside, "192.0.2.1:8080", "192.0.2.2")
			if rep := n.gc(); len(rep.Attachments)+len(rep.Addresses)+len(rep.Links)+len(rep.NetNS) > 0 {
				t.Errorf("a second collection found more: %s", asJSON(rep))
			}
		})
	}
}

// TestCollectKeepsTheYoung: what is younger than MinAge stays, but for a cleanup.
func TestCollectKeepsTheYoung(t *testing.T) {
	if !inNode(t) {
		return
	}
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	must(t, n.Ensure(context.Background()))
	n.add("young", 0, 0)
	n.forget("young")
	n.opts.MinAge = 1 << 60
	n.restart()
	if rep := n.gc(); len(rep.Attachments)+len(rep.Addresses)+len(rep.Links)+len(rep.NetNS) > 0 {
		t.Errorf("collected the young: %s", asJSON(rep))
	}
	n.opts.MinAge = 0
	n.restart()
	if rep := n.gc(); len(rep.Attachments) != 1 {
		t.Errorf("did not collect the old: %s", asJSON(rep))
	}
	n.add("young", 0, 0)
	n.forget("young")
	n.opts.MinAge = 1 << 60
	n.restart()
	must(t, n.Cleanup(context.Background()))
	if left, err := n.cni.GetCachedAttachments(""); err != nil || len(left) > 0 {
		t.Errorf("a cleanup leaves %v, %v", left, err)
	}
}
