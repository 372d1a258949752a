package services

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// worldVariable holds the prefix of the world in which a child of RunKilled is
// to work.
const worldVariable = "NODEAGENT_TEST_WORLD"

// RunKilled kills an agent again and again while it applies changes: the next
// one ends where a fresh start does. The agent is the test itself in a process
// of its own, so it is to be all that the test does.
//
// It changes size Services at a time, and dies kills times.
func RunKilled(t *testing.T, size, kills int, fresh func(*World) Restartable, state func(*World) string) {
	big := many(size)
	if prefix := os.Getenv(worldVariable); prefix != "" {
		applyForever(t, fresh(&World{t: t, prefix: prefix}), big)
		return
	}
	w := New(t)
	apply := func(now ruleset.Ruleset) {
		t.Helper()
		if err := fresh(w).Apply(context.Background(), ruleset.Ruleset{}, now); err != nil {
			t.Fatalf("apply: %v", err)
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	small := many(10)
	apply(ruleset.Ruleset{})
	apply(small)
	want := state(w)
	for range kills {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), worldVariable+"="+w.prefix)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It says when it starts a change; the moment of death is anywhere in it.
		lines := bufio.NewScanner(out)
		for range 2 + r.IntN(3) {
			if !lines.Scan() {
				t.Fatalf("the agent ended by itself: %v", cmd.Wait())
			}
		}
		<-time.After(time.Duration(r.IntN(60)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		apply(small)
		_ = cmd.Wait() // killed
		if got := state(w); got != want {
			t.Fatalf("after a kill:\n%s\nwant:\n%s", got, want)
		}
	}
	apply(ruleset.Ruleset{})
}

func applyForever(t *testing.T, b Restartable, big ruleset.Ruleset) {
	var old ruleset.Ruleset
	for i := 0; ; i++ {
		now := big
		if i%2 == 1 {
			now = ruleset.Ruleset{Node: big.Node}
		}
		fmt.Println(i)
		if err := b.Apply(context.Background(), old, now); err != nil {
			t.Fatal(err)
		}
		old = now
	}
}

// many is that many Services of two endpoints that nobody serves.
func many(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ManyRuleset(1).Node}
	for i := range n {
		ip := addr4(96, i)
		r.Frontends = append(r.Frontends, &ruleset.Frontend{
			Key:     ruleset.Key{Addr: ip, Proto: ruleset.TCP, Port: 80},
			Service: fmt.Sprintf("default/s-%d", i), Masquerade: ruleset.MasqueradeRemote,
			Endpoints: endpoints(8080, addr4(1, i), addr4(2, i)),
		})
		r.ClusterIPs = append(r.ClusterIPs, ip)
	}
	return r
}
