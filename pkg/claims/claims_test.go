package claims

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// node is a store and the controller on it, which a test restarts.
type node struct {
	*testing.T
	*store.Store
	c      *Controller
	dir    string
	events []string
}

func newNode(t *testing.T) *node {
	n := &node{T: t, dir: t.TempDir()}
	n.restart()
	return n
}

func (n *node) restart() {
	n.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(store.Options{Dir: filepath.Join(n.dir, "pods"), NodeName: "n1", Sources: []store.SourceDecl{{Name: store.SourceFile, Target: "/m"}},
		Decode: manifest.Decode, Equal: manifest.SemanticEqual, Log: log})
	if err != nil {
		n.Fatal(err)
	}
	n.Store = s
	n.c = New(Options{Store: s, Clock: func() time.Time { return time.Unix(1000, 0) }, Log: log,
		NodeMatches: func(s *v1.NodeSelector) bool { return pod.MatchesNode(s, "n1", nil) },
		Event: func(about events.ObjectRef, _, reason, message string) {
			n.events = append(n.events, fmt.Sprintf("%s %s: %s: %s", about.Kind, about.Name, reason, message))
		}})
}

// apply makes the folder hold these documents, and has the controller look until
// nothing changes any more.
func (n *node) apply(docs ...string) {
	n.Helper()
	objects, errs := manifest.Decode([]byte(strings.Join(docs, "\n---\n")), manifest.Options{Origin: "a.yaml", NodeName: "n1"})
	if len(errs) > 0 {
		n.Fatal(errs)
	}
	n.Apply(store.SourceFile, store.Snapshot{Objects: objects})
	n.settle()
}

func (n *node) settle() {
	n.Helper()
	for range 3 {
		before := n.Revision()
		n.c.Look()
		if n.Revision() == before {
			return
		}
	}
	n.Error("it does not come to rest")
}

// shown is "claims | volumes", each with its phase and its other half.
func (n *node) shown() string {
	var out []string
	claims, _ := n.Resources(claimKind)
	for _, r := range claims {
		c := r.Object.(*v1.PersistentVolumeClaim)
		out = append(out, strings.TrimSuffix(fmt.Sprintf("%s %s %s", c.Name, c.Status.Phase, c.Spec.VolumeName), " "))
	}
	volumes, _ := n.Resources(volumeKind)
	for _, r := range volumes {
		v := r.Object.(*v1.PersistentVolume)
		ref := ""
		if v.Spec.ClaimRef != nil {
			ref = " " + v.Spec.ClaimRef.Name
		}
		out = append(out, fmt.Sprintf("%s %s%s", v.Name, v.Status.Phase, ref))
	}
	return strings.Join(out, ", ")
}

func (n *node) want(what, want string) {
	n.Helper()
	if got := n.shown(); got != want {
		n.Errorf("%s: %s, want %s", what, got, want)
	}
}

func volume(name, size, rest string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: %s, labels: {name: %s}}\nspec:\n  capacity: {storage: %s}\n  hostPath: {path: /d}\n%s", name, name, size, modes(rest))
}

func claim(name, size, rest string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: %s}\nspec:\n  resources: {requests: {storage: %s}}\n%s", name, size, modes(rest))
}

func modes(rest string) string {
	if !strings.Contains(rest, "accessModes") {
		rest += "  accessModes: [ReadWriteOnce]\n"
	}
	return rest
}

