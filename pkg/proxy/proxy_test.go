package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Nothing is applied before every input has given all that it has: a restart
// takes no rule away.
func TestNothingBeforeAllInputsHaveSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.o.Inputs = []string{"local", "apiserver"}
		w.start()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Hour)
		if did := w.did(); len(did) > 0 {
			t.Errorf("before the API server has synced: %v", did)
		}
		if err := w.p.Ready(); err == nil || !strings.Contains(err.Error(), "apiserver") || strings.Contains(err.Error(), "local") {
			t.Errorf("readyz says %v", err)
		}
		w.p.Synced("apiserver")
		w.settle(time.Minute)
		if did := w.did(); len(did) == 0 || did[0] != "replace nftables" {
			t.Errorf("then: %v", did)
		}
		if err := w.p.Ready(); err != nil {
			t.Error(err)
		}
		if st := w.p.Status(); st.Mode != "nftables" || st.Services != 1 || st.Frontends != 1 || st.LastSync.IsZero() {
			t.Errorf("%+v", st)
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	})
}

// A change is in the kernel as the difference; what does not matter is none.
func TestChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		for _, f := range []func(){
			func() { w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP)) },
			func() { w.p.Upsert(slice("a", "10.244.0.1")) },
			func() { w.p.Upsert(slice("a", "10.244.0.2")) },
			func() { w.p.Delete(service("a", "", corev1.ProtocolTCP)) },
		} {
			f()
			w.settle(time.Second)
			if did := w.did(); !slices.Equal(did, []string{"apply nftables"}) {
				t.Errorf("a change: %v", did)
			}
		}
		w.p.Upsert(slice("b", "10.244.0.2")) // of no Service
		w.p.Delete(service("c", "", corev1.ProtocolTCP))
		w.settle(time.Minute)
		if did := w.did(); len(did) > 0 {
			t.Errorf("no change: %v", did)
		}
	})
}

// A crowd of changes is applied in few passes, and the first of them at once.
func TestChangesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		w.p.Upsert(service("first", "10.96.1.1", corev1.ProtocolTCP))
		synctest.Wait() // no time passes
		if did := w.did(); len(did) != 1 {
			t.Errorf("the first: %v", did)
		}
		for i := range 100 {
			w.p.Upsert(service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.0.%d", i+1), corev1.ProtocolTCP))
		}
		w.settle(time.Second)
		if did := w.did(); len(did) != 1 {
			t.Errorf("100 more took %d passes", len(did))
		}
	})
}

// Under a constant load passes take a tenth of the time, or a second lies
// between two of them; after a long one, such as the first, nobody waits longer.
func TestConstantLoad(t *testing.T) {
	for _, c := range []struct {
		takes    time.Duration
		min, max int // passes in a minute
	}{{time.Millisecond, 5000, 6100}, {30 * time.Millisecond, 190, 240}, {10 * time.Second, 5, 5}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.k.takes = c.takes
			w.start()
			defer w.stop()
			w.p.Synced("local")
			w.settle(time.Minute)
			w.did()
			for i := range 6000 {
				w.p.Upsert(service("a", fmt.Sprintf("10.96.0.%d", 1+i%2), corev1.ProtocolTCP))
				w.settle(10 * time.Millisecond)
			}
			if n := len(w.did()); n < c.min || n > c.max {
				t.Errorf("%d passes of %s in a minute, want %d to %d", n, c.takes, c.min, c.max)
			}
			w.settle(20 * time.Second)
			w.did()
			w.p.Upsert(service("last", "10.96.0.3", corev1.ProtocolTCP))
			w.settle(time.Second + c.takes)
			if n := len(w.did()); n != 1 {
				t.Errorf("after a rest, a change is in %d passes", n)
			}
		})
	}
}

// What comes as one is served as one, however long it takes.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		w.p.Batch(func() {
			w.p.Delete(service("a", "", corev1.ProtocolTCP))
			w.settle(time.Second)
			if did := w.did(); len(did) > 0 {
				t.Errorf("in the middle of it: %v", did)
			}
			w.p.Upsert(service("b", "10.96.0.2", corev1.ProtocolTCP))
		})
		w.settle(time.Second)
		if f := w.k.holds("nftables").Frontends; len(f) != 1 || f[0].Key.Addr != netip.MustParseAddr("10.96.0.2") {
			t.Errorf("%v, want the one that came", f)
		}
	})
}

// What fails is tried again, with the old rules in place, and said.
func TestFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		w.k.failing("apply nftables", errors.New("the kernel is full"))
		w.k.failing("replace nftables", errors.New("the kernel is still full"))
		w.p.Upsert(service("b", "10.96.0.2", corev1.ProtocolTCP))
		w.settle(10 * time.Minute)
		if err := w.p.Ready(); err == nil || !strings.Contains(err.Error(), "still full") {
			t.Errorf("readyz says %v", err)
		}
		if n := len(w.did()); n < 10 || n > 40 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		w.waits(false) // as after a pass that began before the change
		w.settle(time.Minute)
		w.mu.Lock()
		waiting := w.waiting
		w.mu.Unlock()
		if !waiting {
			t.Error("healthz does not know that something waits")
		}
		if n := len(w.k.holds("nftables").Frontends); n != 1 {
			t.Errorf("the old rules: %d", n)
		}
		if !w.said("Node ServicesNotProgrammed") {
			t.Error("that is no event")
		}
		w.k.heal()
		w.settle(time.Minute)
		if err := w.p.Ready(); err != nil || len(w.k.holds("nftables").Frontends) != 2 {
			t.Errorf("afterwards: %v", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if last := w.synced[len(w.synced)-1]; last != "full" {
			t.Errorf("passes %v", w.synced)
		}
	})
}

