package probe

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	health "google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// askHandler asks once, of a container at 127.0.0.1 with a port named "web".
func askHandler(t *testing.T, h v1.ProbeHandler, port int) answer {
	t.Helper()
	w := newWorld(t)
	c := Container{ID: "c", Host: "127.0.0.1", Spec: &v1.Container{Name: "main", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}}
	return w.ask(t.Context(), c, &v1.Probe{ProbeHandler: h, TimeoutSeconds: 1})
}

func portOf(t *testing.T, addr net.Addr) int {
	t.Helper()
	return addr.(*net.TCPAddr).Port
}

// closedPort is one that refuses connections.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return portOf(t, l.Addr())
}

// site answers as its paths say, and with what the probe sent.
func site(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/ok":
		fmt.Fprint(w, strings.Repeat("long ", 10000))
	case "/down":
		http.Error(w, "secret", http.StatusServiceUnavailable)
	case "/moved":
		http.Redirect(w, r, "/ok", http.StatusFound)
	case "/moved-to-down":
		http.Redirect(w, r, "/down", http.StatusFound)
	case "/moved-away":
		http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
	case "/loop":
		http.Redirect(w, r, "/loop", http.StatusFound)
	case "/slow":
		<-r.Context().Done()
	case "/headers":
		got := fmt.Sprintf("%s?%s %s %q %q %q %t", r.Method, r.URL.RawQuery, r.Host, r.UserAgent(), r.Header["Accept"], r.Header["X-A"], r.Close)
		if got != r.Header.Get("Want") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintln(w, got)
		}
	}
}

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(site))
	defer plain.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(site))
	defer secure.Close()
	port, tlsPort := portOf(t, plain.Listener.Addr()), portOf(t, secure.Listener.Addr())
	at := fmt.Sprintf("127.0.0.1:%d", port)
	good, gone := answer{good: true}, "HTTP probe failed with statuscode: "
	headers := func(kv ...string) (out []v1.HTTPHeader) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, v1.HTTPHeader{Name: kv[i], Value: kv[i+1]})
		}
		return out
	}
	for name, tc := range map[string]struct {
		get  v1.HTTPGetAction
		want answer // output: the end of it
	}{
		"good, with a long body":       {v1.HTTPGetAction{Path: "/ok"}, good},
		"a port by name":               {v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}, good},
		"a relative path":              {v1.HTTPGetAction{Path: "ok"}, good},
		"a host of its own":            {v1.HTTPGetAction{Path: "/ok", Host: "localhost"}, good},
		"TLS, with any certificate":    {v1.HTTPGetAction{Path: "/ok", Scheme: v1.URISchemeHTTPS, Port: intstr.FromInt(tlsPort)}, good},
		"TLS where there is none":      {v1.HTTPGetAction{Path: "/ok", Scheme: v1.URISchemeHTTPS}, answer{output: "server gave HTTP response to HTTPS client"}},
		"bad, and the body is kept":    {v1.HTTPGetAction{Path: "/down"}, answer{output: gone + "503"}},
		"no such path that parses":     {v1.HTTPGetAction{Path: "/%zz"}, good},
		"a redirect":                   {v1.HTTPGetAction{Path: "/moved"}, good},
		"a redirect to what is down":   {v1.HTTPGetAction{Path: "/moved-to-down"}, answer{output: gone + "503"}},
		"a redirect to somebody else":  {v1.HTTPGetAction{Path: "/moved-away"}, answer{good: true, warning: true, output: `<a href="http://elsewhere.example/">Found</a>.` + "\n\n"}},
		"redirects without end":        {v1.HTTPGetAction{Path: "/loop"}, answer{output: "stopped after 10 redirects"}},
		"nothing comes":                {v1.HTTPGetAction{Path: "/slow"}, answer{output: "context deadline exceeded"}},
		"nobody listens":               {v1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt(closedPort(t))}, answer{output: "connection refused"}},
		"headers of its own":           {v1.HTTPGetAction{Path: "/headers?x=1", HTTPHeaders: headers("Host", "shop.example", "X-A", "1", "X-A", "2", "User-Agent", "me", "Accept", "", "Want", `GET?x=1 shop.example "me" [] ["1" "2"] true`)}, good},
		"kubelet's headers by default": {v1.HTTPGetAction{Path: "/headers", HTTPHeaders: headers("Want", `GET? `+at+` "kube-probe/1.37" ["*/*"] [] true`)}, good},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.get.Port == (intstr.IntOrString{}) {
				tc.get.Port = intstr.FromInt(port)
			}
			if tc.get.Scheme == "" {
				tc.get.Scheme = v1.URISchemeHTTP
			}
			got := askHandler(t, v1.ProbeHandler{HTTPGet: &tc.get}, port)
			if got.good != tc.want.good || got.warning != tc.want.warning || got.err != nil || !strings.HasSuffix(got.output, tc.want.output) {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := portOf(t, l.Addr())
	if got := askHandler(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("web")}}, port); !got.good {
		t.Errorf("a port that listens: %+v", got)
	}
	// The other side sees an orderly end, no reset.
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
		t.Errorf("the server reads %q, %v", b, err)
	}
	conn.Close()
	if got := askHandler(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(closedPort(t))}}, port); got.good || got.err != nil {
		t.Errorf("a port that does not: %+v", got)
	}
	if got := askHandler(t, v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromString("none")}}, port); got.err == nil {
		t.Errorf("a port that the container has not: %+v", got)
	}
	w := newWorld(t)
	if got := w.ask(t.Context(), Container{Spec: &v1.Container{}}, &v1.Probe{TimeoutSeconds: 1,
		ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(port)}}}); got.err == nil {
		t.Errorf("a pod without an address is looked for on this node: %+v", got)
	}
}

func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return portOf(t, l.Addr())
	}
	h := grpchealth.NewServer()
	h.SetServingStatus("cart", health.HealthCheckResponse_NOT_SERVING)
	port := serve(func(s *grpc.Server) { health.RegisterHealthServer(s, h) })
	mute := serve(func(*grpc.Server) {})
	for name, tc := range map[string]struct {
		port    int
		service string
		want    answer // output: a part of it
	}{
		"serves":             {port, "", answer{good: true}},
		"does not serve":     {port, "cart", answer{output: `service unhealthy (responded with "NOT_SERVING")`}},
		"an unknown service": {port, "none", answer{output: "health rpc probe failed"}},
		"no health protocol": {mute, "", answer{output: "does not implement the grpc health protocol"}},
		"nobody listens":     {closedPort(t), "", answer{output: "health rpc probe failed"}},
	} {
		got := askHandler(t, v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: int32(tc.port), Service: &tc.service}}, port)
		if got.good != tc.want.good || got.err != nil || !strings.Contains(got.output, tc.want.output) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}
