package corpus

import (
	"fmt"
	"slices"
	"strings"
)

var nodeTerms = []any{Object{
	"matchExpressions": []any{Object{"key": "disk", "operator": "In", "values": []any{"ssd", "nvme"}}, Object{"key": "cpus", "operator": "Gt", "values": []any{"4"}}, Object{"key": "old", "operator": "DoesNotExist"}},
	"matchFields":      []any{Object{"key": "metadata.name", "operator": "In", "values": []any{"node-a"}}},
}}

// fullConfig is FullOf for what pods refer to.
func fullConfig(kind string, meta Object) Object {
	o := Object{"apiVersion": "v1", "kind": kind, "metadata": meta}
	switch kind {
	case "ConfigMap":
		o["immutable"], o["data"], o["binaryData"] = true, Object{"city": "Ann Arbor", "a.b_c-d": "x\ny"}, Object{"logo": "aGVsbG8="}
	case "Secret":
		o["type"], o["immutable"] = "kubernetes.io/basic-auth", false
		o["data"], o["stringData"] = Object{"username": "dQ==", "password": "b2xk"}, Object{"password": "new", "more": ""}
	case "ServiceAccount":
		o["secrets"] = []any{Object{"name": "a", "namespace": "shop", "kind": "Secret"}}
		o["imagePullSecrets"], o["automountServiceAccountToken"] = []any{Object{"name": "registry"}}, false
	case "PersistentVolume":
		o["spec"] = Object{"capacity": Object{"storage": "2Gi"}, "accessModes": []any{"ReadWriteOnce", "ReadOnlyMany"}, "nfs": Object{"server": "nfs.example", "path": "/exports", "readOnly": true},
			"claimRef": Object{"namespace": "shop", "name": "c", "uid": "u", "kind": "PersistentVolumeClaim", "apiVersion": "v1"}, "persistentVolumeReclaimPolicy": "Delete",
			"storageClassName": "fast", "mountOptions": []any{"hard"}, "volumeMode": "Filesystem", "nodeAffinity": Object{"required": Object{"nodeSelectorTerms": clone(nodeTerms)}}}
	case "PersistentVolumeClaim":
		o["spec"] = Object{"accessModes": []any{"ReadWriteMany"}, "resources": Object{"requests": Object{"storage": "1Gi"}, "limits": Object{"storage": "2Gi"}}, "volumeName": "v",
			"storageClassName": "fast", "volumeMode": "Block", "selector": Object{"matchLabels": Object{"type": "hostpath"},
				"matchExpressions": []any{Object{"key": "tier", "operator": "In", "values": []any{"a", "b"}}, Object{"key": "x", "operator": "Exists"}}}}
	case "RuntimeClass":
		o["apiVersion"], o["handler"] = "node.k8s.io/v1", "kata"
		o["overhead"] = Object{"podFixed": Object{"cpu": "100m", "memory": "64Mi"}}
		o["scheduling"] = Object{"nodeSelector": Object{"kata": "yes"}, "tolerations": []any{Object{"key": "kata", "operator": "Exists", "effect": "NoSchedule"}, Object{"key": "a", "value": "b"}}}
	case "PriorityClass":
		o["apiVersion"], o["value"], o["globalDefault"] = "scheduling.k8s.io/v1", 1000, true
		o["description"], o["preemptionPolicy"] = "for what matters", "Never"
	}
	return o
}

