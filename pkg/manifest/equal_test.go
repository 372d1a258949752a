package manifest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

const plainPod = `apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: web
    image: nginx:1.29
    ports:
    - containerPort: 80
    resources:
      limits: {memory: 64Mi, cpu: 1}
`

func one(t *testing.T, manifest string) Object {
	t.Helper()
	objects, errs := Decode([]byte(manifest), Options{Origin: "t.yaml", NodeName: "node-a"})
	if len(objects) != 1 || len(errs) > 0 {
		t.Fatalf("%d objects, errors %v of\n%s", len(objects), errs, manifest)
	}
	return objects[0]
}

func assertSameMeaning(t *testing.T, a, b Object, want bool) {
	t.Helper()
	if got := SemanticEqual(a, b); got != want {
		t.Errorf("SemanticEqual is %v, want %v, of\n%s\n%s", got, want, mustJSON(t, a.Pod.Spec), mustJSON(t, b.Pod.Spec))
	}
	if got := SemanticEqual(b, a); got != want {
		t.Errorf("SemanticEqual is not symmetric")
	}
}

// TestSpellings is about the promise that only a change of meaning restarts a
// pod: the same document in other words has the same UID, and one with defaults
// written out is still the same pod.
func TestSpellings(t *testing.T) {
	base := one(t, plainPod)
	for name, c := range map[string]struct {
		manifest         string
		sameUID, sameRun bool
		sameMeta         bool
	}{
		"identical": {plainPod, true, true, true},
		"comments and blank lines": {"# hello\n" + strings.ReplaceAll(plainPod, "spec:", "\n# the spec\nspec: # here\n"),
			true, true, true},
		"keys in another order": {`
kind: Pod
spec:
  containers:
  - resources:
      limits: {cpu: 1, memory: 64Mi}
    image: nginx:1.29
    ports: [{containerPort: 80}]
    name: web
metadata:
  labels: {app: web}
  name: web
apiVersion: v1
`, true, true, true},
		"quotes and JSON": {`{"metadata": {"labels": {"app": "web"}, "name": "web"}, "kind": "Pod", "apiVersion": "v1",
	"spec": {"containers": [{"name": "web", "image": "nginx:1.29", "ports": [{"containerPort": 80.0}],
	"resources": {"limits": {"memory": "64Mi", "cpu": 1e0}}}]}}`, true, true, true},
		"nulls":   {strings.Replace(plainPod, "spec:", "spec:\n  volumes:\n  nodeSelector: ~\n  terminationGracePeriodSeconds: null", 1), true, true, true},
		"anchors": {strings.NewReplacer("limits: {", "limits: &l {", "name: web\n    image", "name: &n web\n    image").Replace(plainPod), true, true, true},
		"a namespace of default": {strings.Replace(plainPod, "metadata:", "metadata:\n  namespace: default", 1),
			true, true, true},
		"labels changed": {strings.Replace(plainPod, "app: web", "app: shop", 1), true, true, false},
		"annotations added": {strings.Replace(plainPod, "metadata:", "metadata:\n  annotations: {a: b}", 1),
			true, true, false},
		"no annotations written out": {strings.Replace(plainPod, "metadata:", "metadata:\n  annotations: {}", 1),
			true, true, true},
		"defaults written out": {strings.Replace(plainPod, "spec:", "spec:\n  restartPolicy: Always\n"+
			"  dnsPolicy: ClusterFirst\n  terminationGracePeriodSeconds: 30\n  schedulerName: default-scheduler\n"+
			"  enableServiceLinks: yes\n  securityContext: {}\n  nodeName: node-a\n  hostNetwork: false\n  volumes: []", 1), false, true, true},
		"container defaults written out": {strings.Replace(plainPod, "    ports:", "    imagePullPolicy: IfNotPresent\n"+
			"    terminationMessagePath: /dev/termination-log\n    terminationMessagePolicy: File\n    command: []\n    ports:", 1), false, true, true},
		"a port's protocol written out": {strings.Replace(plainPod, "containerPort: 80", "containerPort: 80\n      protocol: TCP", 1),
			false, true, true},
		"requests written out": {plainPod + "      requests: {cpu: 1000m, memory: 65536Ki}\n", false, true, true},
		"a quantity in another unit": {strings.Replace(plainPod, "64Mi, cpu: 1", "65536Ki, cpu: 1000m", 1),
			false, true, true},
		"an image":            {strings.Replace(plainPod, "1.29", "1.30", 1), false, false, true},
		"a limit":             {strings.Replace(plainPod, "64Mi", "65Mi", 1), false, false, true},
		"another pull policy": {strings.Replace(plainPod, "    ports:", "    imagePullPolicy: Always\n    ports:", 1), false, false, true},
		"a UID of the user's": {strings.Replace(plainPod, "metadata:", "metadata:\n  uid: abc-1", 1), false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := one(t, c.manifest)
			if got := o.Pod.UID == base.Pod.UID; got != c.sameUID {
				t.Errorf("same UID: %v, want %v\n%s\n%s", got, c.sameUID, base.Canonical, o.Canonical)
			}
			assertSameMeaning(t, base, o, c.sameRun)
			if got := MetadataEqual(base, o); got != c.sameMeta {
				t.Errorf("MetadataEqual is %v, want %v", got, c.sameMeta)
			}
		})
	}
}

