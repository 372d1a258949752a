package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Bounds of CRI calls. A sandbox may wait for a slow CNI plugin; everything
// else that takes two minutes is stuck.
const (
	callTimeout    = 2 * time.Minute
	sandboxTimeout = 4 * time.Minute
	connectTimeout = 5 * time.Second
	// maxMessage is kubelet's limit; ExecSync output and lists of many pods
	// come near it.
	maxMessage = 16 << 20
)

// Options says which runtime to speak to and what is ours on it.
type Options struct {
	// Endpoint is unix:///run/containerd/containerd.sock or a plain path.
	Endpoint string
	// Owner is the value of the owner label; objects with another value are
	// never listed and never touched.
	Owner string
	// AdoptKubelet also takes objects that carry kubelet's labels and no owner.
	AdoptKubelet bool
	// StartsDir is where starts under way are noted, so that one which the death
	// of the agent or the runtime cut short is no crash of the container. "":
	// nowhere.
	StartsDir string
	// SeccompRoot is the folder of Localhost seccomp profiles.
	SeccompRoot string
	Policy      Policy
	Log         *slog.Logger
	// Observe is called after each call with kubelet's name of the operation.
	Observe func(op string, d time.Duration, err error)
}

// Client speaks CRI v1 and, where CRI lacks something, containerd's API over
// the same connection. It is safe for concurrent use.
type Client struct {
	o    Options
	log  *slog.Logger
	conn *grpc.ClientConn
	rt   cri.RuntimeServiceClient
	img  cri.ImageServiceClient
	spec translator

	index  index
	starts starts

	mu     sync.Mutex
	about  *about // nil: ask again
	events string // how events arrive; see Info.Events
	// lacked is the sandbox image that the runtime could not pull last.
	lacked string
}

// about is what a runtime says of itself and keeps until it is restarted.
type about struct {
	name, version, api string
	handlers           []string
	cgroupDriver       string
	sandboxImage       string
	features           Features
}

// How container events arrive.
const (
	eventsCRI        = "cri"
	eventsContainerd = "containerd"
	eventsPoll       = "poll"
)

// Connect dials the runtime and asks for its version. The error is
// errdefs.ErrUnavailable when nobody answers. Afterwards the connection comes
// back by itself whenever the runtime does.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Owner == "" {
		return nil, fmt.Errorf("%w: runtime client without an owner name", errdefs.ErrInvalid)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(string, time.Duration, error) {}
	}
	conn, err := dial(o.Endpoint)
	if err != nil {
		return nil, err
	}
	c := &Client{
		o:    o,
		log:  o.Log,
		conn: conn,
		rt:   cri.NewRuntimeServiceClient(conn),
		img:  cri.NewImageServiceClient(conn),
		spec: newTranslator(o, os.DirFS("/")),

		starts: starts{dir: o.StartsDir, log: o.Log},
	}
	c.index.init()
	dctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if _, err := c.describe(dctx); err != nil {
		_ = conn.Close()
		if errors.Is(err, errUnimplemented) {
			return nil, fmt.Errorf("%s does not speak CRI v1 (containerd 1.6 or newer does; is its cri plugin disabled?): %w", o.Endpoint, err)
		}
		if dctx.Err() != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("%w: runtime at %s accepts connections but does not answer: %w", errdefs.ErrUnavailable, o.Endpoint, err)
		}
		return nil, fmt.Errorf("runtime at %s: %w", o.Endpoint, err)
	}
	return c, nil
}

// dial makes the connection without waiting for it.
func dial(endpoint string) (*grpc.ClientConn, error) {
	path, isUnix := strings.CutPrefix(endpoint, "unix://")
	if !isUnix && strings.Contains(endpoint, "://") || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("%w: runtime endpoint %q: want unix:///absolute/path.sock", errdefs.ErrInvalid, endpoint)
	}
	// No keepalive: a dead peer of a unix socket is seen at once, a hung one
	// by each call's deadline, and gRPC servers answer pings that come more
	// often than every five minutes by closing the connection.
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The default goes up to two minutes; a restarted containerd must
			// be found at once.
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.1, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithReadBufferSize(16<<10),
		grpc.WithWriteBufferSize(16<<10),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: runtime endpoint %q: %w", errdefs.ErrInvalid, endpoint, err)
	}
	return conn, nil
}

