package cni

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// waitFor waits on a condition, with a limit that only a broken test reaches.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited for 30 s in vain")
		}
		time.Sleep(2 * time.Millisecond) // the pause of a poll, not a wait for an event
	}
}

func TestParseConfigErrors(t *testing.T) {
	const list, single = "/net.d/10-x.conflist", "/net.d/10-x.conf"
	for _, c := range []struct{ name, file, data, want string }{
		{"empty file", list, ``, "line 1, column 0"},
		{"syntax", list, "{\n  \"name\": \"a\",\n  oops\n}", "line 3, column 3"},
		{"not an object", list, `[]`, "not a JSON object"},
		{"no name", list, `{"plugins":[{"type":"bridge"}]}`, ": name: must be a non-empty string"},
		{"name with a slash", list, `{"name":"../x","plugins":[{"type":"bridge"}]}`, ": name: "},
		{"version", list, `{"name":"a","cniVersion":"one","plugins":[{"type":"bridge"}]}`, ": cniVersion: "},
		{"version type", list, `{"name":"a","cniVersion":1,"plugins":[{"type":"bridge"}]}`, ": cniVersion: must be a string"},
		{"versions", list, `{"name":"a","cniVersions":["1.0.0",2],"plugins":[{"type":"bridge"}]}`, ": cniVersions[1]: "},
		{"no plugins", list, `{"name":"a","plugins":[]}`, ": plugins: "},
		{"plugins no list", list, `{"name":"a","plugins":{}}`, ": plugins: "},
		{"inlined but none", list, `{"name":"a","loadOnlyInlinedPlugins":true}`, "plugins"},
		{"plugin no object", list, `{"name":"a","plugins":[1]}`, ": plugins[0]: must be an object"},
		{"no type", list, `{"name":"a","plugins":[{"type":"bridge"},{}]}`, ": plugins[1].type: "},
		{"type with a path", list, `{"name":"a","plugins":[{"type":"../../bin/sh"}]}`, ": plugins[0].type: "},
		{"ipam type", list, `{"name":"a","plugins":[{"type":"bridge","ipam":{"type":"/bin/sh"}}]}`, ": plugins[0].ipam.type: "},
		{"ipam", list, `{"name":"a","plugins":[{"type":"bridge","ipam":7}]}`, ": plugins[0].ipam: must be an object"},
		{"subnet", list, `{"name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0"}]]}}]}`, ": plugins[0].ipam.ranges[0][0].subnet: "},
		{"old subnet", list, `{"name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local","subnet":"x"}}]}`, ": plugins[0].ipam.subnet: "},
		{"capabilities", list, `{"name":"a","plugins":[{"type":"portmap","capabilities":{"portMappings":"yes"}}]}`, ": plugins[0].capabilities.portMappings: "},
		{"list in a .conf", single, `{"name":"a","plugins":[{"type":"bridge"}]}`, ".conflist"},
		{"single without type", single, `{"name":"a"}`, ": type: "},
		{"wrong dns", list, `{"name":"a","plugins":[{"type":"bridge","dns":5}]}`, "/net.d/10-x.conflist: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseConfig(c.file, []byte(c.data))
			if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), c.file) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v: want it invalid, with %q and the file", err, c.want)
			}
		})
	}
}

