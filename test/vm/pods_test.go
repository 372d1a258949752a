package vm

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// confined are the deck's pod, which names its AppArmor profile in an
// annotation, and one that names it in the field.
func (a agent) confined() string {
	root, err := testbed.Root()
	if err != nil {
		a.Fatal(err)
	}
	deck, err := os.ReadFile(filepath.Join(root, "test/deck/hello-apparmor.yaml"))
	if err != nil {
		a.Fatal(err)
	}
	// The guest reaches no registry, which a pod without a tag would ask.
	return strings.Replace(string(deck), "image: busybox\n", "image: busybox\n      imagePullPolicy: Never\n", 1) + `---
apiVersion: v1
kind: Pod
metadata: {name: by-field}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: k8s-apparmor-example-deny-write}}
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [sleep, "864002"]}
`
}

// others are a pod of another runtime, one with network volumes, and one that is
// given other limits.
const others = `apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: crun}
handler: crun
---
apiVersion: v1
kind: Pod
metadata: {name: by-crun}
spec:
  terminationGracePeriodSeconds: 1
  runtimeClassName: crun
  containers:
  - {name: main, image: busybox, imagePullPolicy: Never, command: [sleep, "864003"]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: far}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  mountOptions: [noatime]
  nfs: {server: 127.0.0.1, path: /srv/far}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: far}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: far-away}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "cp /named/in /claimed/out && exec sleep 864004"]
    volumeMounts:
    - {name: named, mountPath: /named}
    - {name: claimed, mountPath: /claimed}
  volumes:
  - name: named
    nfs: {server: 127.0.0.1, path: /srv/far, readOnly: true}
  - name: claimed
    persistentVolumeClaim: {claimName: far}
---
apiVersion: v1
kind: Pod
metadata: {name: sized}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "864005"]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}
`

// waitFor is a script that waits until get pods has that line.
func waitFor(pod, state string) string {
	return `until nodeagent get pods | grep -q '^` + pod + ` .*` + state + `'; do sleep 0.3; done
`
}

// appArmor: a profile that is not loaded keeps a pod from starting, which says
// why; a loaded one holds, whichever way it was named.
func (a agent) appArmor() {
	a.write("/root/confined.yaml", a.confined())
	out := a.vm.Sh(a, "mv /root/confined.yaml /etc/nodeagent/manifests\n"+waitFor("hello-apparmor", "CreateContainerError")+waitFor("by-field", "CreateContainerError")+`nodeagent describe pod hello-apparmor`)
	if want := "k8s-apparmor-example-deny-write"; !strings.Contains(out, "apparmor") || !strings.Contains(out, "not found "+want) {
		a.Errorf("describe does not say that the profile is not loaded:\n%s", out)
	}
	// Without the abstractions that upstream's includes: compiling them takes long here.
	out = a.vm.Sh(a, `apparmor_parser -q -r <<'END'
profile k8s-apparmor-example-deny-write flags=(attach_disconnected) {
  file,
  capability,
  network,
  signal,
  deny /** w,
}
END
`+waitFor("hello-apparmor", "Running")+waitFor("by-field", "Running")+`nodeagent logs hello-apparmor
for pod in hello-apparmor by-field; do nodeagent exec $pod -- sh -c 'cat /proc/1/attr/current; touch /tmp/x' 2>&1 || true; done
rm /etc/nodeagent/manifests/confined.yaml`)
	if !strings.Contains(out, "Hello AppArmor!") || strings.Count(out, "k8s-apparmor-example-deny-write (enforce)") != 2 || strings.Count(out, "Permission denied") != 2 {
		a.Errorf("with the profile loaded:\n%s", out)
	}
}

// otherPods are those of another runtime, of NFS and of limits that change, which
// all start together.
func (a agent) otherPods() {
	// nfsd without its unit, which would bring rpcbind: NFSv4 does without. A
	// server that has just started would let nobody write for 90 seconds.
	a.vm.Sh(a, `modprobe nfsd; mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /srv/far /var/lib/nfs/v4recovery; echo from the server >/srv/far/in; echo '/srv/far 127.0.0.1(rw,no_root_squash,no_subtree_check)' >/etc/exports
exportfs -r; rpc.mountd -N 2 -N 3; rpc.nfsd -N 3 2; echo Y >/proc/fs/nfsd/v4_end_grace`)
	a.write("/root/others.yaml", others)
	a.vm.Sh(a, "mv /root/others.yaml /etc/nodeagent/manifests\n"+waitFor("by-crun", "Running")+waitFor("far-away", "Running")+waitFor("sized", "Running"))
	// crun keeps the state of a container in a file of another name.
	if out := a.vm.Sh(a, `ls /run/containerd/runc/k8s.io/*/status | wc -l; nodeagent exec by-crun -- cat /proc/1/cmdline | tr '\0' ' '`); out != "2\nsleep 864003 " {
		a.Errorf("sandboxes and containers of crun, and its process: %q", out)
	}
	out := a.vm.Sh(a, `cat /srv/far/out; nodeagent exec far-away -- touch /named/x 2>&1 || true; grep -c ' nfs4 ro' /proc/mounts; grep ' nfs4 rw' /proc/mounts | grep -c noatime`)
	if !strings.HasPrefix(out, "from the server\n") || !strings.Contains(out, "Read-only file system") || !strings.HasSuffix(out, "\n1\n1\n") {
		a.Errorf("NFS: %q", out)
	}
	a.resized()
	out = a.vm.Sh(a, `rm /etc/nodeagent/manifests/others.yaml
while nodeagent get pods | grep -q -e ^by- -e ^far- -e ^sized -e ^hello-; do sleep 0.3; done
grep -c ' nfs4 ' /proc/mounts || true; rpc.nfsd 0; pkill -x rpc.mountd; exportfs -ua; umount /proc/fs/nfsd; rm -r /srv/far`)
	if out != "0\n" {
		a.Errorf("NFS mounts that are left: %s", out)
	}
}

// resized: the container's scope and the pod's slice have the new limits, and the
// process goes on.
func (a agent) resized() {
	out := a.vm.Sh(a, `pid=$(pgrep -fx 'sleep 864005'); cd /sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup)
cat cpu.max memory.max
curl -sf -o /dev/null --unix-socket /run/nodeagent/nodeagent.sock -X PATCH -H 'Content-Type: application/strategic-merge-patch+json' http://agent/api/v1/namespaces/default/pods/sized/resize \
  -d '{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"150m","memory":"24Mi"},"limits":{"cpu":"300m","memory":"48Mi"}}}]}}'
until grep -q '^30000 ' cpu.max && grep -q 50331648 memory.max && grep -q 50331648 ../memory.max; do sleep 0.3; done
cat cpu.max cpu.weight memory.max ../cpu.max ../memory.max; [ "$(pgrep -fx 'sleep 864005')" = $pid ] && echo the same process`)
	if want := "20000 100000\n33554432\n30000 100000\n6\n50331648\n30000 100000\n50331648\nthe same process\n"; out != want {
		a.Errorf("resized: %q, want %q", out, want)
	}
}
