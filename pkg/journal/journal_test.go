package journal

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func take(t *testing.T, ch <-chan uint64) uint64 {
	t.Helper()
	select {
	case v, ok := <-ch:
		if !ok {
			t.Fatal("the reader was cut off")
		}
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		return 0
	}
}

func TestFollow(t *testing.T) {
	c := NewCounter(time.Unix(5, 0))
	if c.Current() != 5_000_000 {
		t.Fatalf("a counter of 5 s starts at %d", c.Current())
	}
	j := New[uint64](c, 4)
	start := c.Current()
	add := func() uint64 { r := c.Next(); j.Append(r, r); return r }
	for range 3 {
		add()
	}
	c.Next() // taken by another journal: no gap is to be seen here
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := j.Follow(ctx, start+1, []uint64{7})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint64{7, start + 2, start + 3} {
		if got := take(t, ch); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
	if want := add(); take(t, ch) != want {
		t.Fatal("a later change did not come")
	}
	cancel()
	for range ch {
	}

	for range 2 {
		add() // the first ones are forgotten
	}
	for _, since := range []uint64{0, start, start + 1, c.Current() + 1} {
		if _, err := j.Follow(t.Context(), since, nil); !errors.Is(err, errdefs.ErrExpired) {
			t.Errorf("following from %d: %v, want ErrExpired", since, err)
		}
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	if ch, err = j.Follow(ctx, start+2, nil); err != nil {
		t.Fatalf("following from the oldest revision whose successors are all kept: %v", err)
	}
	if got := take(t, ch); got != start+3 {
		t.Errorf("got %d, want %d", got, start+3)
	}
}

func TestSlowReaderIsCutOff(t *testing.T) {
	c := &Counter{}
	j := New[uint64](c, 8)
	ch, err := j.Follow(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		r := c.Next()
		j.Append(r, r)
	}
	var last uint64
	for r := range ch { // ends only because the reader is cut off
		if last != 0 && r != last+1 {
			t.Fatalf("a gap: %d after %d", r, last)
		}
		last = r
		if r == 200 {
			return // the reader kept up by luck
		}
	}
	if last >= 192 {
		t.Errorf("cut off at %d though the rest is kept", last)
	}
}

func TestManyReadersSeeAll(t *testing.T) {
	c := &Counter{}
	j := New[uint64](c, 4096)
	var wg sync.WaitGroup
	for range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		ch, err := j.Follow(ctx, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer cancel()
			for want := uint64(1); want <= 2000; want++ {
				if got := <-ch; got != want {
					t.Errorf("got %d, want %d", got, want)
					return
				}
			}
		})
	}
	for range 2000 {
		r := c.Next()
		j.Append(r, r)
	}
	wg.Wait()
}