// TestIdentityIsStable pins the canonical form, its hash and the UID: pods on
// disk and pods that run are found again by them after an upgrade.
func TestIdentityIsStable(t *testing.T) {
	o := one(t, plainPod)
	const canonical = `{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"app":"web"},"name":"web"},"spec":{"containers":[` +
		`{"image":"nginx:1.29","name":"web","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":1,"memory":"64Mi"}}}]}}`
	if string(o.Canonical) != canonical {
		t.Errorf("the canonical form is %s", o.Canonical)
	}
	if o.SpecHash != "7554e8ad99a1eb66bc33fb6c1df9de052ef14af8affefbbf276f195dcb18e887" {
		t.Errorf("the spec's hash is %s", o.SpecHash)
	}
	if o.Pod.UID != "e59eeabd-11f4-81be-87d9-646b9be38964" {
		t.Errorf("the UID is %s", o.Pod.UID)
	}
	if h, err := specHash(o.Canonical); err != nil || h != o.SpecHash {
		t.Errorf("SpecHash of the canonical form is %s, %v", h, err)
	}
	if _, err := specHash([]byte("{")); err == nil {
		t.Error("SpecHash of garbage is no error")
	}
	shape := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[types.UID]bool{}
	for _, parts := range [][4]string{{"n", "a", "b", "h"}, {"m", "a", "b", "h"}, {"n", "ab", "", "h"}, {"n", "", "ab", "h"}, {"n", "a", "b", "i"}} {
		uid := UID(parts[0], parts[1], parts[2], parts[3])
		if !shape.MatchString(string(uid)) || seen[uid] {
			t.Errorf("UID%q is %s", parts, uid)
		}
		seen[uid] = true
	}
}

// TestPushOptions is about what the push source supplies: it is part of the
// document afterwards, and the document's own words win.
func TestPushOptions(t *testing.T) {
	opts := Options{NodeName: "node-a", Namespace: "shop", UID: "11111111-2222-3333-4444-555555555555",
		GenerateName: func(prefix string) string { return prefix + "x7k2p" }}
	const body = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-"},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	objects, errs := Decode([]byte(body), opts)
	if len(errs) > 0 || len(objects) != 1 {
		t.Fatalf("%v", errs)
	}
	p := objects[0].Pod
	if p.Name != "web-x7k2p" || p.Namespace != "shop" || p.UID != opts.UID {
		t.Errorf("the pod is %s/%s %s", p.Namespace, p.Name, p.UID)
	}
	again := one(t, string(objects[0].Canonical))
	if again.Pod.Name != p.Name || again.Pod.Namespace != p.Namespace || again.Pod.UID != p.UID {
		t.Errorf("the checkpoint gives %s/%s %s", again.Pod.Namespace, again.Pod.Name, again.Pod.UID)
	}
	own, errs := Decode([]byte(strings.Replace(body, `"generateName":"web-"`, `"generateName":"web-","name":"mine","namespace":"other","uid":"u-1"`, 1)), opts)
	if len(errs) > 0 || own[0].Pod.Name != "mine" || own[0].Pod.Namespace != "other" || own[0].Pod.UID != "u-1" {
		t.Errorf("the document's own words lose: %v %v", own, errs)
	}
	if _, errs := Decode([]byte(body), Options{}); len(errs) != 1 || errs[0].Field != "metadata.generateName" {
		t.Errorf("a file may use generateName: %v", errs)
	}
	for _, body := range []string{`{"apiVersion":"v1","kind":"Pod","metadata":[]}`, `{"apiVersion":"v1","kind":"Pod"}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":5}}`} {
		if objects, errs := Decode([]byte(body), opts); len(objects) > 0 || len(errs) == 0 {
			t.Errorf("%s is accepted", body)
		}
	}
}

// specHash is the hex SHA-256 of the canonical form of a document's .spec;
// canonical is Object.Canonical. A document without a spec hashes as an empty
// one.
func specHash(canonical []byte) (string, error) {
	var doc struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(canonical, &doc); err != nil {
		return "", fmt.Errorf("hash the spec: %w", err)
	}
	// The spec's bytes stand in the canonical document as they are.
	return hashSpec(appendAppArmor(doc.Spec, doc.Metadata.Annotations)), nil
}