// Rules that others change are put back at once, but not for somebody who
// does so all the time.
func TestOthersChangeTheRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		w.flush()
		synctest.Wait() // no time passes
		if did := w.did(); !slices.Equal(did, []string{"replace nftables"}) {
			t.Errorf("a flush: %v", did)
		}
		if !w.said("Node ProxyRulesChanged") {
			t.Error("that is no event")
		}
		w.settle(time.Hour)
		for range 600 {
			w.flush()
			w.settle(100 * time.Millisecond)
		}
		if n := len(w.did()); n < 60 || n > 70 {
			t.Errorf("a minute of flushes: %d repairs", n)
		}
		w.settle(2 * time.Second)
		if w.k.isLost() {
			t.Error("the last one is not repaired")
		}
	})
}

// What a watcher puts right by itself is an event, and needs no pass.
func TestOthersChangeOneThing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Synced("local")
		w.settle(time.Minute)
		w.did()
		w.k.mended()
		synctest.Wait()
		if did := w.did(); !w.said("Node ProxyRulesChanged") || len(did) > 0 {
			t.Errorf("no event, or passes: %v", did)
		}
	})
}

func TestWatchThatCannotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.k.failing("watch nftables", errors.New("no sockets left"))
		w.start()
		defer w.stop()
		w.p.Synced("local")
		w.settle(time.Minute)
		if !w.said("Node ProxyWatchFailed") {
			t.Error("that is no event")
		}
		w.did()
		w.k.heal()
		w.settle(time.Minute)
		if did := w.did(); !slices.Equal(did, []string{"replace nftables"}) {
			t.Errorf("when it has begun, for what was missed: %v", did)
		}
	})
}

// A mode is exchanged for another one without a moment in which there is none.
func TestModeChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Minute)
		if did := w.did(); !slices.Equal(did, []string{"replace nftables", "cleanup iptables", "cleanup userspace"}) {
			t.Errorf("with a state folder that knows nothing: %v", did)
		}
		w.stop()
		w.o.Mode = "iptables"
		w.k.failing("cleanup nftables", errors.New("busy"))
		w.start()
		w.p.Synced("local")
		w.settle(10 * time.Second)
		did := w.did()
		if len(did) < 3 || did[0] != "replace iptables" || did[1] != "cleanup nftables" {
			t.Errorf("the other mode: %v", did)
		}
		w.stop()
		// The agent is started again before the first mode's rules are gone.
		w.k.heal()
		w.start()
		w.p.Synced("local")
		w.settle(time.Minute)
		if did := w.did(); !slices.Equal(did, []string{"replace iptables", "cleanup nftables"}) {
			t.Errorf("after a restart: %v", did)
		}
		w.stop()
		w.start()
		w.p.Synced("local")
		w.settle(time.Minute)
		if did := w.did(); !slices.Equal(did, []string{"replace iptables"}) {
			t.Errorf("after another one: %v", did)
		}
		w.stop()
		w.o.Mode = "none"
		w.k.failing("cleanup iptables", errors.New("busy"))
		w.start()
		w.settle(time.Minute)
		w.k.heal()
		w.settle(time.Minute)
		if r := w.k.holds("iptables"); len(r.Frontends) > 0 {
			t.Errorf("with mode none there are %v", r)
		}
		if _, err := os.Stat(w.o.StateFile); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the note: %v", err)
		}
		w.stop()
	})
}

// Whoever leaves closes loopback addresses behind itself; the mode that has taken
// over opens them again.
func TestLoopbackNodePortsOutliveTheOtherMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.o.Node.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		w.start()
		w.p.Synced("local")
		w.settle(time.Minute)
		w.stop()
		w.did()
		w.o.Mode = "iptables"
		w.start()
		defer w.stop()
		w.p.Synced("local")
		w.settle(time.Hour)
		if did := w.did(); !slices.Equal(did, []string{"replace iptables", "cleanup nftables", "replace iptables"}) {
			t.Errorf("the other mode: %v", did)
		}
	})
}

// Everything goes, noted or not; what cannot go is noted.
func TestCleanup(t *testing.T) {
	w := newWorld(t)
	w.k.rules["iptables"] = ruleset.Ruleset{}
	w.k.failing("detect userspace", errors.New("no"))
	w.k.failing("cleanup nftables", errors.New("busy"))
	if err := proxy.Cleanup(t.Context(), w.o.Modes, w.o.StateFile); err == nil || !strings.Contains(err.Error(), "nftables: busy") {
		t.Errorf("%v", err)
	}
	if did := w.did(); !slices.Equal(did, []string{"cleanup nftables", "cleanup iptables"}) {
		t.Errorf("%v", did)
	}
	if b, err := os.ReadFile(w.o.StateFile); string(b) != "nftables\n" {
		t.Errorf("noted %q, %v", b, err)
	}
}

