package cli

import (
	"strings"
	"testing"
	"text/tabwriter"
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
  annotations: {note: "two\nlines", evil: "\e[2J", kubectl.kubernetes.io/last-applied-configuration: "{}"}
  ownerReferences: [{kind: Other, name: no}, {kind: Job, name: owner, controller: true}]
spec:
  nodeName: node-1
  priority: 7
  priorityClassName: high
  runtimeClassName: crun
  serviceAccountName: robot
  nodeSelector: {disk: ssd}
  readinessGates: [{conditionType: example.com/gate}, {conditionType: Ready}]
  securityContext: {seccompProfile: {type: RuntimeDefault}}
  ephemeralContainers: [{name: debug, image: busybox}]
  tolerations: [{operator: Exists}, {key: k, value: v, effect: NoExecute, tolerationSeconds: 30}]
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}
  - {maxSkew: 2, topologyKey: host, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
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
    - {name: ME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
    - {name: ALL, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: SIZE, valueFrom: {resourceFieldRef: {resource: requests.memory}}}
    - {name: LINES, value: "one\ntwo"}
    - {name: CONF, valueFrom: {configMapKeyRef: {name: m, key: k}}}
    volumeDevices: [{name: disk, devicePath: /dev/xvda}]
    securityContext: {seccompProfile: {type: Localhost, localhostProfile: a.json}}
    envFrom: [{configMapRef: {name: m}, prefix: P_}, {secretRef: {name: s}}]
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
	of := about
	of.FieldPath = "spec.containers{main}"
	f.events = []v1.Event{
		{Type: "Warning", Reason: "BackOff", Message: "restarting\nfailed container", Count: 7, InvolvedObject: about, FirstTimestamp: ago(20 * time.Minute), LastTimestamp: ago(time.Minute), Source: v1.EventSource{Component: "nodeagent"}},
		{Type: "Normal", Reason: "Started", Message: "Container started", InvolvedObject: of, FirstTimestamp: ago(time.Hour), LastTimestamp: ago(time.Hour), Source: v1.EventSource{Component: "nodeagent"}},
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

// TestDescribeNode: what kubectl says of a node, in its words.
func TestDescribeNode(t *testing.T) {
	n := &v1.Node{}
	if err := yaml.UnmarshalStrict([]byte(`
metadata: {name: node-1, labels: {disk: ssd, node-role.kubernetes.io/edge: ""}, annotations: {a: b}, creationTimestamp: "2026-03-04T11:00:00Z"}
spec: {unschedulable: true, podCIDR: 10.88.0.0/16, podCIDRs: [10.88.0.0/16, "fd00::/64"], taints: [{key: b, effect: NoSchedule}, {key: a, value: v, effect: NoExecute}]}
status:
  conditions: [{type: Ready, status: "True", reason: KubeletReady, message: runs pods, lastHeartbeatTime: "2026-03-04T11:00:00Z", lastTransitionTime: "2026-03-04T11:00:00Z"}]
  addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: node-1}]
  capacity: {cpu: "4", memory: 8Gi, hugepages-2Mi: 4Mi, pods: "110"}
  allocatable: {cpu: "2", memory: 4Gi, hugepages-2Mi: 4Mi, pods: "110"}
  nodeInfo: {machineID: m, systemUUID: s, bootID: b, kernelVersion: k, osImage: o, operatingSystem: linux, architecture: amd64, containerRuntimeVersion: c, kubeletVersion: v, kubeProxyVersion: ""}
`), n); err != nil {
		t.Fatal(err)
	}
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(described), p); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	d := page{tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)}
	d.node(n)
	d.podsOfNode(n, []v1.Pod{*p, *simplePod("default", "plain", nil)}, now)
	if err := d.w.Flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "describe-node", out.String())
}
