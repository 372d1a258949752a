package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// What scenarios of volumes, of what is handed to containers, and of who they
// are must show.

func (s scene) volume() {
	s.reads("volume-storage", "store", "cat visits", "started")
	if err := s.n.Signal(s.n.ContainerPID(ids(s.T, s.n)["volume-storage/store"]), 9); err != nil {
		s.Fatal(err)
	}
	s.n.WaitPods(long, restarts("volume-storage", 1))
	s.reads("volume-storage", "store", "cat visits", "started started")
}

func (s scene) persistentVolume() {
	s.running("pv-site", "pv-parts")
	if out := cli(s.T, s.n, "get", "pv"); !hasRow(out, "site", "10Gi", "RWO", "Retain", "Bound", "default/site", "manual") {
		s.Errorf("get pv:\n%s", out)
	}
	url := "http://" + get(s.T, s.n, "pv-site").Status.PodIP
	for path, want := range map[string]string{"/": "Hello from storage", "/pages/part.html": "part", "/conf/switch": "on"} {
		s.n.Eventually(long, path, func() error {
			body, err := s.n.HTTPGet(url + path)
			if err == nil && !strings.Contains(body, want) {
				err = fmt.Errorf("%q lacks %q", body, want)
			}
			return err
		})
	}
	s.reads("pv-parts", "main", "id -G | tr ' ' '\\n' | grep -x 1234", "1234")
}

func (s scene) projected() {
	s.reads("projected", "main", "cd /projected; ls; cat username keys/password mode labels; stat -L -c %a username keys/password",
		`keys labels mode username adaanalytical-enginefastapp="projected"644 400`)
	s.reads("projected", "main", "awk '$2 == \"/projected\" { print $3, substr($4, 1, 2) }' /proc/mounts", "tmpfs ro")
}

func (s scene) imageVolume() {
	if os.Getenv("NODE_CONTAINERD") != testbed.Containerd24 {
		s.n.WaitPods(long, waiting("image-volume", "CreateContainerConfigError"))
		return
	}
	s.reads("image-volume", "shell", "cat /volume/usr/share/nginx/html/index.html; touch /volume/x 2>&1 | grep -o Read-only", "<h1>Welcome to nginx!</h1> Read-only")
}

func (s scene) containersTalk() {
	s.reads("containers-talk", "writer", "wget -qO- http://127.0.0.1/", "hello from the other container")
}

func (s scene) securityContext() {
	const who = "id -u; id -g; id -G"
	s.reads("security-users", "inherits", who, "1000 3000 3000 2000 4000")
	s.reads("security-users", "inherits", "cd /data/demo; echo hello >file; stat -c %u:%g:%a . file", "0:2000:2777 1000:2000:644")
	s.reads("security-users", "overrides", who+"; touch /x 2>&1 | grep -o Read-only", "2000 3000 3000 2000 4000 Read-only")
	const defaults = "00000000a80425fb"
	expectProcess(s.T, s.n, "security-users", "inherits", map[string]string{"NoNewPrivs": "1", "CapEff": "0000000000000000"})
	s.running("security-capabilities")
	expectProcess(s.T, s.n, "security-capabilities", "default", map[string]string{"CapEff": defaults, "Seccomp": "2", "NoNewPrivs": "0"})
	expectProcess(s.T, s.n, "security-capabilities", "more", map[string]string{"CapEff": "00000000aa0435fb"})
	expectProcess(s.T, s.n, "security-capabilities", "none", map[string]string{"CapEff": "0000000000000000", "CapBnd": "0000000000000000"})
}

func (s scene) serviceAccount() {
	s.running("service-account")
	s.logs("service-account", "main", "ls: /var/run/secrets: No such file or directory\nas robot\n")
}

func (s scene) shareProcesses() {
	s.reads("share-processes", "shell", "cat /proc/1/cmdline | tr '\\0' ' '", "/pause")
	s.reads("share-processes", "shell", "head -n 1 /proc/$(pidof nginx | awk '{ print $NF }')/root/etc/nginx/nginx.conf >/dev/null && echo read", "read")
	s.reads("share-processes", "shell", "kill -HUP $(pidof nginx | awk '{ print $NF }') && echo sent", "sent")
	if c := get(s.T, s.n, "share-processes").Status.ContainerStatuses[0]; c.RestartCount != 0 {
		s.Errorf("nginx was restarted: %+v", c)
	}
}

func (s scene) userNamespace() {
	if os.Getenv("NODE_CONTAINERD") != testbed.Containerd24 {
		s.n.WaitPods(long, waiting("user-namespace", "ContainerCreating"))
		described(s.T, s.n, "user-namespace", "runtime does not support user namespaces")
		return
	}
	s.reads("user-namespace", "shell", "id -u; awk '{ print $1, ($2 >= 65536), $3 }' /proc/self/uid_map", "0 0 1 65536")
}

