package corpus

// fullVolumes have every field of volumes that are made of objects.
func fullVolumes() []any {
	items := func(path string) []any {
		return []any{Object{"key": "a", "path": path, "mode": 256}, Object{"key": "b.c", "path": path + "-more"}}
	}
	fields := func(path string) []any {
		return []any{
			Object{"path": path, "fieldRef": Object{"apiVersion": "v1", "fieldPath": "metadata.labels['app']"}, "mode": 288},
			Object{"path": path + "-cpu", "resourceFieldRef": Object{"containerName": "web", "resource": "limits.cpu", "divisor": "1m"}},
		}
	}
	return []any{
		Object{"name": "settings", "configMap": Object{"name": "settings", "items": items("deep/a"), "defaultMode": 420, "optional": true}},
		Object{"name": "keys", "secret": Object{"secretName": "keys", "items": items("a"), "defaultMode": 384, "optional": false}},
		Object{"name": "self", "downwardAPI": Object{"items": fields("labels"), "defaultMode": 292}},
		Object{"name": "all", "projected": Object{"defaultMode": 292, "sources": []any{
			Object{"configMap": Object{"name": "settings", "items": items("c"), "optional": true}},
			Object{"secret": Object{"name": "keys", "items": items("s"), "optional": true}},
			Object{"downwardAPI": Object{"items": fields("d")}},
		}}},
		Object{"name": "claimed", "persistentVolumeClaim": Object{"claimName": "data", "readOnly": true}},
		Object{"name": "disk", "persistentVolumeClaim": Object{"claimName": "disk"}},
		Object{"name": "own", "ephemeral": Object{"volumeClaimTemplate": Object{
			"metadata": Object{"labels": Object{"a": "b"}, "annotations": Object{"c": "d"}},
			"spec": Object{"accessModes": []any{"ReadWriteOnce"}, "resources": Object{"requests": Object{"storage": "1Gi"}, "limits": Object{"storage": "2Gi"}},
				"storageClassName": "", "volumeName": "pv", "volumeMode": "Filesystem",
				"selector": Object{"matchLabels": Object{"a": "b"}, "matchExpressions": []any{Object{"key": "k", "operator": "In", "values": []any{"v"}}}}},
		}}},
		Object{"name": "far", "nfs": Object{"server": "nfs.example", "path": "/export", "readOnly": true}},
		Object{"name": "pages", "image": Object{"reference": "registry.local:5000/pages:1", "pullPolicy": "Always"}},
	}
}

// modes are at and over the borders of what a file may have.
var modes = []any{0, 1, 511, 512, -1, 0o1777, 1 << 31}

// filePaths lead out of a volume, or into what keeps its order.
var filePaths = []string{"a", "a/b", "/a", "..", "../a", "a/..", "a/../b", "..a", "..data", "...", "a..b", ".a", "a//b", "./a", "", "labels", "deep/a"}

// subPaths are of volumeMounts.
var subPaths = []string{"a", "/a", "..", "a/../b", "..a", "$(A)", "$(UP)/..", ".", "a/"}

// fieldRefs name fields of the pod, in volumes and variables.
var fieldRefs = []string{"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations", "metadata.labels['app']",
	"metadata.labels['']", "metadata.labels['A b']", "metadata.annotations['Example.com/Note']", "metadata.annotations['a/b/c']", "metadata.labels[app]",
	"metadata.name['a']", "spec.nodeName", "spec.host", "spec.restartPolicy", "spec.serviceAccountName", "status.podIP", "status.hostIPs", "status.phase",
	"metadata", "metadata.generateName", "spec.containers", "['a']", ""}

// resourceRefs name a container's resources.
var resourceRefs = []string{"limits.cpu", "requests.memory", "limits.ephemeral-storage", "requests.hugepages-2Mi", "limits.hugepages-", "limits.pods", "cpu",
	"limits", "limits.", ""}

// divisors are units of resources.
var divisors = []any{"0", "1", "1m", "1k", "1Ki", "1Mi", "1Gi", "1E", "2", "10m", "1000m", "1024", "-1", 1, 0, 1000, "0.001"}
