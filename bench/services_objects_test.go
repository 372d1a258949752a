//go:build bench

package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

const (
	namespace = "default"
	// writers is how many requests to the API server are in flight.
	writers = 16
	// probes are the Services that really answer; they are made at a quarter, a
	// half, three quarters and the whole of a filling.
	probeCount = 4
	perSecond  = 100
)

// cluster is the objects in the API server.
type cluster struct {
	cp     *testbed.ControlPlane
	filled int
	probes []string // cluster IPs of Services that answer
	last   int      // of new Services
}

// filler is the second endpoint's address of Service i in one of its two forms.
func filler(i int, form byte) []string {
	return []string{fmt.Sprintf("10.128.%d.%d", i>>8, i&255), fmt.Sprintf("10.%d.%d.%d", 129+form, i>>8, i&255)}
}

// answering are the servers outside of every node.
var answering = []string{testbed.OutsideIP, "192.0.2.3"}

func (c *cluster) slice(service, name string, addrs []string) *discoveryv1.EndpointSlice {
	port, tcp := int32(8080), corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &tcp}},
	}
	ready := true
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
		})
	}
	return s
}

// create makes endpoints first, so that the Service is complete at once, and
// returns when the Service was asked for and when the API server had it.
func (c *cluster) create(ctx context.Context, name string, addrs []string) (clusterIP string, asked, had time.Time, err error) {
	if _, err = c.cp.Client().DiscoveryV1().EndpointSlices(namespace).Create(ctx, c.slice(name, name, addrs), metav1.CreateOptions{}); err != nil {
		return "", asked, had, err
	}
	asked = time.Now()
	s, err := c.cp.Client().CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", asked, had, err
	}
	return s.Spec.ClusterIP, asked, time.Now(), nil
}

func (c *cluster) remove(ctx context.Context, name string) error {
	if err := c.cp.Client().CoreV1().Services(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	return c.cp.Client().DiscoveryV1().EndpointSlices(namespace).Delete(ctx, name, metav1.DeleteOptions{})
}

// fill goes on to that many Services; the probes that lie behind are moved up,
// so that the last Service is always one that answers.
func (c *cluster) fill(ctx context.Context, size int) error {
	for i := range c.probes {
		if err := c.remove(ctx, fmt.Sprintf("probe%d", i)); err != nil {
			return err
		}
	}
	c.probes = nil
	from := c.filled
	for p := range probeCount {
		to := from + (size-from)*(p+1)/probeCount
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(writers)
		for ; c.filled < to; c.filled++ {
			i := c.filled
			g.Go(func() error {
				_, _, _, err := c.create(ctx, fmt.Sprintf("fill%d", i), filler(i, 0))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		ip, _, _, err := c.create(context.WithoutCancel(ctx), fmt.Sprintf("probe%d", p), answering)
		if err != nil {
			return err
		}
		c.probes = append(c.probes, ip)
	}
	return nil
}

// makeBig makes one Service of many endpoints, in slices of 100.
func (c *cluster) makeBig(ctx context.Context, size int) error {
	if size == 0 {
		return nil
	}
	if _, _, _, err := c.create(ctx, "big", nil); err != nil {
		return err
	}
	for from := 0; from < size; from += 100 {
		var addrs []string
		for i := from; i < min(from+100, size); i++ {
			addrs = append(addrs, fmt.Sprintf("10.140.%d.%d", i>>8, i&255))
		}
		s := c.slice("big", fmt.Sprintf("big%d", from), addrs)
		if _, err := c.cp.Client().DiscoveryV1().EndpointSlices(namespace).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// addNode makes the Node that kube-proxy insists on.
func (c *cluster) addNode(ctx context.Context, name, ip string) error {
	n, err := c.cp.Client().CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	_, err = c.cp.Client().CoreV1().Nodes().UpdateStatus(ctx, n, metav1.UpdateOptions{})
	return err
}

// churn changes endpoints, perSecond times a second, until ctx ends. It says how
// many changes were made: an API server that is busy may manage fewer.
func (c *cluster) churn(ctx context.Context) (int, error) {
	among := min(c.filled, 1000)
	var done atomic.Int64
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	g.SetLimit(writers)
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	for k := 0; ; k++ {
		select {
		case <-ctx.Done():
			return int(done.Load()), g.Wait()
		case <-tick.C:
		}
		i, form := k%among, byte((k/among+1)%2)
		g.Go(func() error {
			name := fmt.Sprintf("fill%d", i)
			_, err := c.cp.Client().DiscoveryV1().EndpointSlices(namespace).Update(gctx, c.slice(name, name, filler(i, form)), metav1.UpdateOptions{})
			done.Add(1)
			return err
		})
	}
}

// restore undoes what churn left.
func (c *cluster) restore(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := range min(c.filled, 1000) {
		g.Go(func() error {
			name := fmt.Sprintf("fill%d", i)
			_, err := c.cp.Client().DiscoveryV1().EndpointSlices(namespace).Update(ctx, c.slice(name, name, filler(i, 0)), metav1.UpdateOptions{})
			return err
		})
	}
	return g.Wait()
}
