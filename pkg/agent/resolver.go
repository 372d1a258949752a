package agent

import (
	"log/slog"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// resolver makes the resolv.conf of pods out of the host's and the cluster DNS.
type resolver struct {
	path          string   // the host's
	clusterDNS    []string // empty: there is none
	clusterDomain string
	event         func(p *v1.Pod, container, eventType, reason, message string)
	log           *slog.Logger
}

// forPod is what the pod's dnsPolicy says. It is asked for each sandbox, so
// that a host that moves takes its pods along; a running pod keeps what it has.
func (r resolver) forPod(p *v1.Pod) runtime.DNS {
	var d runtime.DNS
	if p.Spec.DNSPolicy != v1.DNSNone {
		d = r.host()
	}
	if len(r.clusterDNS) > 0 && wantsCluster(p) {
		svc := "svc." + r.clusterDomain
		d = runtime.DNS{
			Servers:  r.clusterDNS,
			Searches: unique(append([]string{p.Namespace + "." + svc, svc, r.clusterDomain}, d.Searches...)),
			Options:  []string{"ndots:5"},
		}
	}
	if c := p.Spec.DNSConfig; c != nil {
		d.Servers = unique(slices.Concat(d.Servers, c.Nameservers))
		d.Searches = unique(slices.Concat(d.Searches, c.Searches))
		d.Options = withOptions(d.Options, c.Options)
	}
	d, cut := fit(d)
	for _, message := range cut {
		r.event(p, "", v1.EventTypeWarning, "DNSConfigForming", message)
	}
	return d
}

// wantsCluster: a pod on the host's network has to ask for it in particular.
func wantsCluster(p *v1.Pod) bool {
	return p.Spec.DNSPolicy == v1.DNSClusterFirstWithHostNet || p.Spec.DNSPolicy == v1.DNSClusterFirst && !p.Spec.HostNetwork
}

// withOptions adds options; one that is there gets the new value.
func withOptions(options []string, more []v1.PodDNSConfigOption) []string {
	options = slices.Clone(options)
	for _, o := range more {
		options = slices.DeleteFunc(options, func(old string) bool {
			name, _, _ := strings.Cut(old, ":")
			return name == o.Name
		})
		text := o.Name
		if o.Value != nil && *o.Value != "" {
			text += ":" + *o.Value
		}
		options = append(options, text)
	}
	return options
}

func unique(list []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// fit drops what is too much, in kubelet's words.
func fit(d runtime.DNS) (_ runtime.DNS, cut []string) {
	if len(d.Servers) > manifest.MaxNameservers {
		d.Servers = d.Servers[:manifest.MaxNameservers]
		cut = append(cut, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+
			strings.Join(d.Servers, " "))
	}
	var fitting []string
	length := -1 // no space before the first
	for _, s := range d.Searches[:min(len(d.Searches), manifest.MaxSearches)] {
		if len(s) > validation.DNS1123SubdomainMaxLength {
			continue
		}
		if length += 1 + len(s); length > manifest.MaxSearchesLength {
			break
		}
		fitting = append(fitting, s)
	}
	if len(fitting) < len(d.Searches) {
		cut = append(cut, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+
			strings.Join(fitting, " "))
	}
	d.Searches = fitting
	return d, cut
}

// host reads the host's resolv.conf, see resolv.conf(5).
func (r resolver) host() (d runtime.DNS) {
	b, err := os.ReadFile(r.path)
	if err != nil {
		r.log.Warn("pods get none of the host's resolvers", "err", err)
		return d
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		line, _, _ = strings.Cut(line, ";")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search", "domain":
			d.Searches = nil // the last one counts
			for _, s := range f[1:] {
				if s = strings.TrimSuffix(s, "."); s != "" {
					d.Searches = append(d.Searches, s)
				}
			}
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d
}
