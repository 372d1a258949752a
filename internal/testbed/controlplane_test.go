package testbed

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// TestControlPlane uses the API from a node, as three users, and takes the
// server away meanwhile.
func TestControlPlane(t *testing.T) {
	n := NewNode(t, WithContainerd(NoContainerd), WithoutImages(), WithoutRegistry())
	c := NewControlPlane(t)
	if addr := c.Join(n); addr == ControlPlaneIP {
		t.Fatalf("the node got the control plane's address, %s", addr)
	}
	as := func(user string, groups ...string) *kubernetes.Clientset {
		t.Helper()
		cfg, err := clientcmd.RESTConfigFromKubeConfig(c.Kubeconfig(user, groups...))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Dial = n.Dial
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	proxy, kubelet := as("system:kube-proxy"), as("system:node:"+n.Name, "system:nodes")
	slices := func(client *kubernetes.Clientset) error {
		_, err := client.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{})
		return err
	}
	n.Eventually(time.Minute, "kube-proxy may list EndpointSlices", func() error { return slices(proxy) })
	if err := slices(kubelet); !apierrors.IsForbidden(err) {
		t.Errorf("a kubelet lists EndpointSlices: %v, want that it is forbidden", err)
	}
	if _, err := proxy.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("kube-proxy lists Secrets: %v, want that it is forbidden", err)
	}

	before, err := c.Client().CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Only what came before another write can expire.
	if _, err := c.Client().CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "later"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	if err := slices(proxy); err == nil {
		t.Error("a stopped API server answers")
	}
	c.Compact()
	c.Start()
	n.Eventually(time.Minute, "an old revision is gone", func() error {
		_, err := as("admin", "system:masters").CoreV1().Services("").List(t.Context(),
			metav1.ListOptions{ResourceVersion: before.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
		if !apierrors.IsResourceExpired(err) {
			return fmt.Errorf("listed: %v", err)
		}
		return nil
	})
}
