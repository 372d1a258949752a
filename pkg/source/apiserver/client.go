package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// mark is a kubeconfig as it was read.
type mark struct {
	config *rest.Config
	sum    [sha256.Size]byte // of it and of the certificates that it names
}

// look reads the kubeconfig and what it names. Certificates are read here
// rather than by client-go, so that a new one is taken up with the next look;
// token files and exec plugins are client-go's.
func look(path string) (mark, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return mark{}, fmt.Errorf("cannot use the kubeconfig: %w", err)
	}
	if err := rest.LoadTLSFiles(cfg); err != nil {
		return mark{}, fmt.Errorf("kubeconfig %s names a file that cannot be read: %w", path, err)
	}
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = "", "", ""
	token := cfg.BearerToken
	if cfg.BearerTokenFile != "" {
		token = "" // as it was when the file was read; client-go reads it again
	}
	// The secrets by themselves, since a Config prints them as redacted.
	b, err := json.Marshal([]any{
		cfg.Host, cfg.Username, cfg.Password, token, cfg.BearerTokenFile, cfg.Impersonate, cfg.ServerName, cfg.Insecure,
		cfg.CAData, cfg.CertData, cfg.KeyData, cfg.ExecProvider, cfg.AuthProvider,
	})
	if err != nil {
		return mark{}, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return mark{cfg, sha256.Sum256(b)}, nil
}

// client speaks to one API server over one connection. It knows the few kinds
// that are followed, in a scheme of its own: client-go's holds every kind
// there is, in memory.
type client struct {
	http   *http.Client
	groups map[schema.GroupVersion]rest.Interface
	params runtime.ParameterCodec
}

func newClient(cfg *rest.Config, o Options) (*client, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Service{}, &corev1.ServiceList{}, &corev1.Node{}, &corev1.NodeList{})
	scheme.AddKnownTypes(discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})
	scheme.AddKnownTypes(networkingv1.SchemeGroupVersion, &networkingv1.ServiceCIDR{}, &networkingv1.ServiceCIDRList{})
	versions := []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion}
	for _, v := range versions {
		metav1.AddToGroupVersion(scheme, v)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = o.UserAgent
	// client-go's own waits half a minute for a host that says nothing, each time.
	cfg.Dial = (&net.Dialer{Timeout: o.DialTimeout, KeepAlive: 30 * time.Second}).DialContext
	cfg.WarningHandlerWithContext = rest.NoWarnings{}
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c := &client{groups: map[schema.GroupVersion]rest.Interface{}, params: runtime.NewParameterCodec(scheme)}
	var err error
	if c.http, err = rest.HTTPClientFor(cfg); err != nil {
		return nil, err
	}
	for _, v := range versions {
		group := rest.CopyConfig(cfg)
		group.GroupVersion, group.APIPath = &v, "/apis"
		if v.Group == "" {
			group.APIPath = "/api"
		}
		if c.groups[v], err = rest.RESTClientForConfigAndClient(group, c.http); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) get(v schema.GroupVersion, resource string, o *metav1.ListOptions) *rest.Request {
	return c.groups[v].Get().Resource(resource).VersionedParams(o, c.params)
}

// withLog turns client-go's log, which repeats every failure of every attempt,
// into debug messages. Its finer levels, which print bodies, are left out.
func withLog(ctx context.Context, log *slog.Logger) context.Context {
	return logr.NewContext(ctx, logr.FromSlogHandler(quiet{log.Handler()}))
}

type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelDebug && q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if !q.Enabled(ctx, r.Level) { // logr does not ask about errors
		return nil
	}
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name)} }
