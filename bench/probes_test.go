//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// probedManifest is a pod that a probe each second asks for a file of the shared
// folder, over HTTP or with a command. It is told to end after one failure, and
// says so.
func probedManifest(how string) func(*lab, string) string {
	return func(l *lab, pod string) string {
		server, handler := "", fmt.Sprintf("exec: {command: [test, -e, /bench/%s.healthz]}", pod)
		if how == "http" {
			server, handler = "httpd -p 8080 -h /bench; ", fmt.Sprintf("httpGet: {path: /%s.healthz, port: 8080}", pod)
		}
		script := fmt.Sprintf(": >/bench/%[1]s.healthz; %[2]s: >/bench/%[1]s.up; trap ': >/bench/%[1]s.term; exit 0' TERM; sleep 100000 & wait", pod, server)
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:latest
    imagePullPolicy: IfNotPresent
    command: ["/bin/sh", "-c", %q]
    livenessProbe: {%s, initialDelaySeconds: 3, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
    volumeMounts:
    - {name: bench, mountPath: /bench}
  volumes:
  - name: bench
    hostPath: {path: %s, type: Directory}
`, pod, script, handler, l.shared)
	}
}

// probes measures what probing many pods costs, and how long after a container's
// health has gone it is told to end.
func (l *lab) probes(r results, s system, p plan, how string) {
	l.manifest = probedManifest(how)
	defer func() { l.manifest = manifest }()
	pods := l.names(p.probed)
	s.drop(l, pods)
	if _, err := l.w.last(10*time.Minute, suffixed(pods, ".up")); err != nil {
		l.t.Fatalf("%s: %v", s.name(), err)
	}
	time.Sleep(p.window / 2) // what the start has left to do
	from, before := time.Now(), cpu(l.t, s.pid())
	time.Sleep(p.window)
	used := cpu(l.t, s.pid()) - before
	// Per hundred, so that runs of other sizes compare.
	r.add("probe-cpu-"+how, s.name(), 100*used.Seconds()/time.Since(from).Seconds()*100/float64(p.probed))
	for _, pod := range pods[:min(p.samples, len(pods))] {
		began := time.Now()
		if err := os.Remove(filepath.Join(l.shared, pod+".healthz")); err != nil {
			l.t.Fatal(err)
		}
		at, err := l.w.last(time.Minute, []string{pod + ".term"})
		if err != nil {
			l.t.Fatalf("%s: %v", s.name(), err)
		}
		r.add("probe-seen-"+how, s.name(), at.Sub(began).Seconds())
	}
	l.gone(s, pods)
}

// readerPod says on the shared folder which version of a ConfigMap it reads.
func readerPod(l *lab, pod string) *v1.Pod {
	script := fmt.Sprintf(`last=; while :; do read x </cfg/v; [ "$x" = "$last" ] || { : >/bench/%s.$x; last=$x; }; usleep 5000; done`, pod)
	return &v1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: metav1.NamespaceDefault},
		Spec: v1.PodSpec{
			NodeName: l.n.Name, TerminationGracePeriodSeconds: new(int64(1)), AutomountServiceAccountToken: new(false),
			Containers: []v1.Container{{Name: "main", Image: "busybox:latest", ImagePullPolicy: v1.PullIfNotPresent, Command: []string{"/bin/sh", "-c", script},
				VolumeMounts: []v1.VolumeMount{{Name: "bench", MountPath: "/bench"}, {Name: "cfg", MountPath: "/cfg"}}}},
			Volumes: []v1.Volume{
				{Name: "bench", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: l.shared}}},
				{Name: "cfg", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: pod}}}},
			},
		},
	}
}

func versioned(name string, version int) *v1.ConfigMap {
	return &v1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault}, Data: map[string]string{"v": fmt.Sprintf("v%d", version)}}
}

// configMaps measures how long after its change a ConfigMap is another in a
// container. nodeagent has it from its folder; kubelet, which takes none from
// there, from an API server.
func configMaps(t *testing.T, r results, p plan) {
	l := newLab(t)
	a := &agent{}
	l.turn(a, false, func() {
		l.updates(r, a.name(), p.updates, func(object any, name string) {
			text, err := yaml.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			l.n.WriteManifest(name, string(text))
		})
		entries, err := filepath.Glob(filepath.Join(l.n.Manifests(), "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			l.n.RemoveManifest(filepath.Base(e))
		}
	})
	cp := testbed.NewControlPlane(t)
	k := &member{cp: cp, addr: cp.Join(l.n)}
	core := cp.Client().CoreV1()
	account := &v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := core.ServiceAccounts(metav1.NamespaceDefault).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.turn(k, false, func() {
		made := map[string]bool{}
		l.updates(r, k.name(), p.updates, func(object any, name string) {
			var err error
			switch o := object.(type) {
			case *v1.Pod:
				_, err = core.Pods(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
			case *v1.ConfigMap:
				if made[name] {
					_, err = core.ConfigMaps(o.Namespace).Update(t.Context(), o, metav1.UpdateOptions{})
				} else {
					_, err = core.ConfigMaps(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
				}
				made[name] = true
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	})
}

// updates gives a system a pod and its ConfigMap, and then others.
func (l *lab) updates(r results, system string, count int, put func(object any, name string)) {
	pod := l.names(1)[0]
	put(versioned(pod, 0), "map.yaml")
	put(readerPod(l, pod), "pod.yaml")
	for version := range count + 1 {
		began := time.Now()
		if version > 0 {
			put(versioned(pod, version), "map.yaml")
		}
		at, err := l.w.last(5*time.Minute, []string{fmt.Sprintf("%s.v%d", pod, version)})
		if err != nil {
			l.t.Fatalf("%s: %v", system, err)
		}
		if version > 0 {
			r.add("configmap", system, at.Sub(began).Seconds())
		}
	}
}

// member is a kubelet with an API server.
type member struct {
	kubelet
	cp   *testbed.ControlPlane
	addr string
}

func (m *member) start(l *lab) {
	conf, kubeconfig := l.n.Path("kubelet.yaml"), l.n.Path("kubelet.kubeconfig")
	for file, text := range map[string][]byte{
		conf:       fmt.Appendf(nil, kubeletConfig, l.n.Dir, l.runtime(), l.n.Name),
		kubeconfig: m.cp.Kubeconfig("system:node:"+l.n.Name, "system:nodes"),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	m.p = l.n.Run("kubelet.log", l.program(filepath.Join(testbed.BuildDir(), "kubernetes/kubelet")), "--config", conf, "--root-dir", l.n.Path("kubelet"),
		"--hostname-override", l.n.Name, "--node-ip", m.addr, "--kubeconfig", kubeconfig)
	l.healthy(m.p, "kubelet", "kubelet.log", "http://127.0.0.1:10248/healthz")
	l.n.Eventually(time.Minute, "the node is registered", func() error {
		_, err := m.cp.Client().CoreV1().Nodes().Get(context.Background(), l.n.Name, metav1.GetOptions{})
		return err
	})
}

func (m *member) stop(l *lab) { l.end(m.p, syscall.SIGKILL) }