func TestParseConfigGood(t *testing.T) {
	for file, data := range map[string]string{
		"/net.d/1.conflist": `{"name":"a","cniVersion":"0.3.1","plugins":[{"type":"ptp","ipam":{"type":"dhcp"}},{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		"/net.d/2.conf":     `{"name":"a","cniVersion":"1.0.0","type":"macvlan","ipam":{}}`,
		"/net.d/3.conflist": `{"name":"in-a-folder"}`,
	} {
		if _, err := ParseConfig(file, []byte(data)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// FuzzConfig: whatever is in a file, there is a network or an error that names
// the file; our own file survives every reading.
func FuzzConfig(f *testing.F) {
	mk := marker{Owner: "x", Bridge: "na0", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00::/64")}}
	data, err := render(mk, "/var/lib/cni/networks", []string{"0.4.0", "1.0.0", "1.1.0"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, true)
	f.Add([]byte(`{"name":"a","cniVersions":["1.1.0","9.9.9"],"plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/8"}]]}}]}`), true)
	f.Add([]byte(`{"name":"a","type":"macvlan"}`), false)
	f.Add([]byte(`{"name":"a","nodeagent.dev":{"bridge":"x","podCIDRs":[""]},"plugins":[{"type":"x"}]}`), true)
	f.Add([]byte(`{"name":"a","disableCheck":"maybe","plugins":null}`), true)
	f.Fuzz(func(t *testing.T, data []byte, asList bool) {
		dir := t.TempDir()
		file := filepath.Join(dir, "10-nodeagent.conf")
		if asList {
			file += "list"
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := readConfig(file)
		n := c.describe()
		if c.err != nil {
			if !strings.Contains(c.err.Error(), file) || n.Error == "" || c.list != nil {
				t.Fatalf("error without the file, or a network all the same: %v", c.err)
			}
			return
		}
		if len(c.list.Plugins) == 0 || n.Name == "" || len(c.types()) == 0 {
			t.Fatalf("a network without plugins or name: %+v", n)
		}
		if c.marker != nil {
			c.marker.cidrs()
		}
	})
}

func TestNewRefuses(t *testing.T) {
	p := netip.MustParsePrefix
	for name, o := range map[string]Options{
		"no CIDR":      {},
		"host bits":    {PodCIDRs: []netip.Prefix{p("10.88.0.1/16")}},
		"too small":    {PodCIDRs: []netip.Prefix{p("10.88.0.0/31")}},
		"two of v4":    {PodCIDRs: []netip.Prefix{p("10.88.0.0/16"), p("10.89.0.0/16")}},
		"mapped":       {PodCIDRs: []netip.Prefix{p("::ffff:10.88.0.0/112")}},
		"bridge name":  {PodCIDRs: []netip.Prefix{p("10.88.0.0/16")}, Bridge: "much-too-long-a-name"},
		"bridge slash": {PodCIDRs: []netip.Prefix{p("10.88.0.0/16")}, Bridge: "a/b"},
	} {
		if _, err := New(o); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%s: error %v, want invalid", name, err)
		}
	}
}

func TestReadyReasons(t *testing.T) {
	dir := t.TempDir()
	m, err := New(Options{ConfDir: dir, BinDir: filepath.Join(dir, "bin"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	want := func(parts ...string) {
		t.Helper()
		err := m.Ready(context.Background())
		for _, p := range parts {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("reason %v: want %q in it", err, p)
			}
		}
	}
	want("no CNI network configuration", dir)
	write := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("20-good.conflist", `{"name":"a","plugins":[{"type":"nowhere"}]}`)
	want("20-good.conflist", `"nowhere"`, "bin", "install")
	// The runtime takes the first file, whatever is behind it.
	write("10-bad.conflist", `{"name":"a","plugins":[{}]}`)
	want("10-bad.conflist", "plugins[0].type")
	ns := m.Networks()
	if len(ns) != 2 || !ns[0].Active || ns[0].Error == "" || ns[1].Active || ns[1].Error == "" || ns[1].Ours {
		t.Errorf("networks %+v", ns)
	}
}

func TestGate(t *testing.T) {
	g := newGate()
	leave := g.enter()
	other := g.enter() // creations do not exclude each other
	other()
	other() // twice is fine
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := g.close(ctx); !errors.Is(err, errdefs.ErrTransient) {
		t.Fatalf("closed with a creation under way: %v", err)
	}
	closed := make(chan func())
	go func() {
		open, err := g.close(context.Background())
		if err != nil {
			t.Error(err)
		}
		closed <- open
	}()
	// A waiting collection does not keep creations out.
	g.enter()()
	leave()
	open := <-closed
	var wg sync.WaitGroup
	entered := make(chan struct{})
	wg.Go(func() {
		defer g.enter()()
		close(entered)
	})
	select {
	case <-entered:
		t.Fatal("entered while a collection runs")
	default:
	}
	open()
	wg.Wait()
	<-entered
}

// TestGCListsAfterClosing: the list of sandboxes is made when no creation can
// slip in between it and the removal.
func TestGCListsAfterClosing(t *testing.T) {
	if !inNode(t) {
		return
	}
	n := newNode(t, "/usr/lib/cni", "10.88.0.0/16")
	must(t, n.Ensure(context.Background()))
	done := n.Creating()
	listed := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		_, err := n.GC(context.Background(), func(context.Context) ([]Attachment, error) {
			close(listed)
			return n.live, nil
		})
		result <- err
	}()
	n.add("slow", 0, 0) // a sandbox that appears while the collection waits
	select {
	case <-listed:
		t.Fatal("listed while a sandbox was being created")
	default:
	}
	done()
	must(t, <-result)
	if got := n.reserved(); len(got) != 1 {
		t.Errorf("the new sandbox's address: %v", got)
	}
}
