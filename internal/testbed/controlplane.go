package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Addresses of a control plane and its Services. Nodes that join get one each
// of the /16 that ControlPlaneIP is in (RFC 2544: no host has it).
const (
	ControlPlaneIP = "198.18.0.1"
	ServiceCIDR    = "10.96.0.0/16"

	// GuestControlPlaneIP is where a guest under qemu finds the API server: see
	// GuestForward.
	GuestControlPlaneIP = "10.0.2.100"

	etcdURL = "http://127.0.0.1:2379"
	apiPort = "6443"
)

// ControlPlane is a kube-apiserver with its etcd, in namespaces of their own.
// RBAC and Node authorization are on; nobody but the admin may do what the API
// server's own roles do not say.
type ControlPlane struct {
	t       testing.TB
	machine *Node
	program string
	args    []string
	pki     *pki
	nodes   int

	apiserver *Program // nil while it is stopped
	client    *kubernetes.Clientset
	rest      *rest.Config
}

// NewControlPlane starts one, with more flags for kube-apiserver, and returns
// when it serves. It ends with the test. KUBERNETES_MINOR=1.36 takes an older
// API server; both are built by hack/build-kubernetes.sh.
func NewControlPlane(t testing.TB, apiserverArgs ...string) *ControlPlane {
	t.Helper()
	Require(t, "etcd")
	program, err := KubernetesProgram("kube-apiserver")
	if err != nil {
		missing(t, err.Error())
	}
	c := &ControlPlane{t: t, program: program, args: apiserverArgs, nodes: 1}
	c.machine = NewNode(t, WithContainerd(NoContainerd), WithoutImages(), WithoutRegistry())
	if c.pki, err = newPKI(); err != nil {
		t.Fatal(err)
	}
	if err := c.layout(); err != nil {
		t.Fatal(err)
	}
	// On a tmpfs: etcd syncs every write, and a test's data outlives nothing.
	c.machine.Run("etcd.log", "etcd", "--data-dir", "/run/etcd", "--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--quota-backend-bytes", strconv.Itoa(4<<30))
	c.Start()
	return c
}

// KubernetesProgram is the path of what hack/build-kubernetes.sh has built.
func KubernetesProgram(name string) (string, error) {
	dir := filepath.Join(BuildDir(), "kubernetes")
	if minor := os.Getenv("KUBERNETES_MINOR"); minor != "" {
		dir = filepath.Join(dir, "v"+minor)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("needs %s: %w: run hack/build-kubernetes.sh %s", name, err, name)
	}
	return path, nil
}

// layout makes the network and the files of the API server.
func (c *ControlPlane) layout() error {
	for _, args := range [][]string{
		{"link", "add", "br0", "type", "bridge"},
		{"addr", "add", ControlPlaneIP + "/16", "dev", "br0"},
		{"link", "set", "br0", "up"},
		// An API server without a default route does not know its own address.
		{"route", "add", "default", "dev", "br0"},
	} {
		if _, err := c.machine.Exec("ip", args...); err != nil {
			return err
		}
	}
	files, err := c.pki.apiserverFiles()
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(c.machine.Path(name), content, 0o600); err != nil {
			return err
		}
	}
	cert, key, err := c.pki.client("admin", "system:masters")
	if err != nil {
		return err
	}
	c.rest = &rest.Config{
		Host: "https://" + ControlPlaneIP + ":" + apiPort, QPS: -1, Dial: c.machine.Dial,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.pki.ca.certPEM, CertData: cert, KeyData: key},
		ContentConfig:   rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"},
	}
	c.client, err = kubernetes.NewForConfig(c.rest)
	return err
}

