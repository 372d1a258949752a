package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// kubectl runs the real program inside a node, with the kubeconfig that the agent
// wrote.
type kubectl struct {
	*testbed.Node
	t          *testing.T
	program    string
	kubeconfig string
}

func newKubectl(t *testing.T, n *testbed.Node) kubectl {
	t.Helper()
	program, err := testbed.KubernetesProgram("kubectl")
	if err != nil {
		if testbed.Strict() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	k := kubectl{n, t, program, n.Path("kubeconfig")}
	if out, err := n.CLI("kubeconfig", "--config", n.ConfigFile(), "--output", k.kubeconfig); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return k
}

func (k kubectl) command(args ...string) *exec.Cmd {
	cmd := k.Command(k.program, args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+k.kubeconfig, "HOME="+k.Path("home"), "KUBE_EDITOR=sed -i s/before/after/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// end ends a program and what it started.
func end(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// try runs kubectl with a standard input and returns what it said, in order.
func (k kubectl) try(input string, args ...string) (string, error) {
	cmd := k.command(args...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	// One that hangs is to be seen by its name.
	defer time.AfterFunc(long, func() { end(cmd) }).Stop()
	err := cmd.Wait()
	return out.String(), err
}

// run is try for what must work; what it says must hold each of want.
func (k kubectl) run(t *testing.T, input string, command string, want ...string) string {
	t.Helper()
	out, err := k.try(input, fields(command)...)
	if err != nil {
		t.Errorf("kubectl %s: %v: %s", command, err, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("kubectl %s: %q is not in:\n%s", command, w, out)
		}
	}
	return out
}

// refused is run for what must not work.
func (k kubectl) refused(t *testing.T, input string, command string, want ...string) {
	t.Helper()
	out, err := k.try(input, fields(command)...)
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) {
		t.Errorf("kubectl %s: %v: %s", command, err, out)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("kubectl %s: %q is not in:\n%s", command, w, out)
		}
	}
}

// fields splits a command line; what stands between single quotes is one word.
func fields(command string) (out []string) {
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

const kubectlWeb = `apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  annotations: {note: before}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, "echo hello; mkdir -p /www; echo page > /www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [{containerPort: 8080, name: http}]
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
`

// TestKubectl goes through what people do with kubectl, with the real one.
func TestKubectl(t *testing.T) {
	n := started(t)
	k := newKubectl(t, n)
	n.WriteManifest("file.yaml", manifest{name: "from-file"}.String())
	k.run(t, kubectlWeb, "apply -f -", "pod/web created", "service/web created")
	k.run(t, "", "wait --for=condition=Ready pod/web pod/from-file --timeout=90s", "pod/web condition met")

	t.Run("look", func(t *testing.T) { k.look(t) })
	t.Run("describe", func(t *testing.T) { k.describe(t) })
	t.Run("change", func(t *testing.T) { k.change(t) })
	t.Run("connect", func(t *testing.T) { k.connect(t) })
	t.Run("make", func(t *testing.T) { k.make(t) })
	t.Run("serverSide", func(t *testing.T) { k.serverSide(t) })
	t.Run("node", func(t *testing.T) { k.ofTheNode(t) })
}

func (k kubectl) look(t *testing.T) {
	k.run(t, "", "version", "Server Version: v1.37.0+nodeagent")
	k.run(t, "", "cluster-info", "is running at https://127.0.0.1:10247")
	k.run(t, "", "api-versions", "v1", "discovery.k8s.io/v1")
	resources := k.run(t, "", "api-resources", "pods", "services", "endpointslices", "nodes", "events")
	if strings.Contains(resources, "deployments") {
		t.Errorf("what is not served is listed:\n%s", resources)
	}
	k.refused(t, "", "get deployments", `the server doesn't have a resource type "deployments"`)
	k.run(t, "", "get pods", "NAME", "web", "1/1", "Running", "from-file")
	k.run(t, "", "get pods -o wide -A", "NAMESPACE", "NODE", "default")
	k.run(t, "", "get pods -l app=web -o name", "pod/web")
	k.run(t, "", "get pod web -o yaml", "kind: Pod", "podIP:")
	k.run(t, "", "get pods,services -o json", `"kind": "List"`)
	k.run(t, "", "get pods --chunk-size=1 -o custom-columns=N:.metadata.name", "N\n", "from-file\nweb")
	k.run(t, "", "get pods --field-selector=metadata.name=web --no-headers", "web")
	k.run(t, "", "get all", "pod/web", "service/web")
	k.run(t, "", "get endpointslices", "web-")
	k.run(t, "", "get events", "Started")
	k.run(t, "", "events --for pod/web", "Started")
	k.run(t, "", "get nodes -o wide", "Ready", "containerd://")
	k.run(t, "", "describe node", "Capacity:", "web", "KubeletReady")
	k.run(t, "", "describe pod web", "Container ID:", "Started", "QoS Class:")
	k.run(t, "", "describe service web", "Endpoints:")
	k.run(t, "", "explain pod.spec.containers.image", "FIELD: image <string>")
	k.run(t, "", "explain service --recursive", "clusterIPs")
	k.run(t, "", "logs web", "hello")
	k.run(t, "", "logs -l app=web --all-containers --prefix --timestamps --tail=1", "[pod/web/main]")
	k.run(t, "", "top pods", "NAME", "CPU(cores)", "web", "from-file")
	k.run(t, "", "top pods -A --containers -l app=web --sort-by=memory", "NAMESPACE", "POD", "web", "main")
	k.run(t, "", "top pod web --no-headers --sum", "web")
	k.run(t, "", "top pods --field-selector=metadata.name=web", "web")
	k.run(t, "", "top nodes --sort-by=cpu", "NAME", "CPU(%)", "%")
	k.refused(t, "", "delete pod from-file", "Forbidden", "file.yaml")
	k.refused(t, "", "label pod from-file x=y", "Forbidden", "file.yaml")
}

func (k kubectl) change(t *testing.T) {
	k.run(t, "", "label pod web tier=front", "pod/web labeled")
	k.run(t, "", "annotate pod web more=yes", "pod/web annotated")
	k.run(t, "", "edit pod web", "pod/web edited")
	k.run(t, "", "get pod web -o 'jsonpath={.metadata.annotations.note}'", "after")
	k.run(t, "", `patch pod web -p '{"metadata":{"labels":{"a":"1"}}}'`, "patched")
	k.run(t, "", `patch pod web --type=merge -p '{"metadata":{"labels":{"a":null}}}'`, "patched")
	k.run(t, "", `patch pod web --type=json -p '[{"op":"add","path":"/metadata/labels/b","value":"2"}]'`, "patched")
	if labels := k.run(t, "", "get pod web -o 'jsonpath={.metadata.labels}'", `"b":"2"`, `"tier":"front"`); strings.Contains(labels, `"a"`) {
		t.Errorf("a label is still there: %s", labels)
	}
	k.run(t, "", "label pod web b-", "unlabeled")
	k.run(t, kubectlWeb, "apply -f - --dry-run=client", "dry run")
	k.run(t, kubectlWeb, "apply -f - --dry-run=server", "server dry run")
	k.run(t, kubectlWeb, "apply -f -", "pod/web configured", "service/web unchanged")
	out, err := k.try(strings.Replace(kubectlWeb, "app: web}\n  annotations", "app: web, new: label}\n  annotations", 1), "diff", "-f", "-")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "+    new: label") {
		t.Errorf("diff: %v: %s", err, out)
	}
	k.run(t, kubectlWeb, "replace -f -", "pod/web replaced", "service/web replaced")
	k.refused(t, strings.ReplaceAll(kubectlWeb, "imagePullPolicy", "imagePullPolice"), "apply -f -", `unknown field "spec.containers[0].imagePullPolice"`)
	k.refused(t, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", "apply -f -", `no matches for kind "Deployment"`)
}

func (k kubectl) connect(t *testing.T) {
	k.run(t, "", "exec web -- echo through exec", "through exec")
	k.run(t, "from stdin", "exec -i web -- cat", "from stdin")
	if out, err := k.try("", "exec", "web", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(out, "exit code 7") {
		t.Errorf("exec with a code: %v: %s", err, out)
	}
	file := k.Path("to-copy")
	if err := os.WriteFile(file, []byte("copied"), 0o644); err != nil {
		t.Fatal(err)
	}
	k.run(t, "", "cp "+file+" web:/tmp/there")
	k.run(t, "", "cp web:/tmp/there "+file+".back")
	if b, err := os.ReadFile(file + ".back"); err != nil || string(b) != "copied" {
		t.Errorf("cp: %q, %v", b, err)
	}
	forward := k.command("port-forward", "service/web", "18080:80")
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { end(forward); _ = forward.Wait() }()
	k.Eventually(long, "port-forward", func() error {
		out, err := k.HTTPGet("http://127.0.0.1:18080/")
		if err == nil && !strings.Contains(out, "page") {
			err = errors.New(out)
		}
		return err
	})
	k.run(t, "", "debug web --image=busybox --image-pull-policy=IfNotPresent --container=helper --attach -q -- sh -c 'sleep 1; echo from the debug container'", "from the debug container")
	// It says nothing before it is attached to: what is said a moment earlier is in the log only.
	k.run(t, "attached\n", "run once --image=busybox --image-pull-policy=IfNotPresent --restart=Never -i --rm -q -- sh -c 'read x; echo is $x'", "is attached")
}

func (k kubectl) make(t *testing.T) {
	k.run(t, "", "create service clusterip made --tcp=80:8080", "service/made created")
	k.run(t, "", "create service nodeport ported --tcp=81", "service/ported created")
	k.run(t, "", "expose pod web --port=90 --name=exposed", "service/exposed exposed")
	k.run(t, "", "run idle --image=busybox --image-pull-policy=IfNotPresent --labels=app=idle --grace-period=1 --command -- sleep 1000", "pod/idle created")
	k.run(t, "", "get service made exposed ported", "ClusterIP", "NodePort")
	k.run(t, "", "create configmap settings --from-literal=a=b", "created")
	k.run(t, "", "create secret generic password --from-literal=a=b", "created")
	k.run(t, "", "create serviceaccount robot", "created")
	k.run(t, "", "get cm,secret,sa -o name", "configmap/settings", "secret/password", "serviceaccount/robot")
	k.run(t, "", "get namespaces", "default", "kube-system", "Active")
	k.run(t, "", "create namespace team", "created")
	k.run(t, "", "-n team create configmap settings --from-literal=a=b", "created")
	k.run(t, "", "delete namespace team --timeout=90s", `namespace "team" deleted`)
	k.refused(t, "", "-n team get configmap settings", "NotFound")
	k.run(t, "", "delete service made ported exposed", `service "made" deleted`)
	k.run(t, "", "delete pod -l app=idle --wait --grace-period=1 --timeout=90s", `pod "idle" deleted`)
	k.refused(t, "", "get pod idle", "NotFound")
	k.run(t, "", "delete pod nothere --ignore-not-found")
	k.run(t, kubectlWeb, "delete -f - --now --timeout=90s", `pod "web" deleted`, `service "web" deleted`)
	k.run(t, kubectlWeb, "create -f -", "pod/web created")
	k.refused(t, kubectlWeb, "create -f -", "AlreadyExists")
	k.run(t, "", "wait --for=condition=Ready pod/web --timeout=90s")
}

func (k kubectl) serverSide(t *testing.T) {
	const settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied}\ndata: {a: one}\n"
	k.run(t, settings, "apply --server-side -f -", "configmap/applied serverside-applied")
	k.run(t, "", "get configmap applied -o yaml --show-managed-fields", "manager: kubectl", "operation: Apply")
	k.refused(t, strings.Replace(settings, "one", "two", 1), "apply --server-side --field-manager=other -f -", `conflict with "kubectl"`)
	k.run(t, strings.Replace(settings, "one", "two", 1), "apply --server-side --field-manager=other --force-conflicts -f -", "serverside-applied")
	k.run(t, kubectlWeb, "apply --server-side --dry-run=server -f -", "pod/web serverside-applied (server dry run)")
	k.run(t, kubectlWeb, "apply --server-side -f -", "pod/web serverside-applied", "service/web serverside-applied")
	k.KillAgent()
	k.StartAgent()
	k.run(t, "", "get configmap applied -o yaml --show-managed-fields", "manager: other", "a: two")
}

// ofTheNode closes the node and empties it, and what is said of it stays.
func (k kubectl) ofTheNode(t *testing.T) {
	node := strings.TrimSpace(k.run(t, "", "get nodes -o name"))
	k.run(t, "", "label "+node+" disk=ssd", "labeled")
	k.run(t, "", "annotate "+node+" note=here", "annotated")
	k.refused(t, "", "label --overwrite "+node+" kubernetes.io/os=other", "Forbidden", "nodeLabels")
	k.run(t, "", "drain "+node+" --force --grace-period=1 --timeout=90s", "cordoned", "evicting pod default/web", "drained")
	k.refused(t, "", "get pod web", "NotFound")
	k.run(t, "", "get pod from-file", "Running")
	k.run(t, "", `run late --image=busybox --image-pull-policy=IfNotPresent --command -- sh -c 'trap "exit 0" TERM; sleep 1000 & wait'`, "pod/late created")
	waits := func() error {
		out, err := k.try("", "describe", "pod", "late")
		if err == nil && !(strings.Contains(out, "FailedScheduling") && strings.Contains(out, "1 node(s) were unschedulable") && strings.Contains(out, "Pending")) {
			err = errors.New(out)
		}
		return err
	}
	k.Eventually(long, "a pod waits for a node that is cordoned", waits)
	k.KillAgent()
	k.StartAgent()
	k.Eventually(long, "and does after a restart", waits)
	k.run(t, "", "describe "+node, "disk=ssd", "note: here", "Unschedulable:      true", "node.kubernetes.io/unschedulable:NoSchedule")
	k.run(t, "", "uncordon "+node, "uncordoned")
	k.run(t, "", "wait --for=condition=Ready pod/late --timeout=90s", "met")
	k.run(t, "", "events --for pod/late", "Successfully assigned default/late")
	k.run(t, "", "taint node "+strings.TrimPrefix(node, "node/")+" gone=yes:NoExecute", "tainted")
	k.run(t, "", "wait --for=delete pod/late --timeout=90s")
	k.run(t, "", "get pod from-file", "Running")
	k.run(t, "", "taint node "+strings.TrimPrefix(node, "node/")+" gone-", "untainted")
	k.run(t, "", "label "+node+" disk-", "unlabeled")
}

// ages are what differs between two looks at the same thing.
var ages = regexp.MustCompile(`\b\d+[smhd]\d*[smh]?\b|<invalid>| +`)

// describe compares what the agent's own command says with kubectl, line by line.
func (k kubectl) describe(t *testing.T) {
	k.run(t, describedPods, "apply -f -")
	k.run(t, "", "wait --for=condition=Ready pod/much --timeout=90s")
	k.run(t, "", "wait --for=jsonpath={.status.containerStatuses[0].restartCount}=1 pod/crash --timeout=90s")
	k.run(t, "", "wait --for=jsonpath={.status.phase}=Succeeded pod/done --timeout=90s")
	// The spaces between columns differ with what is in them: ages.
	for _, object := range []string{"pod web", "pod from-file", "pod much", "pod crash", "pod done", "pod missing", "service web", "service ports", "node"} {
		k.Eventually(long, "describe "+object, func() error {
			theirs, err := k.try("", append([]string{"describe"}, fields(object)...)...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, theirs)
			}
			ours, err := k.CLI(append([]string{"describe"}, fields(object)...)...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, ours)
			}
			var differ []string
			a, b := strings.Split(ages.ReplaceAllString(theirs, " "), "\n"), strings.Split(ages.ReplaceAllString(ours, " "), "\n")
			// kubectl shows the line ends of a message and leases, which are not served, and not what a container waits for.
			a = slices.DeleteFunc(a, func(l string) bool { return strings.TrimSpace(l) == "" || strings.HasPrefix(l, "Lease:") })
			b = slices.DeleteFunc(b, func(l string) bool {
				return strings.TrimSpace(l) == "" || strings.HasPrefix(l, " Message: ") && !slices.Contains(a, l)
			})
			for i := range max(len(a), len(b)) {
				if i >= len(a) || i >= len(b) || a[i] != b[i] {
					differ = append(differ, fmt.Sprintf("line %d: %q and %q", i, a[min(i, len(a)-1)], b[min(i, len(b)-1)]))
				}
			}
			if len(differ) > 0 {
				return fmt.Errorf("%s\nkubectl:\n%s\nnodeagent:\n%s", strings.Join(differ[:min(len(differ), 5)], "\n"), theirs, ours)
			}
			return nil
		})
	}
	k.run(t, describedPods, "delete --now -f -")
}

// describedPods are pods and Services with something of everything that is told.
const describedPods = `apiVersion: v1
kind: ConfigMap
metadata: {name: described}
data: {a: b}
---
apiVersion: v1
kind: Pod
metadata:
  name: much
  labels: {b: "2", a: "1"}
  annotations: {lines: "one\ntwo", long: "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"}
spec:
  nodeSelector: {kubernetes.io/os: linux}
  tolerations: [{key: z, operator: Exists}, {key: a, value: v, effect: NoExecute, tolerationSeconds: 30}, {operator: Exists, effect: NoSchedule}]
  terminationGracePeriodSeconds: 1
  securityContext: {seccompProfile: {type: RuntimeDefault}}
  readinessGates: []
  initContainers:
  - {name: first, image: busybox, imagePullPolicy: IfNotPresent, command: [/bin/sh, -c, "echo one\necho two"], args: [x]}
  - {name: beside, image: busybox, imagePullPolicy: IfNotPresent, restartPolicy: Always, command: [sleep, "100000"]}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [/bin/sh, -c, "mkdir /www; echo ok >/www/index.html; exec httpd -f -p 8080 -h /www"]
    securityContext: {seccompProfile: {type: Unconfined}}
    ports: [{containerPort: 8080, name: http}, {containerPort: 53, protocol: UDP}]
    resources: {limits: {cpu: "1", memory: 64Mi}, requests: {cpu: 10m}}
    env:
    - {name: PLAIN, value: "one\ntwo"}
    - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: ALL, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: CM, valueFrom: {configMapKeyRef: {name: described, key: a}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: none, key: a, optional: true}}}
    envFrom: [{configMapRef: {name: described}, prefix: P_}, {secretRef: {name: none, optional: true}}]
    readinessProbe: {httpGet: {path: "/index.html", port: http}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 1}
    startupProbe: {exec: {command: [test, -e, /www/index.html]}, periodSeconds: 1}
    volumeMounts: [{name: scratch, mountPath: /b}, {name: conf, mountPath: /a, readOnly: true}, {name: scratch, mountPath: /c, subPath: sub}]
  volumes:
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: disk, emptyDir: {}}
  - {name: host, hostPath: {path: /tmp}}
  - {name: conf, configMap: {name: described}}
  - {name: key, secret: {secretName: none, optional: true}}
  - {name: me, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}]}}
  - {name: all, projected: {sources: [{configMap: {name: described}}, {secret: {name: none, optional: true}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: busybox, imagePullPolicy: IfNotPresent, terminationMessagePolicy: FallbackToLogsOnError, command: [/bin/sh, -c, "[ -e /s/x ] && exec sleep 100000; touch /s/x; echo so it is; exit 3"], volumeMounts: [{name: s, mountPath: /s}]}]
  volumes: [{name: s, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: Never
  containers: [{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: ["true"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: missing}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: busybox, imagePullPolicy: Never, envFrom: [{configMapRef: {name: nowhere}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: ports}
spec:
  type: NodePort
  selector: {a: "1", b: "2"}
  externalIPs: [192.0.2.77]
  ports: [{name: http, port: 80, targetPort: http, appProtocol: http}, {name: other, port: 81}]
`
