package corpus

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Unsupported is one field, or one value of a field, that is valid Kubernetes
// and that nodeagent refuses by name. The list is reviewed by hand; tests hold
// it against pkg/manifest's table and let Kubernetes judge every value.
type Unsupported struct {
	// Set are the fields that are added to a small pod, path to JSON.
	Set map[string]string
	// Fields are the paths that nodeagent's errors must name, and no others.
	Fields []string
}

func field(path, value string) Unsupported {
	return Unsupported{Set: map[string]string{path: value}, Fields: []string{path}}
}

// beside adds a supported field that the value needs to be valid.
func (u Unsupported) beside(path, value string) Unsupported {
	u.Set[path] = value
	return u
}

// fields is one entry for each of the fields below a path.
func fields(base string, values map[string]string) (out []Unsupported) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		out = append(out, field(base+name, values[name]))
	}
	return out
}

// UnsupportedFields lists them all.
func UnsupportedFields() []Unsupported {
	out := []Unsupported{
		field("metadata.ownerReferences", `[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]`),
		field("metadata.finalizers", `["example.com/wait"]`),
		field("spec.containers[0].ports[0].hostIP", `"not-an-address"`),
		// Device plugins.
		field("spec.containers[0].resources.limits[example.com/gpu]", `1`),
		field("spec.volumes[0].emptyDir.medium", `"Paper"`),
		field("spec.overhead[example.com/gpu]", `1`),
		field("metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]", `"runtime/default"`),
		field("metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]", `"runtime/default"`),
	}
	out = append(out, unsupportedSpec()...)
	out = append(out, unsupportedContainer()...)
	return append(out, unsupportedVolumes()...)
}

// with adds a field that is refused as well.
func (u Unsupported) with(path, value string) Unsupported {
	u.Set[path] = value
	u.Fields = append(u.Fields, path)
	return u
}

func unsupportedSpec() []Unsupported {
	out := []Unsupported{
		field("spec.ephemeralContainers", `[{"name":"e","image":"i"}]`),
		field("spec.os.name", `"windows"`),
		field("spec.schedulingGates", `[{"name":"example.com/gate"}]`),
		field("spec.resourceClaims", `[{"name":"r","resourceClaimName":"x"}]`),
		field("spec.resources.claims", `[{"name":"r"}]`),
		field("spec.schedulingGroup", `{"podGroupName":"g"}`),
		field("spec.evictionResponders", `[{"name":"a.example.com/r","priority":1}]`),
	}
	return append(out, fields("spec.securityContext.", map[string]string{
		"windowsOptions": `{"runAsUserName":"u"}`,
	})...)
}

func unsupportedContainer() []Unsupported {
	c := "spec.containers[0]."
	out := []Unsupported{
		field(c+"env[0].valueFrom.fileKeyRef", `{"volumeName":"v","path":"p","key":"k"}`).beside("spec.volumes[0].name", `"v"`),
		field(c+"readinessProbe.httpGet.protocol", `"HTTP1"`).beside(c+"readinessProbe.httpGet.port", `80`),
		field(c+"readinessProbe.grpc.mode", `"Plaintext"`).beside(c+"readinessProbe.grpc.port", `80`),
		field(c+"resources.claims", `[{"name":"r"}]`).with("spec.resourceClaims", `[{"name":"r","resourceClaimName":"x"}]`),
		field(c+"volumeMounts[0].bindMountOptions", `["noexec"]`),
	}
	return append(out, field(c+"securityContext.windowsOptions", `{"runAsUserName":"u"}`))
}

