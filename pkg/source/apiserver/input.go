package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// The inputs, by the name of their resource.
const (
	Services       = "services"
	EndpointSlices = "endpointslices"
	Nodes          = "nodes"
	ServiceCIDRs   = "servicecidrs"
)

// ours leaves out, as kube-proxy does, what another proxy serves, and headless
// Services' EndpointSlices.
const ours = "!service.kubernetes.io/service-proxy-name,!" + corev1.IsHeadlessService

// deniedRetry is the pause after an API server said that it has no such
// resource, or not for us.
const deniedRetry = time.Minute

// input is one resource that is followed.
type input struct {
	source  *Source
	name    string
	version schema.GroupVersion
	object  runtime.Object
	list    func() runtime.Object
	options metav1.ListOptions
	store   cache.ReflectorStore
	// denied, if set, makes do without the resource: an older API server has
	// none, and a user may be granted Services only.
	denied  func()
	listing sync.Mutex // held while ask runs

	mu      sync.Mutex
	synced  bool
	last    time.Time // of Replace
	objects int
	err     error
	refused error
}

func newInputs(s *Source) []*input {
	services := &input{
		name: Services, version: corev1.SchemeGroupVersion, object: &corev1.Service{},
		list: func() runtime.Object { return &corev1.ServiceList{} }, options: metav1.ListOptions{LabelSelector: ours},
	}
	services.store = newRelay(services, s.o.Sink, trimService, func(m metav1.ObjectMeta) any { return &corev1.Service{ObjectMeta: m} })

	endpoints := &input{
		name: EndpointSlices, version: discoveryv1.SchemeGroupVersion, object: &discoveryv1.EndpointSlice{},
		list: func() runtime.Object { return &discoveryv1.EndpointSliceList{} }, options: metav1.ListOptions{LabelSelector: ours},
	}
	endpoints.store = newRelay(endpoints, s.o.Sink, trimSlice, func(m metav1.ObjectMeta) any { return &discoveryv1.EndpointSlice{ObjectMeta: m} })

	node := &input{
		name: Nodes, version: corev1.SchemeGroupVersion, object: &corev1.Node{},
		list:    func() runtime.Object { return &corev1.NodeList{} },
		options: metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", s.o.NodeName).String()},
	}
	nodes := newFew(node, nodeOf, func(all []*corev1.Node) { s.o.Sink.SetNode(first(all)) }, sameNode)
	node.store, node.denied = nodes, nodes.none

	cidr := &input{
		name: ServiceCIDRs, version: networkingv1.SchemeGroupVersion, object: &networkingv1.ServiceCIDR{},
		list: func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
	}
	cidrs := newFew(cidr, cidrsOf, func(all [][]netip.Prefix) { s.o.Sink.SetServiceCIDRs(merge(all)) }, slices.Equal[[]netip.Prefix])
	cidr.store, cidr.denied = cidrs, cidrs.none

	all := []*input{services, endpoints, node, cidr}
	for _, in := range all {
		in.source = s
	}
	return all
}

func (in *input) reflector(cl *client) *cache.Reflector {
	// Soon for an API server that restarts, and spread for one that comes back
	// to many nodes.
	backoff := wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Steps: 6, Cap: 10 * time.Second, Jitter: 0.5}
	return cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := in.ask(ctx, cl, in.narrow(&o))
			return list, in.outcome(ctx, err)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := cl.get(in.version, in.name, in.narrow(&o)).Watch(ctx)
			if o.SendInitialEvents != nil && err != nil {
				return nil, noStream(err)
			}
			return w, in.outcome(ctx, err)
		},
	}, in.object, in.store, cache.ReflectorOptions{Name: in.name, Backoff: &backoff, Clock: in.source.o.Clock})
}

func (in *input) narrow(o *metav1.ListOptions) *metav1.ListOptions {
	o.LabelSelector, o.FieldSelector = in.options.LabelSelector, in.options.FieldSelector
	return o
}

// noStream is the error of a streaming list; a plain one follows at once and
// says how things are. The reflector would wait here for an API server that is
// away or busy, and would not end meanwhile: it is not told which error it was.
func noStream(err error) error {
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		return errors.New(err.Error())
	}
	return err
}

// outcome takes note of how a request went.
func (in *input) outcome(ctx context.Context, err error) error {
	// What has expired is listed anew, which is how it is meant to be.
	if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return err
	}
	var refused error
	if in.denied != nil && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err)) {
		refused = err
	}
	in.mu.Lock()
	in.refused = refused
	if in.err = err; refused != nil {
		in.err = nil
	}
	in.mu.Unlock()
	if refused != nil {
		in.denied()
	}
	in.source.report()
	if refused != nil {
		select {
		case <-ctx.Done():
		case <-in.source.o.Clock.After(deniedRetry):
		}
	}
	return err
}

// replaced notes down that the input is complete.
func (in *input) replaced(objects int) {
	in.mu.Lock()
	in.synced, in.last, in.objects, in.err = true, in.source.o.Clock.Now(), objects, nil
	in.mu.Unlock()
	in.source.o.Sink.Synced(in.name)
	in.source.report()
}

func (in *input) count(objects int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.objects = objects
}

func (in *input) failure() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err
}

func (in *input) progress() (synced bool, last time.Time, objects int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.synced, in.last, in.objects
}

// refusal is why an input that can be missing is. That an older API server has
// no ServiceCIDRs is nobody's fault.
func (in *input) refusal() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.refused == nil || in.name == ServiceCIDRs {
		return nil
	}
	return fmt.Errorf("%s: %w: Services are served without what the Node says (zone, addresses, pod range)", in.name, in.refused)
}
