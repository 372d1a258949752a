package corpus

// fullEnv has every kind of variable.
func fullEnv() []any {
	return []any{
		Object{"name": "A", "value": "x"}, Object{"name": "EMPTY"},
		Object{"name": "NAME", "valueFrom": Object{"fieldRef": Object{"apiVersion": "v1", "fieldPath": "metadata.name"}}},
		Object{"name": "LABEL", "valueFrom": Object{"fieldRef": Object{"fieldPath": "metadata.labels['app']"}}},
		Object{"name": "CPU", "valueFrom": Object{"resourceFieldRef": Object{"containerName": "web", "resource": "limits.cpu", "divisor": "1m"}}},
		Object{"name": "KEY", "valueFrom": Object{"configMapKeyRef": Object{"name": "c", "key": "a.b", "optional": true}}},
		Object{"name": "SECRET", "valueFrom": Object{"secretKeyRef": Object{"name": "s", "key": "k", "optional": false}}},
	}
}

func fullEnvFrom() []any {
	return []any{
		Object{"prefix": "C_", "configMapRef": Object{"name": "c", "optional": true}},
		Object{"secretRef": Object{"name": "s", "optional": false}},
	}
}

// valueFrom is right most of the time.
func (g *Generator) valueFrom() any {
	from := Object{}
	switch g.r.IntN(4) {
	case 0:
		from["fieldRef"] = Object{"fieldPath": pick(g, "metadata.name", "metadata.uid", "spec.nodeName", "spec.host", "status.podIPs", "status.hostIP", "metadata.annotations['example.com/A']",
			"metadata.labels['a b']", "metadata.labels", "status.phase", "spec.x", "spec.nodeName['x']", "")}
		g.maybe(from["fieldRef"].(Object), 20, "apiVersion", constant(g, "v1", "v2", ""))
	case 1:
		ref := Object{"resource": pick(g, "limits.cpu", "requests.memory", "limits.ephemeral-storage", "limits.hugepages-2Mi", "limits.gpu", "")}
		g.maybe(ref, 50, "divisor", constant[any](g, "1m", "1Mi", "1", "1Gi", "2", 0))
		g.maybe(ref, 30, "containerName", constant(g, "c0", ""))
		from["resourceFieldRef"] = ref
	case 2:
		from["configMapKeyRef"] = Object{"name": pick(g, "c", "C", ""), "key": pick(g, "k", "a b", "")}
	case 3:
		ref := Object{"name": pick(g, "s", "s"), "key": pick(g, "k", "..")}
		g.maybe(ref, 30, "optional", constant(g, true, false))
		from["secretKeyRef"] = ref
	}
	if g.chance(5) {
		from["secretKeyRef"] = Object{"name": "s", "key": "k"}
	}
	if g.chance(3) {
		return Object{}
	}
	return from
}

func (g *Generator) envFrom(int) any {
	s := Object{}
	g.maybe(s, 40, "prefix", constant(g, "P_", "1-", "=", ""))
	g.maybe(s, 60, "configMapRef", constant(g, Object{"name": "c"}, Object{"name": "c", "optional": true}, Object{"name": "C"}, Object{}))
	if s["configMapRef"] == nil || g.chance(3) {
		g.maybe(s, 95, "secretRef", constant(g, Object{"name": "s"}, Object{"name": "s-", "optional": false}))
	}
	return s
}
