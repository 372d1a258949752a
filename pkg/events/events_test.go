package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newRecorder(o Options) (*Recorder, *clock) {
	c := &clock{now: time.Unix(1000, 0)}
	o.Clock, o.NodeName = c.Now, "n1"
	return New(o), c
}

func ref(name string) ObjectRef { return ObjectRef{Kind: "Pod", Namespace: "default", Name: name} }

func TestSameEventIsCounted(t *testing.T) {
	r, c := newRecorder(Options{})
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"},
		Spec: v1.PodSpec{InitContainers: []v1.Container{{Name: "i"}}, Containers: []v1.Container{{Name: "c"}}}}
	first := c.Now()
	r.PodEvent(p, "c", v1.EventTypeNormal, "Pulled", "m")
	c.add(time.Minute)
	r.PodEvent(p, "i", v1.EventTypeNormal, "Pulled", "m")
	r.PodEvent(p, "", v1.EventTypeNormal, "Pulled", "m")
	r.PodEvent(p, "c", v1.EventTypeNormal, "Pulled", "other")
	r.PodEvent(p, "c", v1.EventTypeWarning, "Pulled", "m")
	r.PodEvent(p, "c", v1.EventTypeNormal, "Pulled", "m")
	all, revision := r.List()
	if len(all) != 5 {
		t.Fatalf("%d events, want 5: %v", len(all), all)
	}
	e := all[4] // the one with the latest news
	if e.Count != 2 || !e.FirstTimestamp.Time.Equal(first) || !e.LastTimestamp.Time.Equal(c.Now()) || e.ResourceVersion != fmt.Sprint(revision) {
		t.Errorf("got %+v at %d", e, revision)
	}
	if e.InvolvedObject.FieldPath != "spec.containers{c}" || all[0].InvolvedObject.FieldPath != "spec.initContainers{i}" || all[1].InvolvedObject.FieldPath != "" {
		t.Errorf("field paths: %v", all)
	}
	if e.Namespace != "ns" || e.InvolvedObject.UID != "u" || e.Source.Host != "n1" || !strings.HasPrefix(e.Name, "web.") {
		t.Errorf("got %+v", e)
	}
	names := map[string]bool{}
	for _, e := range all {
		names[e.Name] = true
	}
	if len(names) != 5 {
		t.Errorf("names are not unique: %v", names)
	}
	r.Event(ObjectRef{Kind: "Node", Name: "n1"}, v1.EventTypeNormal, "Starting", "m")
	if all, _ = r.List(); all[5].Namespace != "default" || all[5].InvolvedObject.Namespace != "" {
		t.Errorf("a node's event: %+v", all[5])
	}
}

func TestBounded(t *testing.T) {
	r, _ := newRecorder(Options{Limit: 10})
	r.Event(ref("first"), v1.EventTypeNormal, "R", "m")
	for i := range 500 {
		r.Event(ref(fmt.Sprint("p", i)), v1.EventTypeNormal, "R", "m")
		r.Event(ref("first"), v1.EventTypeNormal, "R", "m") // has news, so it stays
	}
	all, _ := r.List()
	if len(all) != 10 || all[9].InvolvedObject.Name != "first" || all[9].Count != 501 || all[0].InvolvedObject.Name != "p491" {
		t.Errorf("got %d events, %v", len(all), all)
	}
	if len(r.byKey) != 10 || len(r.objects) != 10 {
		t.Errorf("%d identities and %d buckets are held for 10 events", len(r.byKey), len(r.objects))
	}
}

func TestFlood(t *testing.T) {
	r, c := newRecorder(Options{Burst: 3, Refill: time.Minute})
	before := r.o.Revisions.Current()
	for i := range 1000 {
		r.Event(ref("loud"), v1.EventTypeNormal, "R", fmt.Sprint(i))
	}
	if all, _ := r.List(); len(all) != 3 {
		t.Fatalf("%d events of a flood, want 3", len(all))
	}
	for range 1000 {
		r.Event(ref("loud"), v1.EventTypeNormal, "R", "0")
	}
	all, now := r.List()
	if all[2].Count != 1001 {
		t.Errorf("repetitions are lost: count %d", all[2].Count)
	}
	if now-before != 3 {
		t.Errorf("watchers were told %d times, want 3", now-before)
	}
	r.Event(ref("quiet"), v1.EventTypeNormal, "R", "m")
	if all, _ := r.List(); len(all) != 4 {
		t.Error("a flood about one object drowns another")
	}
	c.add(2 * time.Minute)
	for i := range 10 {
		r.Event(ref("loud"), v1.EventTypeNormal, "R", fmt.Sprint("later", i))
	}
	if all, _ := r.List(); len(all) != 6 {
		t.Errorf("%d events after two refills, want 6", len(all))
	}
}

func TestLongMessage(t *testing.T) {
	r, _ := newRecorder(Options{})
	for _, prefix := range []string{"", "a", "ab"} {
		r.Event(ref("p"), v1.EventTypeNormal, "R", prefix+strings.Repeat("ü", 2000))
	}
	all, _ := r.List()
	for _, e := range all {
		if len(e.Message) > maxMessage || len(e.Message) < maxMessage-4 || !utf8.ValidString(e.Message) || !strings.HasSuffix(e.Message, "…") {
			t.Errorf("cut to %d bytes: %q", len(e.Message), e.Message[len(e.Message)-10:])
		}
	}
}

func TestWatch(t *testing.T) {
	r, _ := newRecorder(Options{Limit: 4})
	r.Event(ref("a"), v1.EventTypeNormal, "R", "m")
	_, since := r.List()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	later, err := r.Watch(ctx, since)
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.Event(ref("b"), v1.EventTypeNormal, "R", "m")
	r.Event(ref("a"), v1.EventTypeNormal, "R", "m")
	for _, want := range []string{"b 1", "a 2"} {
		if e := <-later; fmt.Sprint(e.InvolvedObject.Name, " ", e.Count) != want {
			t.Errorf("got %s %d, want %s", e.InvolvedObject.Name, e.Count, want)
		}
	}
	for _, want := range []string{"a 1", "b 1", "a 2"} {
		if e := <-all; fmt.Sprint(e.InvolvedObject.Name, " ", e.Count) != want {
			t.Errorf("got %s %d, want %s", e.InvolvedObject.Name, e.Count, want)
		}
	}
	for i := range 5 {
		r.Event(ref(fmt.Sprint(i)), v1.EventTypeNormal, "R", "m")
	}
	if _, err := r.Watch(t.Context(), since); !errors.Is(err, errdefs.ErrExpired) {
		t.Errorf("got %v, want ErrExpired", err)
	}
	cancel()
	for range later {
	}
}

func TestConcurrentUse(t *testing.T) {
	r, _ := newRecorder(Options{Limit: 50})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				r.Event(ref(fmt.Sprint("p", (g*i)%70)), v1.EventTypeNormal, "R", fmt.Sprint(i%3))
				r.List()
			}
		})
	}
	wg.Wait()
	if all, _ := r.List(); len(all) > 50 {
		t.Errorf("%d events", len(all))
	}
}