// TestMatching: which volume a claim gets.
func TestMatching(t *testing.T) {
	local := func(node string) string {
		return "  nodeAffinity: {required: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [" + node + "]}]}]}}\n"
	}
	for name, tc := range map[string]struct {
		docs []string
		want string
	}{
		"the smallest that fits":        {[]string{volume("big", "10Gi", ""), volume("fits", "2Gi", ""), volume("small", "1Gi", ""), claim("c", "1500Mi", "")}, "c Bound fits, big Available, fits Bound c, small Available"},
		"the first by name":             {[]string{volume("b", "1Gi", ""), volume("a", "1Gi", ""), claim("c", "1Gi", "")}, "c Bound a, a Bound c, b Available"},
		"none":                          {[]string{claim("c", "1Gi", "")}, "c Pending"},
		"too small":                     {[]string{volume("a", "1Gi", ""), claim("c", "2Gi", "")}, "c Pending, a Available"},
		"a selector":                    {[]string{volume("a", "1Gi", ""), volume("b", "5Gi", ""), claim("c", "1Gi", "  selector: {matchLabels: {name: b}}\n")}, "c Bound b, a Available, b Bound c"},
		"an expression":                 {[]string{volume("a", "1Gi", ""), volume("b", "5Gi", ""), claim("c", "1Gi", "  selector: {matchExpressions: [{key: name, operator: NotIn, values: [a]}]}\n")}, "c Bound b, a Available, b Bound c"},
		"a class":                       {[]string{volume("a", "1Gi", ""), volume("b", "5Gi", "  storageClassName: fast\n"), claim("c", "1Gi", "  storageClassName: fast\n")}, "c Bound b, a Available, b Bound c"},
		"no class":                      {[]string{volume("a", "1Gi", "  storageClassName: fast\n"), claim("c", "1Gi", "")}, "c Pending, a Available"},
		"an access mode":                {[]string{volume("a", "1Gi", ""), volume("b", "2Gi", "  accessModes: [ReadWriteMany, ReadWriteOnce]\n"), claim("c", "1Gi", "  accessModes: [ReadWriteMany]\n")}, "c Bound b, a Available, b Bound c"},
		"a volume mode":                 {[]string{volume("a", "1Gi", ""), claim("c", "1Gi", "  volumeMode: Block\n")}, "c Pending, a Available"},
		"another node's":                {[]string{volume("a", "1Gi", local("n2")), volume("b", "2Gi", local("n1")), claim("c", "1Gi", "")}, "c Bound b, a Available, b Bound c"},
		"one for two":                   {[]string{volume("a", "1Gi", ""), claim("c", "1Gi", ""), claim("d", "1Gi", "")}, "c Bound a, d Pending, a Bound c"},
		"one that is meant for it":      {[]string{volume("a", "1Gi", ""), volume("b", "5Gi", "  claimRef: {namespace: default, name: c}\n"), claim("c", "1Gi", "")}, "c Bound b, a Available, b Bound c"},
		"one that is meant for another": {[]string{volume("a", "1Gi", "  claimRef: {namespace: default, name: d}\n"), claim("c", "1Gi", "")}, "c Pending, a Available d"},
		"the one that it names":         {[]string{volume("a", "1Gi", ""), volume("b", "5Gi", ""), claim("c", "1Gi", "  volumeName: b\n")}, "c Bound b, a Available, b Bound c"},
		"one that does not exist":       {[]string{volume("a", "1Gi", ""), claim("c", "1Gi", "  volumeName: b\n")}, "c Pending b, a Available"},
		"one that does not fit":         {[]string{volume("a", "1Gi", ""), claim("c", "2Gi", "  volumeName: a\n")}, "c Pending a, a Available"},
		"one that is taken":             {[]string{volume("a", "1Gi", ""), claim("c", "1Gi", ""), claim("d", "1Gi", "  volumeName: a\n")}, "c Bound a, d Pending a, a Bound c"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.apply(tc.docs...)
			n.want("at first", tc.want)
			n.restart()
			n.settle()
			n.want("after a restart", tc.want)
			if strings.Contains(tc.want, "Pending") != (len(n.events) > 0) {
				t.Errorf("events %q", n.events)
			}
		})
	}
}

// TestDeck: the slides' volume and claim.
func TestDeck(t *testing.T) {
	data, err := os.ReadFile("../../test/deck/pv-pvc-selector.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	n.apply(string(data))
	n.want("the deck", "pvc-selector-example Bound pv-selector-example, pv-selector-example Bound pvc-selector-example")
	r, _ := n.Resource(claimKind, pod.Key{Namespace: "default", Name: "pvc-selector-example"})
	st := r.Object.(*v1.PersistentVolumeClaim).Status
	if q := st.Capacity[v1.ResourceStorage]; q.String() != "2Gi" || !slices.Equal(st.AccessModes, []v1.PersistentVolumeAccessMode{v1.ReadWriteMany}) {
		t.Errorf("status %+v", st)
	}
}

// TestLife: what becomes of both when one goes and comes back.
func TestLife(t *testing.T) {
	n := newNode(t)
	a, c := volume("a", "1Gi", ""), claim("c", "1Gi", "")
	n.apply(c)
	n.want("a claim alone", "c Pending")
	n.apply(c, a)
	n.want("its volume comes", "c Bound a, a Bound c")
	n.apply(c)
	n.want("the volume goes", "c Lost a")
	n.restart()
	n.apply(c, a)
	n.want("it comes back", "c Bound a, a Bound c")
	n.apply(a)
	n.want("the claim goes", "a Released c")
	n.restart()
	n.apply(c, a)
	n.want("another of its name comes", "c Pending, a Released c")
	n.apply(c)
	n.apply(c, a)
	n.want("the volume is made anew", "c Bound a, a Bound c")

	d := volume("a", "1Gi", "  persistentVolumeReclaimPolicy: Delete\n")
	n = newNode(t)
	n.apply(c, d)
	n.apply(d)
	n.want("policy Delete", "a Failed c")
	if len(n.events) != 1 || !strings.Contains(n.events[0], "PersistentVolume a: VolumeFailedDelete: nodeagent deletes no data") {
		t.Errorf("events %q", n.events)
	}
}

// TestHalfBound: an agent that dies between its two writes goes on from there.
func TestHalfBound(t *testing.T) {
	n := newNode(t)
	n.apply(claim("c", "1Gi", ""))
	b := volume("b", "1Gi", "")
	n.apply(claim("c", "1Gi", ""), b)
	r, _ := n.Resource(claimKind, pod.Key{Namespace: "default", Name: "c"})
	half := r.Object.(*v1.PersistentVolumeClaim).DeepCopy()
	half.Spec.VolumeName, half.Status = "", v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending}
	r.Object = half
	if err := n.SetResource(r); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.apply(claim("c", "1Gi", ""), volume("a", "1Gi", ""), b)
	n.want("after a restart", "c Bound b, a Available, b Bound c")
}
