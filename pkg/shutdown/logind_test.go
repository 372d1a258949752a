package shutdown

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/logind"
)

// TestLogind is against a D-Bus of its own.
func TestLogind(t *testing.T) {
	testbed.Require(t, "dbus-daemon")
	dropIns := filepath.Join(t.TempDir(), "logind.conf.d")
	fake := logind.Start(t, t.TempDir(), dropIns, 5*time.Second)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", fake.Address)
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	login, err := Connect(ctx, dropIns)
	must(err)
	announced, err := login.Announced(ctx)
	must(err)
	if preparing, err := login.Preparing(ctx); preparing || err != nil {
		t.Errorf("preparing: %v %v", preparing, err)
	}
	if d, err := login.MaxDelay(ctx); d != 5*time.Second || err != nil {
		t.Errorf("delay: %v %v", d, err)
	}
	must(login.SetMaxDelay(ctx, 90*time.Second))
	if d, err := login.MaxDelay(ctx); d != 90*time.Second || err != nil {
		t.Errorf("delay: %v %v", d, err)
	}
	lock, err := login.Delay(ctx)
	must(err)
	fake.Announce(true)
	if begins := <-announced; !begins || !fake.Held() {
		t.Errorf("begins: %v, held: %v", begins, fake.Held())
	}
	if preparing, err := login.Preparing(ctx); !preparing || err != nil {
		t.Errorf("preparing: %v %v", preparing, err)
	}
	if _, err := login.Delay(ctx); err == nil {
		t.Error("a lock was given although the host goes down")
	}
	must(lock.Close())
	fake.AwaitRelease()
	fake.Announce(false)
	if <-announced {
		t.Error("it was cancelled")
	}
	must(login.Close())
	if _, open := <-announced; open {
		t.Error("announcements outlive the connection")
	}

	if removed, err := Restore(ctx, dropIns); !removed || err != nil {
		t.Errorf("removed: %v %v", removed, err)
	}
	if left, err := os.ReadDir(dropIns); len(left) > 0 || err != nil {
		t.Errorf("%v %v", left, err)
	}
	if removed, err := Restore(ctx, dropIns); removed || err != nil {
		t.Errorf("removed again: %v %v", removed, err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere")
	if _, err := Connect(ctx, dropIns); err == nil || !strings.Contains(err.Error(), "D-Bus") {
		t.Errorf("%v", err)
	}
}
