package credentials

import (
	"encoding/json"
	"net"
	"net/netip"

	"sigs.k8s.io/yaml"
)

// Kubeconfig is what a client's file says.
type Kubeconfig struct {
	Name   string // of the cluster, the user and the context
	Server string // URL
	// Authority is PEM; empty: the system's roots know the server.
	Authority []byte
	Token     string
}

// The file has the shape of Kubernetes' clientcmd/v1 Config.
type (
	named[T any] struct {
		key   string
		name  string
		value T
	}
	cluster struct {
		Server    string `json:"server"`
		Authority []byte `json:"certificate-authority-data,omitempty"`
	}
	user struct {
		Token string `json:"token"`
	}
	context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	}
)

func (n named[T]) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"name": n.name, n.key: n.value})
}

// YAML is the file.
func (k Kubeconfig) YAML() ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "preferences": struct{}{}, "current-context": k.Name,
		"clusters": []any{named[cluster]{"cluster", k.Name, cluster{k.Server, k.Authority}}},
		"users":    []any{named[user]{"user", k.Name, user{k.Token}}},
		"contexts": []any{named[context]{"context", k.Name, context{k.Name, k.Name}}},
	})
}

// ServerURL is where a client of this host reaches what listens on an address.
func ServerURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "https://" + listen
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
		if err == nil && a.Is6() {
			host = "::1"
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}
