package node

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// reader mounts the deck's ConfigMap and Secret, what the pod says of itself,
// and parts of volumes.
func reader(stage string) manifest {
	return manifest{
		name: "reader", labels: "app: reader, stage: " + stage,
		spec: `securityContext: {fsGroup: 2000}
volumes:
- name: settings
  configMap: {name: manifest-example}
- name: keys
  secret: {secretName: manifest-secret, defaultMode: 0400}
- name: self
  downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
- name: all
  projected: {sources: [{configMap: {name: manifest-example, items: [{key: city, path: where/city}]}}, {secret: {name: manifest-secret}}]}
- name: data
  emptyDir: {}
`,
		container: `args: [main, "$(CITY)", "$(USER)"]
env:
- {name: WHO, value: main}
- {name: CITY, valueFrom: {configMapKeyRef: {name: manifest-example, key: city}}}
- {name: USER, valueFrom: {secretKeyRef: {name: manifest-secret, key: username}}}
envFrom: [{prefix: ALL_, secretRef: {name: manifest-secret}}]
volumeMounts:
- {name: settings, mountPath: /settings}
- {name: settings, mountPath: /one/city, subPath: city}
- {name: keys, mountPath: /keys}
- {name: self, mountPath: /self}
- {name: all, mountPath: /all}
- {name: data, mountPath: /logs, subPathExpr: $(WHO)/logs}
- {name: data, mountPath: /ro, readOnly: true, recursiveReadOnly: IfPossible}
`,
	}
}

// TestVolumesOfObjects shows Secrets in memory, changes that reach a running
// container, and that an agent killed at any moment loses and leaves nothing.
func TestVolumesOfObjects(t *testing.T) {
	n := started(t)
	waitsForItsObjects(t, n)
	n.WriteManifest("configmap.yaml", deck(t, "configmap"))
	n.WriteManifest("secret.yaml", deck(t, "secret"))
	n.WaitPods(long, testbed.Running("reader"))
	id := runningID(t, n, "reader", "main")
	sh := func(script string) string {
		out, _ := n.ExecSync(id, "sh", "-c", script)
		return strings.TrimSpace(out)
	}
	reads := func(script, want string) {
		t.Helper()
		n.Eventually(long, script, func() error {
			if got := sh(script); got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}

	t.Run("files", func(t *testing.T) {
		for script, want := range map[string]string{
			"cat /settings/city /one/city /all/where/city": "Ann ArborAnn ArborAnn Arbor",
			"cat /settings/content":                        "Look at this,\nits multiline!",
			"echo $CITY $USER $ALL_password":               "Ann Arbor example mr0assword",
			"tr '\\0' '\\n' </proc/1/cmdline | tail -n 3":  "main\nAnn Arbor\nexample",
			"cat /keys/password /all/username":             "mr0asswordexample",
			"cat /self/labels":                             "app=\"reader\"\nstage=\"one\"",
			"readlink /settings/city":                      "..data/city",
			"stat -c %a:%g /keys/..data/password":          "440:2000",
			"stat -c %g /logs":                             "2000",
			"for m in keys self all settings; do awk -v m=/$m '$2==m {print $3}' /proc/mounts; done | head -3 | uniq": "tmpfs",
			"echo x 2>&1 >/settings/x":       "sh: can't create /settings/x: Read-only file system",
			"echo x >/logs/f; cat /ro/*/*/f": "x",
		} {
			if got := sh(script); got != want {
				t.Errorf("%s: %q, want %q", script, got, want)
			}
		}
	})
	t.Run("no secret on the disk", func(t *testing.T) { noneHolds(t, filepath.Join(n.StateDir(), "pods"), "mr0assword") })
	t.Run("changes reach the container", func(t *testing.T) {
		n.WriteManifest("configmap.yaml", strings.Replace(deck(t, "configmap"), "Ann Arbor", "Detroit", 1))
		reads("cat /settings/city /all/where/city", "DetroitDetroit")
		if got := sh("cat /one/city"); got != "Ann Arbor" {
			t.Errorf("a subPath is what it was when the container started; got %q", got)
		}
		n.WriteManifest("pod.yaml", reader("two").String())
		reads("cat /self/labels", "app=\"reader\"\nstage=\"two\"")
	})
	t.Run("an agent killed in the middle goes on", func(t *testing.T) {
		for _, city := range []string{"Flint", "Lansing", "Holland"} {
			n.WriteManifest("configmap.yaml", strings.Replace(deck(t, "configmap"), "Ann Arbor", city, 1))
			n.KillAgent()
			n.StartAgent()
			reads("cat /settings/city /all/where/city", city+city)
			reads("ls -A /settings | grep -c '^\\.\\.2'", "1")
		}
		if again := runningID(t, n, "reader", "main"); again != id {
			t.Errorf("the container was restarted: %s, %s", id, again)
		}
	})
	t.Run("a restarted container has the new part", func(t *testing.T) {
		n.ExecSync(id, "kill", "1") // TERM, which it obeys
		n.WaitPods(long, restarts("reader", 1))
		id = ids(t, n)["reader/main"]
		reads("cat /one/city /logs/f", "Hollandx")
	})
	t.Run("what the runtime must do", func(t *testing.T) { runtimeVolumes(t, n) })
	t.Run("a pod that went while the agent was down leaves nothing", func(t *testing.T) {
		n.KillAgent()
		for _, m := range []string{"pod", "configmap", "secret", "image", "recursive"} {
			n.RemoveManifest(m + ".yaml")
		}
		n.StartAgent()
		n.WaitPods(long, testbed.Gone("reader", "image", "recursive"))
		expectClean(t, n)
	})
}

// waitsForItsObjects starts the reader before there is what it mounts.
func waitsForItsObjects(t *testing.T, n *testbed.Node) {
	n.WriteManifest("pod.yaml", reader("one").String())
	missing := `MountVolume.SetUp failed for volume "settings" : configmap "manifest-example" not found`
	n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get("reader")
		if err != nil || len(p.Status.ContainerStatuses) == 0 {
			return fmt.Errorf("no status yet: %v", err)
		}
		if w := p.Status.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ContainerCreating" || !strings.Contains(w.Message, missing) {
			return fmt.Errorf("waiting: %+v", w)
		}
		return nil
	})
	n.Eventually(long, "an event that says so", func() error {
		if out := cli(t, n, "get", "events"); !strings.Contains(out, "FailedMount") || !strings.Contains(out, missing) {
			return fmt.Errorf("events:\n%s", out)
		}
		return nil
	})
}