// A mode that can tell what it has in use without being tried is not tried: to
// detect it may load a module.
func TestCleanupTriesNoModeThatIsNotInUse(t *testing.T) {
	for _, used := range []bool{true, false} {
		w := newWorld(t)
		for i := range w.o.Modes {
			m := &w.o.Modes[i]
			m.Detect = func(context.Context) error { t.Errorf("%s was tried", m.Name); return nil }
			m.Used = func() bool { return used && m.Name == "iptables" }
		}
		if err := proxy.Cleanup(t.Context(), w.o.Modes, w.o.StateFile); err != nil {
			t.Error(err)
		}
		if did := w.did(); slices.Equal(did, []string{"cleanup iptables"}) != used || len(did) > 1 {
			t.Errorf("used %t: %v", used, did)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		mode   string
		cannot []string
		want   string
	}{
		{"auto", nil, "nftables"},
		{"auto", []string{"nftables"}, "iptables"},
		{"auto", []string{"nftables", "iptables"}, "userspace"},
		{"iptables", []string{"nftables"}, "iptables"},
		{"iptables", []string{"iptables"}, ""},
		{"auto", []string{"nftables", "iptables", "userspace"}, ""},
		{"ipvs", nil, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.o.Mode = tc.mode
			for _, m := range tc.cannot {
				w.k.failing("detect "+m, errors.New("no such kernel"))
			}
			w.start()
			w.p.Synced("local")
			w.settle(time.Second)
			if got := w.p.Status().Mode; got != tc.want {
				t.Errorf("%s without %v: %q, want %q", tc.mode, tc.cannot, got, tc.want)
			}
			err := w.stop()
			if (err == nil) != (tc.want != "") {
				t.Errorf("%s without %v: %v", tc.mode, tc.cannot, err)
			}
			if tc.want == "" && !strings.Contains(err.Error(), "mode") {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// Node ports follow the node's addresses.
func TestAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.o.Node.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		w.start()
		defer w.stop()
		s := service("a", "10.96.0.1", corev1.ProtocolTCP)
		s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30000
		w.p.Upsert(s)
		w.p.Synced("local")
		w.settle(time.Minute)
		w.mu.Lock()
		w.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
		w.mu.Unlock()
		w.did()
		w.moved()
		w.settle(time.Second)
		if got := w.k.holds("nftables").Node.NodePortAddresses; !slices.Contains(got, w.addrs[0]) {
			t.Errorf("node ports at %v", got)
		}
		w.did()
		w.moved() // another interface came, without an address of interest
		w.settle(time.Second)
		if did := w.did(); len(did) > 0 {
			t.Errorf("the same addresses: %v", did)
		}
	})
}

func TestSetNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.o.PodCIDRsFromNode = true
		w.start()
		defer w.stop()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Second)
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}
		n.Spec.PodCIDRs = []string{"10.244.7.0/24"}
		w.p.SetNode(n)
		w.p.SetServiceCIDRs([]netip.Prefix{netip.MustParsePrefix("10.200.0.0/16")})
		w.p.SetNode(nil)
		w.settle(time.Second)
		got := w.k.holds("nftables").Node
		if fmt.Sprint(got.LocalPods.Prefixes) != "[10.244.7.0/24]" || fmt.Sprint(got.ServiceCIDRs) != "[10.200.0.0/16]" {
			t.Errorf("%+v", got)
		}
		w.p.Delete(service("a", "", corev1.ProtocolTCP))
		w.settle(time.Second)
		if got := w.k.holds("nftables").Node; len(got.ServiceCIDRs) > 0 {
			t.Errorf("without any Service %v is dropped", got.ServiceCIDRs)
		}
	})
}

// How late a slice is counts from when its pods changed, for slices that
// changed since the start.
func TestProgrammingLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Upsert(service("a", "10.96.0.1", corev1.ProtocolTCP))
		w.p.Synced("local")
		w.settle(time.Minute)
		before, now := slice("a", "10.244.0.1"), slice("a", "10.244.0.2")
		before.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Add(-time.Hour).Format(time.RFC3339Nano)}
		now.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)}
		w.p.Upsert(before)
		w.settle(3 * time.Second)
		w.k.failing("apply nftables", errors.New("once"))
		w.p.Upsert(now)
		synctest.Wait()
		w.k.heal()
		w.settle(time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.late) != 1 || w.late[0] < 3*time.Second {
			t.Errorf("%v", w.late)
		}
	})
}

// What is wrong with an object is an event on it.
func TestRefusedEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.stop()
		w.p.Upsert(slice("a", "127.0.0.1"))
		w.p.Upsert(&corev1.Pod{})
		if !w.said("EndpointSlice NotServed") {
			t.Error("that is no event")
		}
	})
}
