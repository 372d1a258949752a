package eviction

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// fake is a node with pods, that has as much left as its pods and images do not take.
type fake struct {
	signal      config.Signal
	left, all   int64
	imageFS     bool
	dead, trash int64 // what can be reclaimed
	pods        []Candidate
	ending      map[types.UID]int // how often Ended says no
	before      []types.UID       // evicted by the agent before
	gives       int64             // what is left more when they have ended
	mu          sync.Mutex        // of said and ending: Run and the test use them
	said        []string
	shown       int // how often Changed was called
}

func (f *fake) Observe(context.Context) Observations {
	return Observations{f.signal: {Available: *bytes(f.left), Capacity: *bytes(f.all)}}
}
func (f *fake) ImageFS(context.Context) bool { return f.imageFS }
func (f *fake) Active() (out []*v1.Pod) {
	for _, c := range f.pods {
		out = append(out, c.Pod)
	}
	return out
}

func (f *fake) Usage(_ context.Context, pods []*v1.Pod, need Need) map[types.UID]*Usage {
	out := map[types.UID]*Usage{}
	for _, c := range f.pods {
		if slices.Contains(pods, c.Pod) && c.Usage != nil {
			out[c.Pod.UID] = c.Usage
		}
	}
	if need != (Need{}) {
		f.say("usage of %d %+v", len(pods), need)
	}
	return out
}

func (f *fake) Evict(uid types.UID, e Eviction) {
	f.say("evict %s %s %t: %s", uid, e.Grace, e.Disrupted, e.Message)
	i := slices.IndexFunc(f.pods, func(c Candidate) bool { return c.Pod.UID == uid })
	f.left += f.pods[i].Usage.Memory
	f.pods = slices.Delete(f.pods, i, i+1)
}

func (f *fake) Ending() (uids []types.UID) { return f.before }

func (f *fake) Ended(uid types.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ending[uid]--
	if f.ending[uid] == -1 {
		f.left += f.gives
	}
	return f.ending[uid] < 0
}

func (f *fake) say(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, fmt.Sprintf(format, args...))
}

func (f *fake) manager(t *testing.T, dir string, thresholds ...config.Threshold) *Manager {
	return New(Options{
		Thresholds: thresholds, Transition: time.Minute, MaxGrace: 10 * time.Second, Every: DefaultEvery, Node: f, Pods: f,
		ReclaimDead:   func(context.Context) error { f.say("dead"); f.left += f.dead; f.dead = 0; return nil },
		ReclaimImages: func(context.Context) error { f.say("images"); f.left += f.trash; f.trash = 0; return nil },
		Event:         func(_, reason, message string) { f.say("%s: %s", reason, message) },
		Evicted:       func(signal string) { f.say("counted %s", signal) },
		Changed: func(c []v1.NodeConditionType) {
			if f.shown++; f.shown > 1 || len(c) > 0 {
				f.say("conditions %v", c)
			}
		},
		StateFile: filepath.Join(dir, "pressure"), Clock: time.Now, After: time.After,
		Log: slog.New(slog.DiscardHandler),
	})
}

func (f *fake) expect(t *testing.T, want ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.said, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(f.said, "\n"), strings.Join(want, "\n"))
	}
	f.said = nil
}

func TestOnePodARoundAndNoCriticalOne(t *testing.T) {
	f := &fake{signal: config.MemoryAvailable, left: 10, all: 1000, pods: []Candidate{
		try("critical 2000000000 0 0", &Usage{Memory: 500}), try("small 0 0 0", &Usage{Memory: 20}), try("large 0 0 0", &Usage{Memory: 60}),
	}}
	m := f.manager(t, t.TempDir(), config.Threshold{Signal: config.MemoryAvailable, Value: amount("100")})
	for _, want := range []types.UID{"large", "small", ""} {
		if got := m.Round(t.Context()); got != want {
			t.Errorf("%q went, want %q", got, want)
		}
	}
	const met, need = "EvictionThresholdMet: Attempting to reclaim memory", "{Memory:true Volumes:false Layers:false}"
	low := "The node was low on resource: memory. Threshold quantity: 100, available: "
	f.expect(t, "conditions [MemoryPressure]",
		met, "usage of 2 "+need, "evict large 1s true: "+low+"10. ", "counted memory.available",
		"usage of 1 "+need, "evict small 1s true: "+low+"70. ", "counted memory.available",
		"usage of 0 "+need)
}

func TestWhatNobodyNeedsGoesFirst(t *testing.T) {
	full := func(signal config.Signal, dead, trash int64) *fake {
		return &fake{signal: signal, left: 10, all: 1000, dead: dead, trash: trash, pods: []Candidate{try("p 0 0 0", &Usage{Memory: 1})}}
	}
	const met, pressed = "EvictionThresholdMet: Attempting to reclaim ephemeral-storage", "conditions [DiskPressure]"
	for name, tc := range map[string]struct {
		f    *fake
		want []string
	}{
		"enough": {full(config.NodeFSAvailable, 50, 45), []string{pressed, met, "dead", "images"}},
		"not enough to have some back": {full(config.NodeFSAvailable, 50, 44), []string{pressed, met, "dead", "images", "usage of 1 {Memory:false Volumes:true Layers:true}",
			"evict p 1s true: The node was low on resource: ephemeral-storage. Threshold quantity: 100, available: 10. ", "counted nodefs.available"}},
	} {
		m := tc.f.manager(t, t.TempDir(), config.Threshold{Signal: config.NodeFSAvailable, Value: amount("100"), Reclaim: amount("5")})
		m.Round(t.Context())
		t.Log(name)
		tc.f.expect(t, tc.want...)
	}
	f := full(config.NodeFSAvailable, 90, 0)
	f.imageFS = true
	f.manager(t, t.TempDir(), config.Threshold{Signal: config.NodeFSAvailable, Value: amount("100")}).Round(t.Context())
	f.expect(t, pressed, met, "dead") // images are on another disk
}

