package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// The values that have names.
const (
	EndpointAuto     = "auto"
	EndpointEmbedded = "embedded"
	ListenNone       = "none"
)

// Validate says everything that is wrong with c, each as an *Error without a
// line. A field at its zero value is one that Default fills and is never
// wrong.
func Validate(c *NodeAgentConfiguration) error {
	var errs []error
	for _, p := range problems(c) {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

type checker struct{ found []*Error }

func (k *checker) bad(field, format string, args ...any) {
	k.found = append(k.found, &Error{Field: field, Msg: fmt.Sprintf(format, args...)})
}

func problems(c *NodeAgentConfiguration) []*Error {
	k := &checker{}
	k.node(c)
	k.source(c)
	k.network(&c.Network)
	k.runtime(&c.Runtime)
	k.limits(c)
	k.resources(c)
	k.logs(c)
	k.sysctls(c.Pods.AllowedUnsafeSysctls)
	k.durations(c)
	k.eviction(c)
	k.shutdown(c)
	k.servers(c)
	k.proxy(c)
	k.dns(c)
	for _, p := range c.paths() {
		if strings.ContainsRune(*p.value, 0) {
			k.bad(p.field, "holds a NUL byte")
		}
	}
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.oneOf("log.format", c.Log.Format, "text", "json")
	return k.found
}

func (k *checker) node(c *NodeAgentConfiguration) {
	if c.NodeName != "" {
		for _, m := range validation.IsDNS1123Subdomain(c.NodeName) {
			k.bad("nodeName", "%q: %s", c.NodeName, m)
		}
	}
	families := map[bool]string{}
	for i, s := range c.NodeIP {
		field := fmt.Sprintf("nodeIP[%d]", i)
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			k.bad(field, "%q is not an IP address", s)
			continue
		case a.Zone() != "" || a.Is4In6():
			k.bad(field, "%q: write it without a zone and not as IPv4 in IPv6", s)
			continue
		case a.IsUnspecified() || a.IsMulticast():
			k.bad(field, "%s cannot be a node's address", s)
		}
		k.onePerFamily(field, s, a.Is4(), families)
	}
	for _, name := range slices.Sorted(maps.Keys(c.NodeLabels)) {
		field := "nodeLabels." + name
		for _, m := range validation.IsQualifiedName(name) {
			k.bad(field, "label name: %s", m)
		}
		for _, m := range validation.IsValidLabelValue(c.NodeLabels[name]) {
			k.bad(field, "label value %q: %s", c.NodeLabels[name], m)
		}
	}
}

func (k *checker) onePerFamily(field, value string, is4 bool, seen map[bool]string) {
	if first, ok := seen[is4]; ok {
		k.bad(field, "%s is of the same family as %s; give at most one IPv4 and one IPv6", value, first)
		return
	}
	seen[is4] = value
}

func (k *checker) source(c *NodeAgentConfiguration) {
	if c.ManifestURL == "" {
		if len(c.ManifestURLHeader) > 0 {
			k.bad("manifestURLHeader", "set without manifestURL")
		}
		if c.ManifestURLCA != "" {
			k.bad("manifestURLCA", "set without manifestURL")
		}
		return
	}
	u, err := url.Parse(c.ManifestURL)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		// Without the value: it may hold a password, and this is logged on a reload.
		k.bad("manifestURL", "must be an http:// or https:// URL with a host")
	case u.Scheme == "http" && c.ManifestURLCA != "":
		k.bad("manifestURLCA", "has no use with http://; make manifestURL https:// or leave it out")
	}
	for _, name := range slices.Sorted(maps.Keys(c.ManifestURLHeader)) {
		field := "manifestURLHeader." + name
		// net/http would refuse these too, but at every poll.
		if !httpguts.ValidHeaderFieldName(name) {
			k.bad(field, "not a header name")
		}
		for _, v := range c.ManifestURLHeader[name] {
			if !httpguts.ValidHeaderFieldValue(v) {
				k.bad(field, "the value holds a line end or another character that a header cannot carry")
			}
		}
	}
}

