// Package corpus makes up Pod manifests, right and wrong ones, from a seed. The
// judge in test/kubernetes compares what nodeagent and Kubernetes make of them.
package corpus

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Generator makes manifests of fields that nodeagent supports. The same seed
// makes the same manifests in the same order.
type Generator struct {
	r *rand.Rand
}

// New returns a generator for a seed.
func New(seed uint64) *Generator {
	return &Generator{r: rand.New(rand.NewPCG(seed, 0x706f64))}
}

// Object is a JSON object as encoding/json has it.
type Object = map[string]any

func (g *Generator) chance(percent int) bool { return g.r.IntN(100) < percent }

func pick[T any](g *Generator, from ...T) T { return from[g.r.IntN(len(from))] }

// maybe sets a field in some of the manifests.
func (g *Generator) maybe(o Object, percent int, key string, value func() any) {
	if g.chance(percent) {
		o[key] = value()
	}
}

func constant[T any](g *Generator, values ...T) func() any {
	return func() any { return pick(g, values...) }
}

// list makes between lo and hi items.
func (g *Generator) list(lo, hi int, item func(i int) any) []any {
	out := make([]any, 0, hi)
	for i := range lo + g.r.IntN(hi-lo+1) {
		out = append(out, item(i))
	}
	return out
}