// Close ends the connection; a running Watch ends with it.
func (c *Client) Close() error { return c.conn.Close() }

// invoke makes one unary call with a time limit (none when 0), reports it and
// translates its error. object names what it is about, for the error.
func invoke[Q, R any](ctx context.Context, c *Client, op, object string, limit time.Duration,
	f func(context.Context, Q, ...grpc.CallOption) (R, error), req Q,
) (R, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	begin := time.Now()
	resp, err := f(ctx, req)
	what := "runtime " + op
	if object != "" {
		what += " " + object
	}
	err = translate(what, err)
	c.o.Observe(op, time.Since(begin), err)
	return resp, err
}

// describe asks the runtime who it is, once per start of the runtime.
func (c *Client) describe(ctx context.Context) (*about, error) {
	c.mu.Lock()
	a := c.about
	c.mu.Unlock()
	if a != nil {
		return a, nil
	}
	v, err := invoke(ctx, c, "version", "", callTimeout, c.rt.Version, &cri.VersionRequest{})
	if err != nil {
		return nil, err
	}
	a = &about{name: v.GetRuntimeName(), version: v.GetRuntimeVersion(), api: v.GetRuntimeApiVersion()}
	st, err := invoke(ctx, c, "status", "", callTimeout, c.rt.Status, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	readStatus(a, st)
	if a.cgroupDriver == "" {
		// Since CRI 1.28; older runtimes answer Unimplemented, which leaves it empty.
		rc, err := invoke(ctx, c, "runtime_config", "", callTimeout, c.rt.RuntimeConfig, &cri.RuntimeConfigRequest{})
		if err == nil && rc.GetLinux() != nil {
			a.cgroupDriver = driverName(rc.GetLinux().GetCgroupDriver())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.about = a
	if c.events == "" {
		c.events = eventWays(a)[0]
	}
	return a, nil
}

// forget makes the next describe ask again: the runtime may have been replaced
// by another version.
func (c *Client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.about, c.events = nil, ""
}

func (c *Client) eventMode() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events
}

func (c *Client) setEventMode(m string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = m
}

// Info says what the runtime is and whether it is ready, as of now.
func (c *Client) Info(ctx context.Context) (Info, error) {
	st, err := invoke(ctx, c, "status", "", callTimeout, c.rt.Status, &cri.StatusRequest{})
	if err != nil {
		return Info{Endpoint: c.o.Endpoint}, err
	}
	a, err := c.describe(ctx)
	if err != nil {
		return Info{Endpoint: c.o.Endpoint}, err
	}
	info := Info{
		Name: a.name, Version: a.version, APIVersion: a.api, Endpoint: c.o.Endpoint,
		Handlers: a.handlers, CgroupDriver: a.cgroupDriver, Events: c.eventMode(), Features: a.features,
	}
	var reasons []string
	for _, cond := range st.GetStatus().GetConditions() {
		switch cond.GetType() {
		case cri.RuntimeReady:
			info.Ready = cond.GetStatus()
		case cri.NetworkReady:
			info.NetworkReady = cond.GetStatus()
		default: // containerd's deprecation warnings and the like
			continue
		}
		if !cond.GetStatus() {
			reasons = append(reasons, strings.TrimSuffix(cond.GetReason()+": "+cond.GetMessage(), ": "))
		}
	}
	info.Reason = strings.Join(reasons, "; ")
	return info, nil
}

// Features are the runtime's, as it last said when it was started.
func (c *Client) Features(ctx context.Context) (Features, error) {
	a, err := c.describe(ctx)
	if err != nil {
		return Features{}, err
	}
	return a.features, nil
}

// SandboxImage is the pause image that the runtime is configured with; "" when
// it does not say, as containerd 2.x, and has not failed to pull it yet.
func (c *Client) SandboxImage(ctx context.Context) (string, error) {
	a, err := c.describe(ctx)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(a.sandboxImage, c.lacked), nil
}

// noteLacked learns the sandbox image from the error of a runtime that cannot
// pull it: containerd 2.x tells its name nowhere else.
func (c *Client) noteLacked(err error) {
	if name := lackedImage(err); name != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lacked = name
	}
}