// Start starts the API server and returns when it serves.
func (c *ControlPlane) Start() {
	c.t.Helper()
	path := c.machine.Path
	args := []string{
		"--etcd-servers=" + etcdURL, "--bind-address=0.0.0.0", "--secure-port=" + apiPort, "--advertise-address=" + ControlPlaneIP,
		"--service-cluster-ip-range=" + ServiceCIDR, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--tls-cert-file=" + path("server.crt"), "--tls-private-key-file=" + path("server.key"), "--client-ca-file=" + path("ca.crt"),
		"--kubelet-client-certificate=" + path("kubelet-client.crt"), "--kubelet-client-key=" + path("kubelet-client.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + path("sa.pub"),
		"--service-account-signing-key-file=" + path("sa.key"),
	}
	c.apiserver = c.machine.Run("kube-apiserver.log", c.program, append(args, c.args...)...)
	c.machine.Eventually(2*time.Minute, "the API server is ready", func() error {
		select {
		case <-c.apiserver.Done():
			c.t.Fatalf("kube-apiserver ended: %v\n%s", c.apiserver.err, tail(readLog(path("kube-apiserver.log")), 20))
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := c.client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

// Stop ends the API server as a crash does: its clients' connections are reset
// and nobody listens any more.
func (c *ControlPlane) Stop() {
	c.t.Helper()
	if err := c.apiserver.End(syscall.SIGKILL); err != nil {
		c.t.Fatalf("end kube-apiserver: %v", err)
	}
	c.apiserver = nil
}

// Compact makes etcd forget every revision but the current one. With an API
// server that has been started again since, an older watch or list cannot be
// continued ("410 Gone").
func (c *ControlPlane) Compact() {
	c.t.Helper()
	var now struct {
		Header struct{ Revision json.Number }
	}
	if err := c.etcd("range", map[string]any{"key": []byte{0}}, &now); err != nil {
		c.t.Fatal(err)
	}
	if err := c.etcd("compaction", map[string]any{"revision": now.Header.Revision, "physical": true}, nil); err != nil {
		c.t.Fatal(err)
	}
}

// etcd calls one method of etcd's KV service, in its JSON form.
func (c *ControlPlane) etcd(method string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := c.machine.HTTPClient().Post(etcdURL+"/v3/kv/"+method, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd %s: %s", method, resp.Status)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// Client is the admin's.
func (c *ControlPlane) Client() *kubernetes.Clientset { return c.client }

// Kubeconfig is one for a client certificate of that user, in the groups
// given, to be used on a node that has joined: "system:kube-proxy",
// "system:node:NAME" with "system:nodes", or "admin" with "system:masters".
func (c *ControlPlane) Kubeconfig(user string, groups ...string) []byte {
	c.t.Helper()
	b, err := c.pki.kubeconfig(c.rest.Host, user, groups...)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// GuestForward is the option of qemu's user-mode network that leads its guest to
// the API server: each connection is a program's input and output.
func (c *ControlPlane) GuestForward() string {
	return fmt.Sprintf("guestfwd=tcp:%s:%s-cmd:nsenter --net=%s busybox nc %s %s",
		GuestControlPlaneIP, apiPort, c.machine.netnsFile(), ControlPlaneIP, apiPort)
}

// GuestKubeconfig is Kubeconfig for a guest.
func (c *ControlPlane) GuestKubeconfig(user string, groups ...string) []byte {
	c.t.Helper()
	b, err := c.pki.kubeconfig("https://"+GuestControlPlaneIP+":"+apiPort, user, groups...)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// Join connects a node to the control plane and returns the node's address in
// its network. A node that is rebooted has to join again.
func (c *ControlPlane) Join(n *Node) string {
	c.t.Helper()
	c.nodes++
	port, addr := fmt.Sprintf("node%d", c.nodes), fmt.Sprintf("198.18.%d.%d", c.nodes/256, c.nodes%256)
	// A process number names the other namespace, and it must be the one that
	// the test sees: this runs in the network namespace only.
	cmd := exec.Command("nsenter", "--net="+c.machine.netnsFile(), "ip", "link", "add", port, "type", "veth",
		"peer", "name", "cluster0", "netns", strconv.Itoa(n.holder().init))
	if _, err := output(cmd); err != nil {
		c.t.Fatal(err)
	}
	for _, step := range []struct {
		on   *Node
		args []string
	}{
		{c.machine, []string{"link", "set", port, "master", "br0", "up"}},
		{n, []string{"addr", "add", addr + "/16", "dev", "cluster0"}},
		{n, []string{"link", "set", "cluster0", "up"}},
	} {
		if _, err := step.on.Exec("ip", step.args...); err != nil {
			c.t.Fatal(err)
		}
	}
	return addr
}
