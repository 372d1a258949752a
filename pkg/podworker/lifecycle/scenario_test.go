package lifecycle

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the scenarios give")

// TestScenarios plays scripts on a pod: testdata/*.txtar hold the pod's spec,
// the script, and what comes of each of its lines.
//
//	start                      let the pod run
//	exit NAME CODE             a container ends
//	slow NAME                  one does not end when it is killed, until exit
//	say NAME hooked|started    its hook, its startup probe was good
//	fail NAME WHAT             its hook or a probe wants it ended
//	pass DURATION              time goes by
//	delete SECONDS             the pod is to end, with that grace period
//	restart                    the agent is another one
//	lose                       the sandbox dies
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			a := txtar.Parse(data)
			if len(a.Files) != 3 {
				t.Fatalf("%d files, want spec, script and want", len(a.Files))
			}
			w := newWorld(t, v1.RestartPolicyAlways, 0, 0)
			if err := yaml.UnmarshalStrict(a.Files[0].Data, &w.pod.Spec); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for line := range strings.Lines(string(a.Files[1].Data)) {
				line = strings.TrimSpace(line)
				fmt.Fprintf(&out, "%s\n", line)
				w.play(strings.Fields(line))
				w.tell(&out)
			}
			if want := string(a.Files[2].Data); out.String() != want {
				if !*update {
					t.Fatalf("got\n%s\nwant\n%s", out.String(), want)
				}
				a.Files[2].Data = []byte(out.String())
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func (w *world) play(words []string) {
	know := func(change func(*Known)) {
		id := w.observed.Newest(words[1]).ID
		k := w.known[id]
		change(&k)
		w.known[id] = k
	}
	switch words[0] {
	case "start":
	case "exit":
		code, err := strconv.Atoi(words[2])
		if err != nil {
			w.t.Fatal(err)
		}
		delete(w.slow, words[1])
		w.exit(words[1], int32(code))
	case "slow":
		w.slow[words[1]] = true
	case "say":
		know(func(k *Known) {
			k.Hooked, k.Started = k.Hooked || words[2] == "hooked", k.Started || words[2] == "started"
		})
	case "fail":
		know(func(k *Known) { k.Failed = Failure(strings.Join(words[2:], " ")) })
	case "pass":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "delete":
		seconds, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		w.pod.DeletionGracePeriodSeconds = &seconds
		w.pod.DeletionTimestamp = &metav1.Time{Time: w.now.Add(time.Duration(seconds) * time.Second)}
	case "restart":
		w.restart()
	case "lose":
		w.observed.Sandboxes[0].Ready = false
		for _, name := range w.running() {
			w.exit(name, 137)
		}
	default:
		w.t.Fatalf("what is %q?", words)
	}
}

// tell settles and writes what was done for it, and how things stand then.
func (w *world) tell(out *strings.Builder) {
	for range 20 {
		plan := w.next()
		for _, a := range plan.Actions {
			fmt.Fprintf(out, "\t%s\n", w.describe(a))
			if w.do(a); a.Barrier {
				break
			}
		}
		if idle(plan) || w.gone {
			fmt.Fprintf(out, "\truns: %s", strings.Join(w.running(), " "))
			if plan.Ended {
				out.WriteString(", ended")
			}
			if !plan.WakeAt.IsZero() {
				fmt.Fprintf(out, ", looks again after %s", plan.WakeAt.Sub(w.now))
			}
			out.WriteString("\n")
			return
		}
		w.now = w.now.Add(time.Millisecond) // no two things at once
	}
	w.t.Fatalf("does not settle: %s", out)
}

func (w *world) describe(a Action) string {
	words := []string{string(a.Kind)}
	if a.Container != "" {
		words = append(words, a.Container)
	}
	if a.Attempt > 0 {
		words = append(words, fmt.Sprintf("#%d", a.Attempt))
	}
	if a.Kind == KillContainer {
		words = append(words, "within", a.Deadline.Sub(w.now).Round(100*time.Millisecond).String())
	}
	if a.Message != "" {
		words = append(words, strconv.Quote(a.Message))
	}
	return strings.Join(words, " ")
}
