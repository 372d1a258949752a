//go:build bench

package bench

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodeagent/nodeagent/bench/connect"
	"github.com/nodeagent/nodeagent/internal/testbed"
)

// serve answers on every address outside.
func serve(t *testing.T, n *testbed.Node) {
	t.Helper()
	l, err := n.ListenOutside("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { _ = connect.Serve(l) }() // ends with the listener
}

// firstConnect is when a connection from the node to the Service's address was
// first accepted.
func firstConnect(ctx context.Context, n *testbed.Node, ip string) (at time.Time, err error) {
	err = n.In(func() error {
		at, err = connect.First(ctx, netip.AddrPortFrom(netip.MustParseAddr(ip), 80), time.Millisecond)
		return err
	})
	return at, err
}

// dial makes a connection that ends with a reset: none of thousands waits for a
// minute on its port.
func dial(ip string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", ip+":80", 5*time.Second)
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetLinger(0)
}

// connects are the times that connect takes, one after the other, in µs.
func connects(n *testbed.Node, ip string, d time.Duration) (took []float64, err error) {
	err = n.In(func() error {
		for end := time.Now().Add(d); time.Now().Before(end); {
			began := time.Now()
			c, err := dial(ip)
			if err != nil {
				return err
			}
			took = append(took, float64(time.Since(began))/float64(time.Microsecond))
			c.Close()
		}
		return nil
	})
	return took, err
}

// requests is how many requests a second four clients get answered, each over a
// connection of its own, and how many were not answered at all.
func requests(n *testbed.Node, ip string, d time.Duration) (rate float64, failed int64, err error) {
	var done, lost atomic.Int64
	var g errgroup.Group
	end := time.Now().Add(d)
	for range 4 {
		g.Go(func() error {
			return n.In(func() error {
				for time.Now().Before(end) {
					if err := request(ip); err != nil {
						lost.Add(1)
					} else {
						done.Add(1)
					}
				}
				return nil
			})
		})
	}
	err = g.Wait()
	return float64(done.Load()) / d.Seconds(), lost.Load(), err
}

func request(ip string) error {
	c, err := dial(ip)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := []byte("ping")
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err = io.ReadFull(c, buf)
	return err
}