// Pod makes a manifest that is right most of the time: combinations of valid
// values may still collide.
func (g *Generator) Pod() Object {
	meta := Object{"name": fmt.Sprintf("pod-%d", g.r.IntN(1000))}
	g.maybe(meta, 40, "namespace", constant(g, "default", "shop", "kube-system"))
	g.maybe(meta, 40, "labels", func() any {
		return Object{"app": pick(g, "web", "", "a.b_c-d"), "example.com/tier": "front", "version": "1.10"}
	})
	g.maybe(meta, 30, "annotations", func() any {
		return Object{"example.com/note": "any text: at all\n", "UPPER.example.com/x": ""}
	})
	g.maybe(meta, 5, "generateName", constant(g, "web-", "a.b-"))
	g.maybe(meta, 3, "annotations", func() any {
		return Object{
			"controller.kubernetes.io/pod-deletion-cost":     pick(g, "0", "-5", "+5", "05", "", "x", "2147483648"),
			"scheduler.alpha.kubernetes.io/tolerations":      pick(g, "", "[]", `[{"key":"a"}]`, `[{"operator":"Bad"}]`, "nonsense"),
			"kubernetes.io/config.mirror":                    "x",
			"example.com/" + strings.Repeat("long", 15)[:59]: "y",
		}
	})
	return Object{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": g.spec()}
}

func (g *Generator) spec() Object {
	volumes := g.list(0, 3, func(i int) any { return g.volume(i) })
	spec := Object{}
	spec["containers"] = g.list(1, 3, func(i int) any { return g.container(fmt.Sprintf("c%d", i), volumes) })
	if len(volumes) > 0 || g.chance(10) {
		spec["volumes"] = volumes
	}
	g.maybe(spec, 25, "initContainers", func() any {
		return g.list(0, 2, func(i int) any { return g.container(fmt.Sprintf("init%d", i), volumes) })
	})
	g.maybe(spec, 40, "restartPolicy", constant(g, "Always", "OnFailure", "Never"))
	g.maybe(spec, 30, "terminationGracePeriodSeconds", constant[any](g, 0, 1, 30, 3600, -1))
	g.maybe(spec, 30, "dnsPolicy", constant(g, "Default", "ClusterFirst", "ClusterFirstWithHostNet", "None"))
	g.maybe(spec, 20, "dnsConfig", constant(g, Object{"nameservers": []any{"10.0.0.1"}}, Object{"searches": []any{"a.example"}}, Object{}))
	g.maybe(spec, 10, "hostAliases", constant[any](g, []any{Object{"ip": "10.0.0.1", "hostnames": []any{"a.example"}}}, []any{}))
	g.maybe(spec, 20, "nodeSelector", constant(g, Object{"gpu": "nvidia"}, Object{}, Object{"kubernetes.io/os": "linux"}))
	g.maybe(spec, 10, "affinity", func() any {
		a := Object{}
		g.maybe(a, 70, "requiredDuringSchedulingIgnoredDuringExecution", func() any {
			return Object{"nodeSelectorTerms": g.list(0, 2, g.nodeTerm)}
		})
		g.maybe(a, 40, "preferredDuringSchedulingIgnoredDuringExecution", func() any {
			return g.list(0, 2, func(i int) any { return Object{"weight": pick(g, 1, 100, 0, 101), "preference": g.nodeTerm(i)} })
		})
		return Object{"nodeAffinity": a}
	})
	g.maybe(spec, 10, "serviceAccountName", constant(g, "default", "robot", "Robot", ""))
	g.maybe(spec, 10, "serviceAccount", constant(g, "default", "robot", ""))
	g.maybe(spec, 10, "automountServiceAccountToken", constant(g, false))
	g.maybe(spec, 10, "nodeName", constant(g, "node-a", ""))
	g.maybe(spec, 15, "hostNetwork", constant(g, true, false))
	g.maybe(spec, 15, "hostPID", constant(g, true, false))
	g.maybe(spec, 10, "hostIPC", constant(g, true, false))
	g.maybe(spec, 15, "shareProcessNamespace", constant(g, true, false))
	g.maybe(spec, 20, "securityContext", constant(g, Object{}))
	g.maybe(spec, 10, "schedulerName", constant(g, "default-scheduler", "mine"))
	g.maybe(spec, 20, "tolerations", func() any { return g.list(0, 3, func(int) any { return g.toleration() }) })
	g.maybe(spec, 10, "priorityClassName", constant(g, "system-node-critical", "system-cluster-critical", ""))
	g.maybe(spec, 10, "priority", constant(g, 0, 2000001000, -1))
	g.maybe(spec, 15, "enableServiceLinks", constant(g, true, false))
	g.maybe(spec, 15, "hostname", constant(g, "web-0", "", "a.b"))
	g.maybe(spec, 15, "subdomain", constant(g, "shop", ""))
	g.maybe(spec, 10, "activeDeadlineSeconds", constant(g, 1, 600))
	g.maybe(spec, 10, "setHostnameAsFQDN", constant(g, true, false))
	g.maybe(spec, 5, "hostnameOverride", constant(g, "web.example"))
	g.maybe(spec, 10, "readinessGates", constant[any](g, []any{Object{"conditionType": "example.com/open"}}, []any{}))
	g.maybe(spec, 15, "resources", func() any { return g.resources() })
	g.maybe(spec, 10, "os", constant(g, Object{"name": "linux"}))
	return spec
}

func (g *Generator) toleration() Object {
	t := Object{}
	g.maybe(t, 70, "key", constant(g, "a", "example.com/b"))
	g.maybe(t, 80, "operator", constant(g, "Exists", "Equal", "Exists"))
	g.maybe(t, 20, "value", constant(g, "x", ""))
	g.maybe(t, 60, "effect", constant(g, "NoSchedule", "PreferNoSchedule", "NoExecute", ""))
	g.maybe(t, 15, "tolerationSeconds", constant(g, 0, 300, -1))
	return t
}

func (g *Generator) volume(i int) Object {
	v := Object{"name": fmt.Sprintf("v%d", i)}
	switch g.r.IntN(4) {
	case 0:
	case 1:
		v["emptyDir"] = Object{}
	case 2:
		e := Object{}
		g.maybe(e, 50, "medium", constant(g, "Memory", ""))
		g.maybe(e, 70, "sizeLimit", func() any { return g.quantity() })
		v["emptyDir"] = e
	default:
		h := Object{"path": pick(g, "/var/log", "/", "/a/b.c/d", "relative")}
		g.maybe(h, 60, "type", constant(g, "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"))
		v["hostPath"] = h
	}
	return v
}

func (g *Generator) quantity() any {
	return pick[any](g, "100m", 1, "1", 0.5, "64Mi", "1.5Gi", "1e3", "0", 0, "1k", "0.0001", "2Ei", "1000u", "3n", 123456789)
}

func (g *Generator) container(name string, volumes []any) Object {
	c := Object{"name": name, "image": pick(g, "nginx", "nginx:1.29", "nginx:latest", "registry.local:5000/a/b", "registry.local:5000/a/b:latest",
		"nginx@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "nginx:latest@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "UPPER", "a//b", "sha256:abc")}
	g.maybe(c, 30, "command", constant[any](g, []any{"sh", "-c", "true"}, []any{}))
	g.maybe(c, 30, "args", constant[any](g, []any{"$(A)", ""}))
	g.maybe(c, 10, "workingDir", constant(g, "/tmp", "relative", ""))
	g.maybe(c, 40, "ports", func() any { return g.list(0, 3, func(int) any { return g.port() }) })
	g.maybe(c, 40, "env", func() any {
		return g.list(0, 3, func(int) any {
			e := Object{"name": pick(g, "A", "a.b-c", "with space", "_x", "1")}
			g.maybe(e, 60, "value", constant(g, "", "x", "$(A)"))
			if e["value"] == nil || g.chance(2) {
				g.maybe(e, 60, "valueFrom", g.valueFrom)
			}
			return e
		})
	})
	g.maybe(c, 10, "envFrom", func() any { return g.list(0, 2, g.envFrom) })
	g.maybe(c, 50, "resources", func() any { return g.resources() })
	if len(volumes) > 0 && g.chance(60) {
		c["volumeMounts"] = g.list(0, 3, func(i int) any {
			m := Object{"name": volumes[g.r.IntN(len(volumes))].(Object)["name"], "mountPath": fmt.Sprintf("/m%d", i)}
			g.maybe(m, 30, "readOnly", constant(g, true, false))
			g.maybe(m, 20, "mountPropagation", constant(g, "None", "HostToContainer"))
			return m
		})
	}
	g.maybe(c, 10, "terminationMessagePath", constant(g, "/dev/termination-log", "/x", ""))
	g.maybe(c, 15, "terminationMessagePolicy", constant(g, "File", "FallbackToLogsOnError"))
	g.maybe(c, 25, "imagePullPolicy", constant(g, "Always", "IfNotPresent", "Never"))
	g.maybe(c, 10, "securityContext", constant(g, Object{}))
	g.lives(c, strings.HasPrefix(name, "init"))
	for _, key := range []string{"stdin", "stdinOnce", "tty"} {
		g.maybe(c, 5, key, constant(g, true, false))
	}
	return c
}

// lives gives some containers what goes on beside them, and how they begin anew.
func (g *Generator) lives(c Object, init bool) {
	g.maybe(c, 20, "restartPolicy", constant(g, "Always", "Never", "OnFailure"))
	if init && c["restartPolicy"] != "Always" && !g.chance(2) {
		return
	}
	g.maybe(c, 30, "readinessProbe", func() any { return g.probe() })
	for _, kind := range []string{"livenessProbe", "startupProbe"} {
		g.maybe(c, 20, kind, func() any {
			p := g.probe()
			if !g.chance(5) {
				delete(p, "successThreshold")
			}
			g.maybe(p, 20, "terminationGracePeriodSeconds", constant(g, 1, 60))
			return p
		})
	}
	g.maybe(c, 20, "lifecycle", func() any {
		l := Object{}
		for _, when := range []string{"postStart", "preStop"} {
			g.maybe(l, 50, when, func() any {
				return pick(g, Object{"exec": Object{"command": []any{"x"}}}, Object{"httpGet": Object{"port": "http"}}, Object{"sleep": Object{"seconds": pick(g, 1, 20)}})
			})
		}
		return l
	})
	if c["restartPolicy"] != nil {
		g.maybe(c, 30, "restartPolicyRules", func() any {
			return g.list(0, 2, func(int) any {
				return Object{"action": pick(g, "Restart", "RestartAllContainers"), "exitCodes": Object{"operator": pick(g, "In", "NotIn"), "values": []any{1, 42}}}
			})
		})
	}
}

func (g *Generator) port() Object {
	p := Object{"containerPort": pick(g, 80, 443, 1, 65535, 53)}
	g.maybe(p, 30, "name", constant(g, "http", "https", "a-1"))
	g.maybe(p, 25, "hostPort", constant(g, 80, 443, 8080, 0))
	g.maybe(p, 40, "protocol", constant(g, "TCP", "UDP", "SCTP"))
	g.maybe(p, 15, "hostIP", constant(g, "10.0.0.1", "::1", "0.0.0.0", ""))
	return p
}

func (g *Generator) probe() Object {
	port := constant[any](g, 80, "http", 65535)
	p := Object{}
	switch g.r.IntN(4) {
	case 0:
		p["exec"] = Object{"command": []any{"test", "-e", "/ready"}}
	case 1:
		p["tcpSocket"] = Object{"port": port()}
	case 2:
		p["grpc"] = Object{"port": pick(g, 80, 1)}
		g.maybe(p["grpc"].(Object), 50, "service", constant(g, "", "shop.Cart"))
	default:
		h := Object{"port": port()}
		g.maybe(h, 60, "path", constant(g, "/", "/healthz?a=b", "relative"))
		g.maybe(h, 30, "scheme", constant(g, "HTTP", "HTTPS"))
		g.maybe(h, 20, "host", constant(g, "", "web.example"))
		g.maybe(h, 30, "httpHeaders", func() any {
			return g.list(0, 2, func(int) any { return Object{"name": pick(g, "Host", "X-A"), "value": pick(g, "", "b")} })
		})
		p["httpGet"] = h
	}
	for _, name := range []string{"initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"} {
		g.maybe(p, 40, name, constant(g, 0, 1, 30))
	}
	return p
}

func (g *Generator) resources() Object {
	r := Object{}
	list := func() any {
		l := Object{}
		g.maybe(l, 60, "cpu", func() any { return g.quantity() })
		g.maybe(l, 60, "memory", func() any { return g.quantity() })
		g.maybe(l, 20, "hugepages-2Mi", constant[any](g, "2Mi", "4Mi", 0, "3Mi"))
		g.maybe(l, 5, "hugepages-1Gi", constant[any](g, "1Gi", 0))
		g.maybe(l, 15, "ephemeral-storage", func() any { return g.quantity() })
		return l
	}
	g.maybe(r, 70, "limits", list)
	g.maybe(r, 60, "requests", list)
	return r
}
