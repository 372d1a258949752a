package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// inNetns runs f on a thread that is in the network namespace of that file. A
// socket belongs to the namespace it was made in, so what f returns can be
// used from anywhere afterwards. The thread is thrown away, never returned to
// the pool in the wrong namespace.
func inNetns(file string, f func() error) error {
	ns, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", file, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// In runs f on a thread inside the node's network namespace.
func (n *Node) In(f func() error) error { return inNetns(n.netnsFile(), f) }

func (n *Node) netnsFile() string { return fmt.Sprintf("/proc/%d/ns/net", n.holder().init) }

// outsideNetns is the file of the namespace that WithOutside made.
func (n *Node) outsideNetns() string { return n.Root() + "/run/netns/outside" }

// Dial connects from inside the node's network namespace; the address is an IP
// and a port.
func (n *Node) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialIn(ctx, n.netnsFile(), network, addr)
}

// DialOutside connects from the namespace that WithOutside made.
func (n *Node) DialOutside(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialIn(ctx, n.outsideNetns(), network, addr)
}

func dialIn(ctx context.Context, file, network, addr string) (conn net.Conn, err error) {
	err = inNetns(file, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside the node's network namespace.
func (n *Node) Listen(network, addr string) (net.Listener, error) {
	return listenIn(n.netnsFile(), network, addr)
}

// ListenOutside listens in the namespace that WithOutside made.
func (n *Node) ListenOutside(network, addr string) (net.Listener, error) {
	return listenIn(n.outsideNetns(), network, addr)
}

func listenIn(file, network, addr string) (l net.Listener, err error) {
	err = inNetns(file, func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// HTTPClient sends from inside the node's network namespace.
func (n *Node) HTTPClient() *http.Client { return httpClient(n.Dial) }

// HTTPGet fetches a URL from inside the node. A status other than 200 is an
// error. It tries once; see Eventually.
func (n *Node) HTTPGet(url string) (string, error) { return httpGet(n.HTTPClient(), url) }

// HTTPGetOutside is HTTPGet from the namespace that WithOutside made.
func (n *Node) HTTPGetOutside(url string) (string, error) {
	return httpGet(httpClient(n.DialOutside), url)
}

func httpClient(dial func(context.Context, string, string) (net.Conn, error)) *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}
}

func httpGet(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return string(b), fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return string(b), nil
}

// Eventually calls f until it returns nil, at most for d, and fails the test
// with f's last error.
func (n *Node) Eventually(d time.Duration, what string, f func() error) {
	n.t.Helper()
	if err := eventually(d, f); err != nil {
		n.t.Fatalf("%s: not within %v: %v", what, d, err)
	}
}

func eventually(d time.Duration, f func() error) error {
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