func (k *checker) network(n *Network) {
	k.cidrs("network.podCIDRs", n.PodCIDRs, "10.88.0.0/16", func(field string, p netip.Prefix) {
		if p.Addr().BitLen()-p.Bits() < 2 {
			k.bad(field, "%s has no room for pods", p)
		}
	})
}

// cidrs checks a list of at most one network per family, and each with more.
func (k *checker) cidrs(list string, values []string, example string, more func(field string, p netip.Prefix)) {
	families := map[bool]string{}
	for i, s := range values {
		field := fmt.Sprintf("%s[%d]", list, i)
		p, ok := k.prefix(field, s, example)
		if !ok {
			continue
		}
		if more != nil {
			more(field, p)
		}
		k.onePerFamily(field, s, p.Addr().Is4(), families)
	}
}

// prefix parses a network; ok is that it is one, if with bits too many.
func (k *checker) prefix(field, s, example string) (p netip.Prefix, ok bool) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		k.bad(field, "%q is not a network such as %s", s, example)
		return p, false
	case p.Masked() != p:
		k.bad(field, "%s has bits set behind its length; did you mean %s?", s, p.Masked())
	}
	return p.Masked(), true
}

func (k *checker) runtime(r *Runtime) {
	if e := r.Endpoint; e != "" && e != EndpointAuto && e != EndpointEmbedded {
		path, ok := strings.CutPrefix(e, "unix://")
		if !ok || !filepath.IsAbs(path) {
			k.bad("runtime.endpoint", "%q must be unix:///PATH, %q or %q", e, EndpointEmbedded, EndpointAuto)
		}
	}
	if r.CgroupRoot != "" && !filepath.IsAbs(r.CgroupRoot) {
		k.bad("runtime.cgroupRoot", "%q must start with /, the root of the cgroup tree", r.CgroupRoot)
	}
	k.oneOf("runtime.cgroupDriver", r.CgroupDriver, "cgroupfs", "systemd")
}

func (k *checker) limits(c *NodeAgentConfiguration) {
	for _, f := range []struct {
		field string
		n     int64
	}{
		{"runtime.maxParallelStarts", int64(c.Runtime.MaxParallelStarts)},
		{"images.maxParallelPulls", int64(c.Images.MaxParallelPulls)},
		{"pods.pidsLimit", c.Pods.PidsLimit},
		{"pods.maxDeadContainers", int64(c.Pods.MaxDeadContainers)},
		{"pods.maxTerminatedPods", int64(c.Pods.MaxTerminatedPods)},
	} {
		if f.n < 0 {
			k.bad(f.field, "%d is below 0", f.n)
		}
	}
}

// logs checks how container logs are rotated.
func (k *checker) logs(c *NodeAgentConfiguration) {
	if s := c.ContainerLogMaxSize; s != "" {
		switch q, err := resource.ParseQuantity(s); {
		case err != nil:
			k.bad("containerLogMaxSize", "%q must be a size such as 10Mi", s)
		case q.Sign() == 0:
			k.bad("containerLogMaxSize", "%q leaves no room for a log; -1 turns rotation off", s)
		}
	}
	if n := c.ContainerLogMaxFiles; n != 0 && n < 2 {
		k.bad("containerLogMaxFiles", "%d must be at least 2: the file that is written to, and an older one", n)
	}
}

// LogMaxSize is ContainerLogMaxSize of a valid configuration in bytes; negative:
// there is no limit.
func (c *NodeAgentConfiguration) LogMaxSize() int64 {
	q, err := resource.ParseQuantity(c.ContainerLogMaxSize)
	if err != nil {
		return -1
	}
	return q.Value()
}

// sysctls refuses those of the whole host: no pod has them to itself.
func (k *checker) sysctls(patterns []string) {
	for i, s := range patterns {
		field := fmt.Sprintf("pods.allowedUnsafeSysctls[%d]", i)
		prefix, _ := strings.CutSuffix(s, "*")
		switch {
		case !pod.IsSysctl(strings.TrimRight(prefix, "./-_")):
			k.bad(field, "%q must be a sysctl's name, or the beginning of some and a *", s)
		case pod.SysctlNamespace(prefix) == "":
			k.bad(field, "%s is not known to belong to a namespace: the whole host has it", s)
		}
	}
}

