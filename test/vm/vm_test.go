// Package vm is the tier that needs a machine of its own: what systemd, cgroup
// v2 and the kernel of a Debian host do, in one guest for all tests.
package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed/vm"
)

// backends of the proxy run the conformance suite in the guest, where there are
// SCTP and IPVS: a package, its tests, and those among them that need neither and
// are no more than slow here. They run on the machine, with the unit tests.
var backends = []struct{ pkg, test, skip string }{
	{"./pkg/proxy/backend/nftables", "TestConformance", ""},
	{"./pkg/proxy/backend/iptables", "TestConformance", ""},
	// SOAK=1 runs more of the same.
	{"./pkg/proxy/backend/ipvs", "Test.*", "Test(Changes|ElementsWithoutProgram|Gone|Look.*|Marks|Places|Rules)"},
}

// TestGuest boots the guest and gives it to each test in turn. What they leave
// in it is theirs to remove.
func TestGuest(t *testing.T) {
	v := vm.Start(t)
	t.Run("Bed", func(t *testing.T) { testBed(t, v) })
	t.Run("CgroupV2", func(t *testing.T) { v.GoTest(t, "./pkg/cgroup", "-test.run=^TestKernel$") })
	for _, b := range backends {
		t.Run(filepath.Base(b.pkg), func(t *testing.T) {
			v.GoTest(t, b.pkg, "-test.run=^"+b.test+"$", "-test.skip=^"+b.skip+"$")
		})
	}
	t.Run("Agent", func(t *testing.T) { testAgent(t, v) })
	t.Run("AgentIPVS", func(t *testing.T) { testIPVS(t, v) })
}

// testBed tries what the other tests rely on.
func testBed(t *testing.T, v *vm.VM) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := v.Run(ctx, "printf", "%s|", "a b", "it's", "$HOME"); err != nil || out != "a b|it's|$HOME|" {
		t.Errorf("printf: %q, %v", out, err)
	}
	out, err := v.Run(ctx, "sh", "-c", "echo out; echo err >&2; exit 7")
	var exit *vm.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 || out != "out\nerr\n" {
		t.Errorf("a program that fails: %q, %v", out, err)
	}

	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"etc/nodeagent-test/secret": 0o600, "lib/nodeagent-test/program": 0o755} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+name+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Copy(ctx, dir, "/"); err != nil {
		t.Fatal(err)
	}
	out = v.Sh(t, `/usr/lib/nodeagent-test/program; stat -c %a /lib /etc /etc/nodeagent-test /etc/nodeagent-test/secret
rm -r /etc/nodeagent-test /usr/lib/nodeagent-test`)
	if want := "lib/nodeagent-test/program\n777\n755\n700\n600\n"; out != want {
		t.Errorf("copied: %q, want %q", out, want)
	}
	if err := v.Copy(ctx, dir, "/proc/version"); !errors.As(err, &exit) || !strings.Contains(exit.Output, "/version") {
		t.Errorf("a copy to where none can be: %v", err)
	}

	// A disk is plugged in and out.
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	qmp := func(command string, arguments map[string]any) {
		t.Helper()
		if err := v.QMP(ctx, command, arguments, nil); err != nil {
			t.Fatal(err)
		}
	}
	qmp("blockdev-add", map[string]any{"driver": "raw", "node-name": "extra", "file": map[string]any{"driver": "file", "filename": disk}})
	qmp("device_add", map[string]any{"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": 0, "lun": 3, "drive": "extra", "id": "extra"})
	v.Sh(t, "until grep -q 2048 /sys/bus/scsi/devices/*:0:3/block/*/size; do sleep 0.1; done 2>/dev/null")
	qmp("device_del", map[string]any{"id": "extra"})
	v.Sh(t, "while [ -e /sys/bus/scsi/devices/*:0:3 ]; do sleep 0.1; done")
	qmp("blockdev-del", map[string]any{"node-name": "extra"})

	before := v.BootID()
	v.Sh(t, "echo kept >/root/synced; sync; echo lost >/root/unsynced")
	v.PowerCut()
	if out := v.Sh(t, "cd /root; cat synced unsynced 2>/dev/null; rm -f synced unsynced"); out != "kept\n" || v.BootID() == before {
		t.Errorf("after a power cut of boot %s: %q in boot %s", before, out, v.BootID())
	}
}