// runtimeVolumes mounts an image, and a folder read-only with a mount in it: where
// the runtime can, and with a reason where it would ignore the wish.
func runtimeVolumes(t *testing.T, n *testbed.Node) {
	dir := n.Path("recursive")
	if err := os.MkdirAll(dir+"/below", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Exec("mount", "-t", "tmpfs", "tmpfs", dir+"/below"); err != nil {
		t.Fatal(err)
	}
	n.WriteManifest("image.yaml", manifest{name: "image",
		spec:      "volumes: [{name: image, image: {reference: busybox, pullPolicy: IfNotPresent}}]\n",
		container: "volumeMounts: [{name: image, mountPath: /image}]\n"}.String())
	n.WriteManifest("recursive.yaml", manifest{name: "recursive",
		spec:      "volumes: [{name: dir, hostPath: {path: " + dir + "}}]\n",
		container: "volumeMounts: [{name: dir, mountPath: /dir, readOnly: true, recursiveReadOnly: Enabled}]\n"}.String())
	if os.Getenv("NODE_CONTAINERD") != "2.4" {
		for pod, want := range map[string]string{"image": "does not mount images", "recursive": `volume "dir" requested recursive read-only mode, but it is not supported by the runtime`} {
			pods := n.WaitPods(long, waiting(pod, "CreateContainerConfigError"))
			p, _ := pods.Get(pod)
			if got := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(got, want) {
				t.Errorf("%s: %s", pod, got)
			}
		}
		return
	}
	n.WaitPods(long, testbed.Running("image", "recursive"))
	if out, code := n.ExecSync(runningID(t, n, "image", "main"), "sh", "-c", "ls /image/bin | grep -x sh; ! touch /image/x 2>/dev/null"); code != 0 || out != "sh\n" {
		t.Errorf("the image: code %d, %q", code, out)
	}
	if out, code := n.ExecSync(runningID(t, n, "recursive", "main"), "touch", "/dir/below/x"); code == 0 {
		t.Errorf("what is mounted below can be written: %q", out)
	}
}

// TestClaimsOfTheDeck claims the deck's volume by its label, and a volume of the
// pod's own that is bound to the node; both keep what was written.
func TestClaimsOfTheDeck(t *testing.T) {
	n := started(t)
	shared, own := n.Path("data"), n.Path("own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	pod := manifest{name: "claimant",
		spec: `securityContext: {fsGroup: 2000}
volumes:
- name: shared
  persistentVolumeClaim: {claimName: pvc-selector-example}
- name: own
  ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], volumeName: own, resources: {requests: {storage: 1Gi}}}}}
`,
		container: `volumeMounts:
- {name: shared, mountPath: /shared}
- {name: own, mountPath: /own, subPath: logs}
`}.String()
	n.WriteManifest("pod.yaml", pod)
	n.WaitPods(long, waiting("claimant", "ContainerCreating"))
	n.WriteManifest("volumes.yaml", strings.Replace(deck(t, "pv-pvc-selector"), "/mnt/data", shared, 1)+`---
kind: PersistentVolume
apiVersion: v1
metadata: {name: own}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  local: {path: `+own+`}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}
`)
	n.WaitPods(long, testbed.Running("claimant"))
	id := runningID(t, n, "claimant", "main")
	if out, code := n.ExecSync(id, "sh", "-c", "echo s >/shared/f && echo o >/own/f && stat -c %g /own"); code != 0 || out != "2000\n" {
		t.Errorf("writing to the volumes: code %d, %q", code, out)
	}
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("claimant"))
	if again := runningID(t, n, "claimant", "main"); again != id {
		t.Errorf("the container was restarted: %s, %s", id, again)
	}
	n.RemoveManifest("pod.yaml")
	n.WaitPods(long, testbed.Gone("claimant"))
	expectClean(t, n)
	fileHas(t, n, shared+"/f", "s")
	fileHas(t, n, own+"/logs/f", "o")
}

// noneHolds fails when a file below a folder, as it is on the disk, holds a text.
func noneHolds(t *testing.T, dir, text string) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(text)) {
			t.Errorf("%s holds the secret", path)
		}
		seen++
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("looked at %d files: %v", seen, err)
	}
}