func (k *checker) durations(c *NodeAgentConfiguration) {
	for _, f := range []struct {
		field string
		d     metav1.Duration
		least time.Duration
	}{
		{"manifestsPoll", c.ManifestsPoll, 100 * time.Millisecond},
		{"manifestURLInterval", c.ManifestURLInterval, 100 * time.Millisecond},
		{"manifestURLTimeout", c.ManifestURLTimeout, 100 * time.Millisecond},
		{"containerLogMonitorInterval", c.ContainerLogMonitorInterval, 3 * time.Second},
		{"runtime.relistInterval", c.Runtime.RelistInterval, 100 * time.Millisecond},
		{"evictionPressureTransitionPeriod", c.EvictionPressureTransitionPeriod, time.Second},
		{"imageMinimumGCAge", c.ImageMinimumGCAge, time.Second},
		{"imageMaximumGCAge", c.ImageMaximumGCAge, time.Second},
		{"shutdownGracePeriod", c.ShutdownGracePeriod, time.Second},
		{"shutdownGracePeriodCriticalPods", c.ShutdownGracePeriodCriticalPods, time.Second},
		{"images.pullBackoff", c.Images.PullBackoff, time.Second},
		{"images.pullBackoffMax", c.Images.PullBackoffMax, time.Second},
		{"images.pullProgressDeadline", c.Images.PullProgressDeadline, time.Second},
		{"pods.crashBackoff", c.Pods.CrashBackoff, time.Second},
		{"pods.crashBackoffMax", c.Pods.CrashBackoffMax, time.Second},
		{"pods.crashBackoffReset", c.Pods.CrashBackoffReset, time.Second},
	} {
		if f.d.Duration != 0 && f.d.Duration < f.least {
			k.bad(f.field, "%s is below the least, %s", f.d.Duration, f.least)
		}
	}
	k.notAbove("images.pullBackoff", c.Images.PullBackoff, "images.pullBackoffMax", c.Images.PullBackoffMax)
	k.notAbove("pods.crashBackoff", c.Pods.CrashBackoff, "pods.crashBackoffMax", c.Pods.CrashBackoffMax)
}

func (k *checker) notAbove(field string, a metav1.Duration, maxField string, b metav1.Duration) {
	if a.Duration != 0 && b.Duration != 0 && a.Duration > b.Duration {
		k.bad(field, "%s is above %s, %s", a.Duration, maxField, b.Duration)
	}
}

func (k *checker) servers(c *NodeAgentConfiguration) {
	if c.Listen != "" && c.Listen != ListenNone {
		k.hostPort("listen", c.Listen)
	}
	if c.API.Listen != "" && c.API.Listen != ListenNone {
		k.hostPort("api.listen", c.API.Listen)
	}
	if cert, key := c.API.TLSCertFile, c.API.TLSKeyFile; (cert == "") != (key == "") {
		missing, have := "api.tlsKeyFile", "api.tlsCertFile"
		if cert == "" {
			missing, have = have, missing
		}
		k.bad(missing, "missing; it belongs to %s: give both, or neither to have the agent make them", have)
	}
	if c.API.Listen == ListenNone && (c.API.TLSCertFile != "" || c.API.TokenFile != "") {
		k.bad("api.listen", "none, so that the other fields of api mean nothing: remove them")
	}
}

func (k *checker) hostPort(field, s string) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		k.bad(field, "%q must be ADDRESS:PORT", s)
		return
	}
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		k.bad(field, "%q is not an IP address", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		k.bad(field, "%q is not a port", port)
	}
}

func (k *checker) oneOf(field, v string, allowed ...string) {
	if v != "" && !slices.Contains(allowed, v) {
		k.bad(field, "%q must be one of: %s", v, strings.Join(allowed, ", "))
	}
}