func TestSoftThresholdGivesTime(t *testing.T) {
	for own, want := range map[int64]time.Duration{3: 3 * time.Second, 300: 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{signal: config.MemoryAvailable, left: 10, all: 1000, ending: map[types.UID]int{"p": 20}, pods: []Candidate{try("p 0 0 0", &Usage{Memory: 500})}}
			f.pods[0].Pod.Spec.TerminationGracePeriodSeconds = &own
			m := f.manager(t, t.TempDir(), config.Threshold{Signal: config.MemoryAvailable, Value: amount("100"), Grace: 7 * time.Second})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			start := time.Now()
			go func() { _ = m.Run(ctx) }()
			time.Sleep(6999 * time.Millisecond)
			synctest.Wait()
			f.expect(t, "conditions [MemoryPressure]")
			time.Sleep(time.Millisecond)
			synctest.Wait()
			f.expect(t, "EvictionThresholdMet: Attempting to reclaim memory", "usage of 1 {Memory:true Volumes:false Layers:false}",
				fmt.Sprintf("evict p %s true: The node was low on resource: memory. Threshold quantity: 100, available: 10. ", want), "counted memory.available")
			time.Sleep(time.Minute + 10*time.Second)
			synctest.Wait()
			f.expect(t, "conditions []")
			f.mu.Lock()
			defer f.mu.Unlock()
			if took := time.Since(start); f.ending["p"] >= 0 {
				t.Errorf("it was not waited for in %s", took)
			}
		})
	}
}

// TestWaitsForWhatIsEndedAlready: the agent before has evicted a pod, and that will do.
func TestWaitsForWhatIsEndedAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{signal: config.MemoryAvailable, left: 10, all: 1000, ending: map[types.UID]int{"gone": 20}, before: []types.UID{"gone"}, gives: 290, pods: []Candidate{try("p 0 0 0", &Usage{Memory: 500})}}
		m := f.manager(t, t.TempDir(), config.Threshold{Signal: config.MemoryAvailable, Value: amount("100")})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = m.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		f.expect(t)
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.ending["gone"] >= 0 {
			t.Error("it was not waited for")
		}
	})
}

func TestOversizedPodsGoWhateverIsLeft(t *testing.T) {
	f := &fake{signal: config.MemoryAvailable, left: 500, all: 1000}
	for _, name := range []string{"greedy", "modest", "critical"} {
		c := try(name+" 0 0 0", &Usage{Volumes: map[string]Space{"dir": {Bytes: 2000}}})
		c.Pod.Spec.Volumes[0].EmptyDir.SizeLimit = new(amount("1Ki").Quantity)
		f.pods = append(f.pods, c)
	}
	f.pods[1].Usage.Volumes = map[string]Space{"dir": {Bytes: 1024}}
	f.pods[2].Pod.Spec.Priority = new(int32(2000001000))
	m := f.manager(t, t.TempDir(), config.Threshold{Signal: config.MemoryAvailable, Value: amount("100")})
	if got := m.Round(t.Context()); got != "" {
		t.Errorf("%s", got)
	}
	const usage = "usage of 3 {Memory:false Volumes:true Layers:false}"
	f.expect(t, usage, `evict greedy 1s false: Usage of EmptyDir volume "dir" exceeds the limit "1Ki". `, "counted emptydirfs.limit")
}

// TestStateSurvives: a restarted agent refuses what the one before refused, and a
// soft threshold does not begin anew.
func TestStateSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		soft := config.Threshold{Signal: config.MemoryAvailable, Value: amount("100"), Grace: 10 * time.Second}
		f := &fake{signal: config.MemoryAvailable, left: 10, all: 1000}
		f.manager(t, dir, soft).Look(t.Context())
		time.Sleep(9 * time.Second)
		m := f.manager(t, dir, soft)
		m.Look(t.Context())
		if p := try("p 0 0 0", nil).Pod; m.Refuse(p) == "" {
			t.Error("the node is under pressure, and takes a pod on")
		}
		time.Sleep(time.Second)
		m = f.manager(t, dir, soft)
		m.Look(t.Context())
		if _, ok := m.state.starved(m.Thresholds); !ok {
			t.Error("the grace period has begun anew")
		}
		f.left = 500
		m.Look(t.Context())
		time.Sleep(59 * time.Second)
		if got := Remembered(m.StateFile, time.Minute, time.Now()); len(got) != 1 || got[0] != v1.NodeMemoryPressure {
			t.Errorf("%v", got)
		}
		m = f.manager(t, dir, soft)
		m.Look(t.Context())
		if got := *m.conditions.Load(); len(got) != 1 {
			t.Errorf("the condition has not outlasted the restart: %v", got)
		}
		time.Sleep(time.Second)
		m = f.manager(t, dir, soft)
		m.Look(t.Context())
		if got := *m.conditions.Load(); len(got) != 0 {
			t.Errorf("the condition stays: %v", got)
		}
		// What was remembered is shown already.
		if f.said[len(f.said)-1] != "conditions []" {
			t.Errorf("nobody is told: %q", f.said)
		}
	})
}