var configWords = []any{"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod", "readwriteonce", "Retain", "Delete", "Recycle", "Block", "Filesystem",
	"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "metadata.name", "spec.unschedulable", "Never", "PreemptLowerPriority", "a b", "Kata"}

// configBorders are the values that mean something in one place of these kinds.
func configBorders(p place) []any {
	switch {
	case strings.Contains(p.path, ".accessModes[") || strings.HasSuffix(p.key, "olicy") || slices.Contains([]string{"operator", "volumeMode", "key", "handler"}, p.key):
		return configWords
	case p.key == "path":
		return []any{"/", "", "relative", "/a/../b", "/..a"}
	case p.key == "type":
		return []any{"Opaque", "", "my/own", "kubernetes.io/service-account-token", "kubernetes.io/dockercfg", "kubernetes.io/dockerconfigjson", "kubernetes.io/ssh-auth", "kubernetes.io/tls"}
	case p.key == "value":
		return []any{1000000000, 1000000001, -5, 2000000000}
	case strings.HasPrefix(p.path, ".data.") || strings.HasPrefix(p.path, ".binaryData.") || strings.HasPrefix(p.path, ".stringData."):
		return []any{"", "aGVsbG8=", "aGVsbG8", "aGVs\nbG8=", "!", "a\x00b", []any{104, 105}, []any{256}}
	}
	return nil
}

// config makes a manifest of these kinds that is right most of the time.
func (g *Generator) config(kind string, meta Object) Object {
	o := Object{"apiVersion": "v1", "kind": kind, "metadata": meta}
	switch kind {
	case "ConfigMap":
		g.maybe(o, 80, "data", constant(g, Object{"a": "b"}, Object{"a": "c", "b": ""}, Object{}, Object{"a b": "c"}))
		g.maybe(o, 30, "binaryData", constant(g, Object{"x": "aGk="}, Object{"a": "aGk="}, Object{"x": "aGk"}))
		g.maybe(o, 30, "immutable", constant(g, true, false))
	case "Secret":
		g.maybe(o, 70, "data", constant(g, Object{"a": "aGk="}, Object{"tls.crt": "aGk=", "tls.key": "aGk="}, Object{".dockerconfigjson": "e30="}, Object{".dockercfg": "W10="}, Object{"ssh-privatekey": ""}, Object{"username": ""}))
		g.maybe(o, 30, "stringData", constant(g, Object{"a": "x"}, Object{"ssh-privatekey": "x"}, Object{".dockercfg": "{}"}))
		g.maybe(o, 60, "type", constant(g, "Opaque", "kubernetes.io/tls", "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg", "kubernetes.io/ssh-auth", "kubernetes.io/basic-auth", "kubernetes.io/service-account-token", "x"))
		g.maybe(o, 30, "immutable", constant(g, true, false))
		g.maybe(meta, 10, "annotations", constant(g, Object{"kubernetes.io/service-account.name": "robot"}))
	case "ServiceAccount":
		g.maybe(o, 50, "imagePullSecrets", constant(g, []any{Object{"name": "r"}}, []any{Object{}}, []any{}))
		g.maybe(o, 30, "secrets", constant(g, []any{Object{"name": "r", "fieldPath": "x"}}))
		g.maybe(o, 30, "automountServiceAccountToken", constant(g, true, false))
	case "PersistentVolume":
		o["spec"] = g.volumeSpec()
		g.maybe(meta, 5, "annotations", constant(g, Object{"volume.beta.kubernetes.io/mount-options": "hard"}))
	case "PersistentVolumeClaim":
		o["spec"] = g.claimSpec()
		g.maybe(meta, 20, "annotations", constant(g, Object{"volume.beta.kubernetes.io/storage-class": "fast"}, Object{"volume.beta.kubernetes.io/storage-class": ""}))
	case "RuntimeClass":
		o["apiVersion"], o["handler"] = "node.k8s.io/v1", pick(g, "runc", "kata", "kata", "Kata", "")
		g.maybe(o, 40, "overhead", constant(g, Object{"podFixed": Object{"cpu": "0.1", "memory": "1Mi"}}, Object{}, Object{"podFixed": Object{"hugepages-2Mi": "2Mi"}}, Object{"podFixed": Object{"pods": 1}}, Object{"podFixed": Object{"memory": "-1"}}))
		g.maybe(o, 40, "scheduling", func() any {
			s := Object{"tolerations": g.list(0, 3, func(int) any { return g.toleration() })}
			g.maybe(s, 50, "nodeSelector", constant(g, Object{"a": "b"}, Object{"a b": "c"}))
			return s
		})
	case "PriorityClass":
		o["apiVersion"] = "scheduling.k8s.io/v1"
		g.maybe(o, 90, "value", constant(g, 1000, 0, -5, 1000000000, 2000001000))
		g.maybe(o, 30, "globalDefault", constant(g, true, false))
		g.maybe(o, 30, "preemptionPolicy", constant(g, "Never", "PreemptLowerPriority", "Sometimes"))
		g.maybe(meta, 10, "name", constant(g, "system-node-critical", "system-cluster-critical", "system-x"))
	}
	return o
}

func (g *Generator) nodeTerm(int) any {
	t := Object{}
	g.maybe(t, 80, "matchExpressions", func() any {
		return g.list(0, 2, func(int) any {
			r := Object{"key": pick(g, "disk", "kubernetes.io/hostname", "a b"), "operator": pick(g, "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")}
			g.maybe(r, 70, "values", constant(g, []any{"a"}, []any{"a", "b"}, []any{"4"}, []any{}, []any{"-"}))
			return r
		})
	})
	g.maybe(t, 30, "matchFields", constant(g, []any{Object{"key": "metadata.name", "operator": "In", "values": []any{"node-a"}}},
		[]any{Object{"key": "metadata.name", "operator": "Exists"}}, []any{Object{"key": "spec.x", "operator": "NotIn", "values": []any{"a"}}}))
	return t
}

func (g *Generator) volumeSpec() Object {
	spec := Object{"capacity": pick(g, Object{"storage": "1Gi"}, Object{"storage": "500M"}, Object{"storage": "2Gi"}, Object{"storage": 0}, Object{})}
	spec["accessModes"] = pick(g, []any{"ReadWriteOnce"}, []any{"ReadWriteMany", "ReadOnlyMany"}, []any{"ReadWriteOncePod"}, []any{"ReadWriteOnce"}, []any{"ReadWriteOncePod", "ReadWriteMany"})
	g.maybe(spec, 85, "hostPath", constant(g, Object{"path": "/data"}, Object{"path": "/", "type": "Directory"}, Object{"path": "/data", "type": "DirectoryOrCreate"}))
	g.maybe(spec, 10, "nfs", constant(g, Object{"server": "s", "path": "/p"}, Object{"server": "", "path": "p"}))
	g.maybe(spec, 10, "local", constant(g, Object{"path": "/disk"}, Object{"path": "/disk", "fsType": "ext4"}))
	g.maybe(spec, 30, "nodeAffinity", func() any {
		return Object{"required": Object{"nodeSelectorTerms": g.list(0, 2, g.nodeTerm)}}
	})
	g.maybe(spec, 50, "persistentVolumeReclaimPolicy", constant(g, "Retain", "Delete", "Recycle"))
	g.maybe(spec, 40, "storageClassName", constant(g, "fast", "slow", "", "Fast"))
	g.maybe(spec, 30, "volumeMode", constant(g, "Block", "Filesystem"))
	g.maybe(spec, 30, "claimRef", constant(g, Object{"namespace": "shop", "name": "c"}, Object{}))
	g.maybe(spec, 20, "mountOptions", constant(g, []any{"ro"}, []any{}))
	return spec
}

func (g *Generator) claimSpec() Object {
	spec := Object{"accessModes": pick(g, []any{"ReadWriteOnce"}, []any{"ReadWriteMany", "ReadOnlyMany"}, []any{"ReadWriteOncePod", "ReadWriteMany"}),
		"resources": Object{"requests": pick(g, Object{"storage": "1Gi"}, Object{"storage": "1500M"}, Object{"storage": "2Gi"}, Object{"cpu": "1"})}}
	g.maybe(spec, 40, "selector", constant(g, Object{"matchLabels": Object{"a": "b"}}, Object{}, Object{"matchExpressions": []any{Object{"key": "a", "operator": "NotIn", "values": []any{"b"}}}},
		Object{"matchExpressions": []any{Object{"key": "a", "operator": "Exists", "values": []any{"b"}}}}))
	g.maybe(spec, 40, "storageClassName", constant(g, "fast", "", "Fast"))
	g.maybe(spec, 30, "volumeMode", constant(g, "Block", "Filesystem"))
	g.maybe(spec, 30, "volumeName", constant(g, "v", "w", ""))
	return spec
}

// updateConfig makes a change that somebody may try on an object of these kinds.
func (g *Generator) updateConfig(c Object) string {
	switch c["kind"] {
	case "ConfigMap", "Secret":
		switch g.r.IntN(3) {
		case 0:
			c["immutable"] = pick(g, true, false)
			return "immutable"
		case 1:
			c["data"] = pick(g, Object{"a": "Ynll"}, Object{"a": "aGk="})
			return "data"
		}
		if c["kind"] == "Secret" {
			c["type"] = pick(g, "Opaque", "x")
		}
		c["metadata"].(Object)["labels"] = Object{"a": pick(g, "b", "-")}
		return "labels and type"
	case "RuntimeClass":
		c["handler"] = pick(g, "runc", "kata")
		return "handler"
	case "PriorityClass":
		c["value"], c["description"] = pick(g, 1000, 5), "changed"
		c["preemptionPolicy"] = pick(g, "Never", "PreemptLowerPriority")
		return "value and policy"
	case "PersistentVolumeClaim":
		spec := c["spec"].(Object)
		other := g.claimSpec()
		key := pick(g, "resources", "volumeName", "storageClassName", "storageClassName", "volumeMode", "selector")
		if spec[key] = other[key]; spec[key] == nil {
			delete(spec, key)
		}
		return key
	case "PersistentVolume":
		spec := c["spec"].(Object)
		other := g.volumeSpec()
		key := pick(g, "hostPath", "hostPath", "volumeMode", "nodeAffinity", "claimRef", "capacity", "storageClassName", "persistentVolumeReclaimPolicy")
		if spec[key] = other[key]; spec[key] == nil {
			delete(spec, key)
		}
		return key
	}
	meta := c["metadata"].(Object)
	key := pick(g, "labels", "annotations", "namespace", "name", "generateName")
	meta[key] = map[string]any{"labels": Object{"a": pick(g, "b", "-")}, "annotations": Object{"a": "b"}, "namespace": "other", "name": "Other", "generateName": pick(g, "x-", "X")}[key]
	return fmt.Sprint("metadata.", key)
}
