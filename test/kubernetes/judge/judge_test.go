// Package judge compares nodeagent's reading of Pod manifests with that of
// Kubernetes itself: the same corpus goes through what kube-apiserver v1.37 does
// with a request to create or update a Pod (strict decoding, the scheme's
// defaults, the registry's strategy for pods), and verdict, field paths and
// defaulted object must agree.
package judge

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
)

var (
	seed  = flag.Uint64("seed", 1, "seed of the random part of the corpus")
	count = flag.Int("manifests", 4000, "number of random manifests; a third as many updates follow")
)

// verdict is what test/corpus/verdicts prints for one manifest; its Case says
// what the fields are.
type verdict struct {
	What        string          `json:"what"`
	Manifest    json.RawMessage `json:"manifest"`
	Old         json.RawMessage `json:"old"`
	Fields      []string        `json:"fields"`
	Unsupported []string        `json:"unsupported"`
	Truncated   bool            `json:"truncated"`
	Pod         *v1.Pod         `json:"pod"`
	Kind        string          `json:"kind"`
	Other       json.RawMessage `json:"other"`
	Messages    []string        `json:"messages"`
	Expect      []string        `json:"expect"`
	OwnRule     bool            `json:"ownRule"`
	ServerSide  bool            `json:"serverSide"`
}

// tally is how much was judged.
type tally struct {
	distinct                                     map[[sha256.Size]byte]bool
	accepted, undecoded, invalid, byName, ownRow int
	updatesOK, updatesRefused, disagreements     int
	paths                                        map[string]bool
}

// TestAgreement judges the corpus. It fails when too little was judged, too:
// a corpus of nothing but refusals would prove nothing.
func TestAgreement(t *testing.T) {
	all := corpus(t)
	reviewed := reviewedFields(all)
	n := tally{distinct: map[[sha256.Size]byte]bool{}, paths: map[string]bool{}}
	for _, v := range all {
		problem, theirs := judge(v, reviewed)
		n.add(v, theirs)
		if problem == "" {
			continue
		}
		if n.disagreements++; n.disagreements <= 15 {
			t.Errorf("%s\n%.3000s\nwhat: %.300s\nnodeagent says: %.1000q", problem, v.Manifest, v.What, v.Messages)
		}
	}
	t.Logf("seed %d: judged %d distinct manifests: %d accepted, %d not decoded, %d refused by validation, %d refused by name as unsupported, %d by nodeagent's own rules",
		*seed, len(n.distinct), n.accepted, n.undecoded, n.invalid, n.byName, n.ownRow)
	t.Logf("and %d updates: %d accepted, %d refused; errors at %d different fields; %d disagreements",
		n.updatesOK+n.updatesRefused, n.updatesOK, n.updatesRefused, len(n.paths), n.disagreements)
	if len(n.distinct) < 2000 {
		t.Errorf("only %d distinct manifests were judged; the least is 2,000", len(n.distinct))
	}
	for what, least := range map[string][2]int{
		"accepted": {n.accepted, 1000}, "not decoded": {n.undecoded, 500}, "refused by validation": {n.invalid, 1000},
		"unsupported": {n.byName, 100}, "own rules": {n.ownRow, 5}, "accepted updates": {n.updatesOK, 100},
		"refused updates": {n.updatesRefused, 100}, "fields with errors": {len(n.paths), 80},
	} {
		if least[0] < least[1] {
			t.Errorf("%s: %d; the corpus judges too little, the least is %d", what, least[0], least[1])
		}
	}
}

func (n *tally) add(v verdict, theirs opinion) {
	n.distinct[sha256.Sum256(v.Manifest)] = true
	for _, f := range theirs.fields {
		n.paths[general(f)] = true
	}
	switch {
	case v.Old != nil && len(v.Fields) == 0:
		n.updatesOK++
	case v.Old != nil:
		n.updatesRefused++
	case v.OwnRule:
		n.ownRow++
	case len(v.Unsupported) > 0:
		n.byName++
	case v.Pod != nil:
		n.accepted++
	case theirs.decoded:
		n.invalid++
	default:
		n.undecoded++
	}
}

// reviewedFields are the fields that the corpus lists as unsupported, without
// indexes. What nodeagent refuses as unsupported must be one of them.
func reviewedFields(all []verdict) map[string]bool {
	out := map[string]bool{}
	for _, v := range all {
		if v.OwnRule {
			continue
		}
		for _, f := range v.Expect {
			out[general(f)] = true
		}
	}
	return out
}

var (
	generalIndex     = regexp.MustCompile(`\[\d+\]`)
	generalContainer = regexp.MustCompile(`^spec\.initContainers`)
	generalResource  = regexp.MustCompile(`\.(limits|requests)\[[^\]]*/[^\]]*\]`)
	generalProfile   = regexp.MustCompile(`^metadata\.annotations\[(container\.[a-z.]+)/[^\]]*\]`)
)

// general is a path without what differs between two places of one kind.
func general(path string) string {
	path = generalIndex.ReplaceAllString(path, "[]")
	path = generalContainer.ReplaceAllString(path, "spec.containers")
	path = generalResource.ReplaceAllString(path, ".limits[example.com/gpu]")
	return generalProfile.ReplaceAllString(path, "metadata.annotations[$1/c]")
}

// corpus runs nodeagent over the corpus of Pods, once for all tests. It is a program of
// its own, so that this module keeps the versions that Kubernetes was released
// with.
func corpus(t *testing.T) []verdict {
	t.Helper()
	markInputs(t)
	out, err := runVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(slices.Clone(out), func(v verdict) bool { return v.Kind != "" })
}

var runVerdicts = sync.OnceValues(func() (out []verdict, err error) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("go", "run", "./test/corpus/verdicts", "-seed", strconv.FormatUint(*seed, 10), "-count", strconv.Itoa(*count))
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var v verdict
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, lines.Err()
})

// markInputs opens nodeagent's sources (testdata links to them), so that "go
// test" does not take a cached result for one about changed sources.
func markInputs(t *testing.T) {
	t.Helper()
	opened := 0
	for _, dir := range []string{"testdata/manifest/", "testdata/corpus/", "testdata/corpus/verdicts/"} {
		files, err := fs.Glob(os.DirFS(dir), "*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			opened++
		}
	}
	if opened < 10 {
		t.Fatalf("testdata links to only %d sources", opened)
	}
}
