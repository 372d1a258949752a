package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// TestObjects: pods with what they refer to, all of it in the folder.
func TestObjects(t *testing.T) {
	n := started(t)
	data := t.TempDir()
	env := manifest{name: "reader", script: "env; cat /claim/file; " + forever, spec: `volumes:
- name: claim
  persistentVolumeClaim: {claimName: data}
affinity:
  podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: none}}}]}
  podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {}}]}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
`, container: `volumeMounts:
- {name: claim, mountPath: /claim}
envFrom:
- {prefix: ALL_, configMapRef: {name: settings}}
- secretRef: {name: none, optional: true}
env:
- {name: CITY, valueFrom: {configMapKeyRef: {name: settings, key: city}}}
- {name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}
- {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: GREETING, value: "$(CITY) at $(DB_SERVICE_PORT)"}
`}
	n.WriteManifest("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: 10.96.0.77, ports: [{port: 5432}]}\n")
	n.WriteManifest("reader.yaml", env.String())
	n.WriteManifest("away.yaml", manifest{name: "away", spec: "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}}}\n"}.String())

	// Nothing of it is there: the volume first, then the variables.
	n.WriteManifest("volume.yaml", fmt.Sprintf(`apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce], hostPath: {path: %q}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`, data))
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("from the volume\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get("reader")
		if err != nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Waiting == nil {
			return errors.New("no container waits")
		}
		if w := p.Status.ContainerStatuses[0].State.Waiting; w.Reason != "CreateContainerConfigError" || w.Message != `configmap "settings" not found` {
			return fmt.Errorf("it waits for %s: %s", w.Reason, w.Message)
		}
		return nil
	})
	n.KillAgent()
	n.StartAgent()
	n.WriteManifest("config.yaml", `apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {city: Ann Arbor}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: hunter2hunter2}
`)
	pods := n.WaitPods(long, testbed.Running("reader"))

	t.Run("its variables and its volume", func(t *testing.T) { variablesOf(t, n, pods) })
	t.Run("they are shown", func(t *testing.T) { objectsShown(t, n) })
	t.Run("a pod of another kind of node is refused", func(t *testing.T) { refusedElsewhere(t, n) })
	t.Run("the agent keeps no secret on the disk and restarts nothing", func(t *testing.T) { secretsStayInMemory(t, n) })
	for _, m := range []string{"reader", "away", "service", "config", "volume"} {
		n.RemoveManifest(m + ".yaml")
	}
	n.WaitPods(long, testbed.Gone("reader", "away"))
	expectClean(t, n)
}

func variablesOf(t *testing.T, n *testbed.Node, pods testbed.Pods) {
	p, _ := pods.Get("reader")
	n.Eventually(long, "the log has all of it", func() error {
		out := cli(t, n, "logs", "reader")
		for _, want := range []string{"CITY=Ann Arbor", "ALL_city=Ann Arbor", "PASSWORD=hunter2hunter2", "NODE=" + p.Spec.NodeName, "IP=" + p.Status.PodIP,
			"GREETING=Ann Arbor at 5432", "DB_SERVICE_HOST=10.96.0.77", "DB_PORT_5432_TCP_ADDR=10.96.0.77", "from the volume"} {
			if !strings.Contains("\n"+out, "\n"+want+"\n") {
				return fmt.Errorf("no line %q in\n%s", want, out)
			}
		}
		return nil
	})
}

func objectsShown(t *testing.T, n *testbed.Node) {
	for args, want := range map[string][]string{
		"get pvc": {"data", "Bound", "disk", "2Gi", "RWO"}, "get pv": {"disk", "2Gi", "RWO", "Retain", "Bound", "default/data"},
		"get cm": {"settings", "1"}, "get secrets": {"login", "Opaque", "1"},
	} {
		if out := cli(t, n, strings.Fields(args)...); !hasRow(out, want...) {
			t.Errorf("%s:\n%s", args, out)
		}
	}
	if out := cli(t, n, "describe", "secret", "login"); strings.Contains(out, "hunter2") || !strings.Contains(out, "14 bytes") {
		t.Errorf("describe secret:\n%s", out)
	}
}

func refusedElsewhere(t *testing.T, n *testbed.Node) {
	n.WaitPods(long, testbed.Phase("away", v1.PodFailed))
	if out := cli(t, n, "get", "pods"); !hasRow(out, "away", "0/1", "NodeAffinity") {
		t.Errorf("get pods:\n%s", out)
	}
}

func secretsStayInMemory(t *testing.T, n *testbed.Node) {
	before := ids(t, n)
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("reader"))
	if after := ids(t, n); before["reader/main"] != after["reader/main"] {
		t.Errorf("before %v, after %v", before, after)
	}
	for _, dir := range []string{"pods", "resources", "objects"} {
		err := filepath.WalkDir(filepath.Join(n.StateDir(), dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if bytes.Contains(text, []byte("hunter2")) || bytes.Contains(text, []byte("aHVudGVyMm")) {
				t.Errorf("%s has the password", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	if strings.Contains(n.AgentLog(), "hunter2") {
		t.Error("the log has the password")
	}
}
