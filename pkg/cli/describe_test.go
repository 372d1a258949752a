package cli

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// described has something of everything that describe shows.
const described = `
metadata:
  name: web
  namespace: default
  uid: u-1
  labels: {tier: front, app: web}
  annotations: {note: "two\nlines", evil: "\e[2J"}
  ownerReferences: [{kind: Other, name: no}, {kind: Job, name: owner, controller: true}]
spec:
  nodeName: node-1
  priority: 7
  priorityClassName: high
  runtimeClassName: crun
  serviceAccountName: robot
  nodeSelector: {disk: ssd}
  tolerations: [{operator: Exists}, {key: k, value: v, effect: NoExecute, tolerationSeconds: 30}]
  initContainers:
  - {name: prepare, image: busybox, command: [sh, -c, "set -e\necho hello"], args: [a, b]}
  containers:
  - name: main
    image: nginx
    ports: [{containerPort: 80, hostPort: 8080, protocol: TCP, name: web}, {containerPort: 53, protocol: UDP}]
    resources: {limits: {memory: 64Mi, cpu: "1"}, requests: {cpu: 250m}}
    env:
    - {name: PLAIN, value: text}
    - {name: IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: KEY, valueFrom: {secretKeyRef: {name: s, key: k}}}
    - {name: CONF, valueFrom: {configMapKeyRef: {name: m, key: k}}}
    envFrom: [{configMapRef: {name: m}}, {secretRef: {name: s}}]
    volumeMounts: [{name: scratch, mountPath: /scratch, subPath: sub}, {name: etc, mountPath: /etc/host, readOnly: true}]
    livenessProbe: {httpGet: {path: /live, port: 80, scheme: HTTP}, periodSeconds: 10, timeoutSeconds: 1, successThreshold: 1, failureThreshold: 3}
    readinessProbe: {tcpSocket: {port: 80}, initialDelaySeconds: 5}
    startupProbe: {exec: {command: [test, -e, /up]}}
  - {name: crash, image: busybox}
  - {name: new, image: busybox}
  volumes:
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 10Mi}}
  - {name: disk, emptyDir: {}}
  - {name: etc, hostPath: {path: /etc, type: Directory}}
  - {name: conf, configMap: {name: m, optional: true}}
  - {name: key, secret: {secretName: s}}
  - {name: me, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {resource: limits.cpu}}]}}
  - {name: all, projected: {sources: [{configMap: {name: m}}, {secret: {name: s, optional: true}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
  - {name: claim, persistentVolumeClaim: {claimName: c, readOnly: true}}
  - {name: own, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce]}}}}
  - {name: share, nfs: {server: nfs.example, path: /export}}
  - {name: artifact, image: {reference: "registry.example/data:1", pullPolicy: IfNotPresent}}
status:
  phase: Running
  qosClass: Burstable
  hostIP: 192.0.2.1
  podIP: 10.88.0.2
  podIPs: [{ip: 10.88.0.2}, {ip: "fd00::2"}]
  startTime: "2026-03-04T11:00:00Z"
  conditions: [{type: Initialized, status: "True"}, {type: Ready, status: "False"}]
  initContainerStatuses:
  - {name: prepare, containerID: "containerd://1", image: busybox, imageID: sha256:11, ready: true,
     state: {terminated: {exitCode: 0, reason: Completed, startedAt: "2026-03-04T11:00:01Z", finishedAt: "2026-03-04T11:00:02Z"}}}
  containerStatuses:
  - {name: main, containerID: "containerd://2", image: nginx, imageID: sha256:22, ready: true, state: {running: {startedAt: "2026-03-04T11:00:03Z"}}}
  - {name: crash, containerID: "containerd://3", image: busybox, imageID: sha256:11, restartCount: 3,
     state: {waiting: {reason: CrashLoopBackOff, message: back-off 40s}},
     lastState: {terminated: {exitCode: 137, signal: 9, reason: OOMKilled, message: "too much\n", startedAt: "2026-03-04T11:50:00Z", finishedAt: "2026-03-04T11:58:00Z"}}}
`

func TestDescribeAll(t *testing.T) {
	f, c, out, errs := newFake(t)
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(described), p); err != nil {
		t.Fatal(err)
	}
	f.put(p)
	about := v1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web", UID: "u-1"}
	f.events = []v1.Event{
		{Type: "Warning", Reason: "BackOff", Message: "restarting\nfailed container", Count: 7, InvolvedObject: about, FirstTimestamp: ago(20 * time.Minute), LastTimestamp: ago(time.Minute), Source: v1.EventSource{Component: "nodeagent"}},
		{Type: "Normal", Reason: "Started", Message: "Started container main", InvolvedObject: about, FirstTimestamp: ago(time.Hour), LastTimestamp: ago(time.Hour), Source: v1.EventSource{Component: "nodeagent"}},
		{Type: "Normal", Reason: "Old", Message: "of another pod of this name", InvolvedObject: v1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web", UID: "u-0"}},
	}
	if err := c.DescribePods(t.Context(), []string{"pod/web"}); err != nil || errs.Len() > 0 {
		t.Fatalf("%v, %q", err, errs)
	}
	golden(t, "describe-all", out.String())
}

func TestDescribeSeveral(t *testing.T) {
	f, c, out, errs := newFake(t)
	if err := c.DescribePods(t.Context(), nil); err != nil || errs.String() != "No resources found in default namespace.\n" {
		t.Errorf("no pods: %v, %q", err, errs)
	}
	errs.Reset()
	ending := simplePod("default", "ending", nil)
	ending.DeletionTimestamp = &metav1.Time{Time: now}
	ending.DeletionGracePeriodSeconds = new(int64)
	f.put(ending)
	evicted := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "evicted"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "i"}}},
		Status: v1.PodStatus{Phase: v1.PodFailed, Reason: "Evicted", Message: "no room"}}
	f.put(evicted)
	if code := Report(errs, c.DescribePods(t.Context(), []string{"ending", "none", "evicted"})); code != 1 || errs.String() != "Error from server (NotFound): pods \"none\" not found\n" {
		t.Errorf("code %d, %q", code, errs)
	}
	golden(t, "describe-several", out.String())
	named := out.String()
	out.Reset()
	if err := c.DescribePods(t.Context(), nil); err != nil || out.String() != named {
		t.Errorf("all of them: %v\n%s", err, out)
	}
}