func (s scene) configMap() {
	s.n.WaitPods(long, ended("configmap-env", v1.PodSucceeded, ""))
	s.logs("configmap-env", "main", "very charm INFO charm [$(ABSENT)]\n")
	s.reads("configmap-files", "main", "cd /config; cat all/how one/keys/kind fixed/company; ls all one/keys absent; stat -L -c %a one/keys/kind; wc -c <fixed/blob",
		"verycharmfirstabsent: all: how type one/keys: kind 440 3")
	path := filepath.Join(s.n.Manifests(), "configmap.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	s.n.WriteManifest("configmap.yaml", strings.NewReplacer("type: charm", "type: quark", "log_level: INFO", "log_level: DEBUG").Replace(string(text)))
	s.reads("configmap-files", "main", "cd /config; cat all/type one/keys/kind", "quarkquark")
	s.n.WriteManifest("configmap.yaml", strings.Replace(string(text), "company: first", "company: second", 1))
	s.reads("configmap-files", "main", "cd /config; cat all/type", "charm") // the folder has been read
	s.reads("configmap-files", "main", "cd /config; cat fixed/company", "first")
	s.n.WriteManifest("configmap.yaml", string(text))
}

func (s scene) secret() {
	s.reads("secret-files", "main", "cd /etc/files; ls -A | grep -v '^\\.\\.'; cat username .hidden; stat -L -c %a password; cat /etc/mapped/group/name",
		".hidden password username my-appbehind a dot400 my-app")
	s.reads("secret-files", "main", `echo "$SECRET_USERNAME $ALL_password"; awk '$2 == "/etc/files" { print $3 }' /proc/mounts`, "my-app 39528$vdg7Jb tmpfs")
}

func (s scene) environment() {
	s.n.WaitPods(long, ended("environment", v1.PodSucceeded, ""))
	s.logs("environment", "main", "https://172.17.0.1:80\n$(LATER)://x\n$(LATER)\n$(NOT_THERE)\n")
}

func (s scene) downwardAPI() {
	s.running("downward")
	p := get(s.T, s.n, "downward")
	s.reads("downward", "main", "echo $MY_NODE_NAME $MY_POD_NAME $MY_POD_NAMESPACE $MY_POD_IP $MY_ACCOUNT $MY_ZONE $MY_CPU_REQUEST $MY_CPU_LIMIT $MY_MEM_LIMIT",
		strings.Join([]string{p.Spec.NodeName, "downward", "default", p.Status.PodIP, "default", "us-est-coast", "125", "1", "67108864"}, " "))
	s.reads("downward", "main", "cd /etc/podinfo; cat labels; echo; grep ^build annotations; cat mem_limit; echo; cat cpu_limit",
		`cluster="test-cluster1" zone="us-est-coast" build="two" builder="john-doe" 64 250`)
	path := filepath.Join(s.n.Manifests(), "downward-api.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	s.n.WriteManifest("downward-api.yaml", strings.Replace(string(text), "zone: us-est-coast", "zone: here", 1))
	s.reads("downward", "main", "grep zone /etc/podinfo/labels; echo $MY_ZONE", `zone="here" us-est-coast`)
}

func (s scene) hostAliases() {
	s.n.WaitPods(long, ended("host-aliases", v1.PodSucceeded, ""))
	s.logs("host-aliases", "main", "127.0.0.1\tfoo.local\tbar.local\n10.1.2.3\tfoo.remote\tbar.remote\n")
}

func (s scene) debug() {
	s.running("debugged")
	patch(s.T, s.n, "debugged", "ephemeralcontainers",
		`{"spec":{"ephemeralContainers":[{"name":"look","image":"busybox","imagePullPolicy":"IfNotPresent","targetContainerName":"web","command":["sleep","100000"]}]}}`)
	s.reads("debugged", "look", "cat /proc/1/comm; wget -qO- http://127.0.0.1/ | grep -o Welcome", "nginx Welcome")
}

func (s scene) terminationMessage() {
	s.n.WaitPods(long, ended("last-words", v1.PodFailed, ""))
	want := map[string]string{"file": "0 Sleep expired\n", "elsewhere": "0 from elsewhere\n", "log": "3 the log has it\n"}
	for _, c := range get(s.T, s.n, "last-words").Status.ContainerStatuses {
		if got := fmt.Sprintf("%d %s", c.State.Terminated.ExitCode, c.State.Terminated.Message); got != want[c.Name] {
			s.Errorf("%s: %q, want %q", c.Name, got, want[c.Name])
		}
	}
}