func unsupportedVolumes() []Unsupported {
	const claim = `{"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}`
	v := "spec.volumes[0]."
	out := []Unsupported{
		field(v+"emptyDir.mode", `448`),
		// Alpha in v1.37: whose a file is.
		field(v+"configMap.defaultUser", `1`).beside(v+"configMap.name", `"m"`),
		field(v+"configMap.items[0].user", `1`).beside(v+"configMap.items[0].key", `"k"`).beside(v+"configMap.items[0].path", `"p"`).beside(v+"configMap.name", `"m"`),
		field(v+"secret.defaultUser", `1`).beside(v+"secret.secretName", `"s"`),
		field(v+"downwardAPI.defaultUser", `1`),
		field(v+"downwardAPI.items[0].user", `1`).beside(v+"downwardAPI.items[0].path", `"p"`).beside(v+"downwardAPI.items[0].fieldRef", `{"fieldPath":"metadata.name"}`),
		field(v+"projected.defaultUser", `1`),
		// What only a control plane issues.
		field(v+"projected.sources[0].serviceAccountToken", `{"path":"token"}`).beside("spec.serviceAccountName", `"default"`),
		field(v+"projected.sources[0].clusterTrustBundle", `{"name":"b","path":"ca.crt"}`),
		field(v+"projected.sources[0].podCertificate", `{"signerName":"example.com/s","keyType":"ED25519","credentialBundlePath":"p"}`),
		field(v+"secret.items[0].user", `1`).beside(v+"secret.items[0].key", `"k"`).beside(v+"secret.items[0].path", `"p"`).beside(v+"secret.secretName", `"s"`),
		field(v+"projected.sources[0].secret.items[0].user", `1`).beside(v+"projected.sources[0].secret.items[0].key", `"k"`).
			beside(v+"projected.sources[0].secret.items[0].path", `"p"`).beside(v+"projected.sources[0].secret.name", `"s"`),
		field(v+"projected.sources[0].configMap.items[0].user", `1`).beside(v+"projected.sources[0].configMap.items[0].key", `"k"`).
			beside(v+"projected.sources[0].configMap.items[0].path", `"p"`).beside(v+"projected.sources[0].configMap.name", `"m"`),
		field(v+"projected.sources[0].downwardAPI.items[0].user", `1`).beside(v+"projected.sources[0].downwardAPI.items[0].path", `"p"`).
			beside(v+"projected.sources[0].downwardAPI.items[0].fieldRef", `{"fieldPath":"metadata.name"}`),
		field(v+"ephemeral.volumeClaimTemplate.spec.dataSourceRef", `{"kind":"PersistentVolumeClaim","name":"c"}`).beside(v+"ephemeral.volumeClaimTemplate", claim),
		field(v+"ephemeral.volumeClaimTemplate.spec.volumeAttributesClassName", `"c"`).beside(v+"ephemeral.volumeClaimTemplate", claim),
		field(v+"ephemeral.volumeClaimTemplate.spec.dataSource", `{"kind":"PersistentVolumeClaim","name":"c"}`).beside(v+"ephemeral.volumeClaimTemplate", claim),
	}
	return append(out, fields("spec.volumes[0].", map[string]string{
		"gcePersistentDisk": `{"pdName":"d"}`, "awsElasticBlockStore": `{"volumeID":"v"}`, "gitRepo": `{"repository":"r"}`,
		"iscsi":     `{"targetPortal":"10.0.0.1:3260","iqn":"iqn.2001-04.com.example:s","lun":0}`,
		"glusterfs": `{"endpoints":"e","path":"p"}`, "rbd": `{"monitors":["m"],"image":"i"}`,
		"flexVolume": `{"driver":"example.com/d"}`, "cinder": `{"volumeID":"v"}`, "cephfs": `{"monitors":["m"]}`, "flocker": `{"datasetName":"d"}`,
		"fc":        `{"targetWWNs":["w"],"lun":0}`,
		"azureFile": `{"secretName":"s","shareName":"n"}`, "vsphereVolume": `{"volumePath":"p"}`,
		"quobyte": `{"registry":"r:1","volume":"v"}`, "azureDisk": `{"diskName":"d","diskURI":"https://b.example/d.vhd"}`,
		"photonPersistentDisk": `{"pdID":"p"}`, "portworxVolume": `{"volumeID":"v"}`,
		"scaleIO": `{"gateway":"g","system":"s","secretRef":{"name":"n"},"volumeName":"v"}`, "storageos": `{"volumeName":"v"}`,
		"csi": `{"driver":"example.com"}`,
	})...)
}

// Manifest is a small pod with the fields set.
func (u Unsupported) Manifest() ([]byte, error) {
	var root any = Object{"apiVersion": "v1", "kind": "Pod", "metadata": Object{"name": "p"}, "spec": Object{
		"containers": []any{Object{"name": "c", "image": "i"}}}}
	for _, path := range slices.Sorted(maps.Keys(u.Set)) {
		text := u.Set[path]
		if strings.HasPrefix(path, "spec.initContainers[0].") {
			root = put(root, split("spec.initContainers[0].name"), "init")
			root = put(root, split("spec.initContainers[0].image"), "i")
		}
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		root = put(root, split(path), value)
	}
	complete(root.(Object)["spec"].(Object))
	return encode(root.(Object)), nil
}

// complete adds what items need that were made on the way to a field.
func complete(spec Object) {
	for _, v := range asList(spec["volumes"]) {
		orSet(v.(Object), "name", "v")
	}
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range asList(spec[list]) {
			for _, m := range asList(c.(Object)["volumeMounts"]) {
				orSet(m.(Object), "name", "v")
				orSet(m.(Object), "mountPath", "/m")
				if spec["volumes"] == nil {
					spec["volumes"] = []any{Object{"name": "v", "emptyDir": Object{}}}
				}
			}
			for _, e := range asList(c.(Object)["env"]) {
				orSet(e.(Object), "name", "A")
			}
			for _, p := range asList(c.(Object)["ports"]) {
				orSet(p.(Object), "containerPort", 80)
			}
		}
	}
}

func orSet(o Object, key string, value any) {
	if o[key] == nil {
		o[key] = value
	}
}

// split cuts a path in the API server's notation into keys and indexes.
func split(path string) (out []any) {
	for path != "" {
		if path[0] == '[' {
			end := strings.IndexByte(path, ']')
			if i, err := strconv.Atoi(path[1:end]); err == nil {
				out = append(out, i)
			} else {
				out = append(out, path[1:end])
			}
			path = path[end+1:]
			continue
		}
		path = strings.TrimPrefix(path, ".")
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		out = append(out, path[:end])
		path = path[end:]
	}
	return out
}

// put sets a value below v and returns v, which is made when there is none.
func put(v any, path []any, value any) any {
	if len(path) == 0 {
		return value
	}
	if i, ok := path[0].(int); ok {
		list := asList(v)
		for len(list) <= i {
			list = append(list, nil)
		}
		list[i] = put(list[i], path[1:], value)
		return list
	}
	o, ok := v.(Object)
	if !ok {
		o = Object{}
	}
	key := path[0].(string)
	o[key] = put(o[key], path[1:], value)
	return o
}
