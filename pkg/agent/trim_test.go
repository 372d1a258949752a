package agent

import (
	"context"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestDropText: dropping the binary's pages harms nothing that goes on running.
func TestDropText(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for ctx.Err() == nil {
				if s := strings.Repeat("x", 100); strings.Count(s, "x") != 100 {
					t.Error("a string lost letters")
				}
			}
			return nil
		})
	}
	own, err := ownText()
	if err != nil || len(own) == 0 {
		t.Fatal(own, err)
	}
	for range 50 {
		if err := own.drop(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestDropTextDrops: less of the binary is in memory afterwards.
func TestDropTextDrops(t *testing.T) {
	own, err := ownText()
	if err != nil {
		t.Fatal(err)
	}
	before, err := residentFiles()
	if err != nil {
		t.Fatal(err)
	}
	if err := own.drop(); err != nil {
		t.Fatal(err)
	}
	if after, err := residentFiles(); err != nil || after >= before || before < 1<<20 {
		t.Errorf("%d bytes of files in memory before, %d after; %v", before, after, err)
	}
}

// TestDroppable knows a binary whose addresses the loader wrote into.
func TestDroppable(t *testing.T) {
	const smaps = `400000-500000 r--p 00000000 08:01 1 /bin/agent
Size:               1024 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
500000-600000 r-xp 00100000 08:01 1 /bin/agent (deleted)
Anonymous:             0 kB
600000-700000 r--p 00200000 08:01 1 /bin/agent
Private_Dirty:         8 kB
Anonymous:             8 kB
700000-800000 rw-p 00300000 08:01 1 /bin/agent
Anonymous:             0 kB
800000-900000 rw-p 00000000 00:00 0
Anonymous:             0 kB
900000-a00000 r-xp 00000000 08:01 2 /bin/other
Anonymous:             0 kB
a00000-b00000 r-xp 00000000 08:01 2 [vdso]
Anonymous:             0 kB
`
	got, err := droppable(strings.NewReader(smaps), "/bin/agent")
	if want := []segment{{0x400000, 0x500000}, {0x500000, 0x600000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	if _, err := droppable(strings.NewReader("x-y r-xp 0 0 0 /bin/agent\n"), "/bin/agent"); err == nil {
		t.Error("what is not understood is no error")
	}
}
