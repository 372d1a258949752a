package corpus

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Full returns a manifest in which every field that nodeagent supports has a
// value, and one that Kubernetes accepts. A test of pkg/manifest compares it
// with the support table.
func Full() Object {
	container := func(name string, port int) Object {
		return Object{
			"name": name, "image": "registry.local:5000/team/" + name + ":1.2",
			"command": []any{"sh", "-c"}, "args": []any{"echo $(A)", ""}, "workingDir": "/srv",
			"ports": []any{
				Object{"name": "http", "containerPort": port, "hostPort": port, "protocol": "TCP", "hostIP": "10.0.0.1"},
				Object{"containerPort": 53, "protocol": "UDP"},
			},
			"env": fullEnv(), "envFrom": fullEnvFrom(),
			"resources": Object{
				"limits":   Object{"cpu": "500m", "memory": "64Mi", "hugepages-2Mi": "4Mi"},
				"requests": Object{"cpu": 0.25, "memory": "32Mi", "ephemeral-storage": "1Gi"},
			},
			"volumeMounts": []any{
				Object{"name": "scratch", "mountPath": "/scratch", "readOnly": false},
				Object{"name": "logs", "mountPath": "/logs", "readOnly": true, "mountPropagation": "HostToContainer"},
				Object{"name": "settings", "mountPath": "/settings", "subPath": "a/b", "readOnly": true, "recursiveReadOnly": "IfPossible", "mountPropagation": "None"},
				Object{"name": "claimed", "mountPath": "/claimed", "subPathExpr": "$(A)/b"},
			},
			"volumeDevices":          []any{Object{"name": "disk", "devicePath": "/dev/xvda"}},
			"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
			"imagePullPolicy": "IfNotPresent", "securityContext": nil,
			"stdin": true, "stdinOnce": true, "tty": true, "readinessProbe": nil, "restartPolicy": "OnFailure",
			"restartPolicyRules": []any{Object{"action": "Restart", "exitCodes": Object{"operator": "In", "values": []any{42}}}},
		}
	}
	secured := func(c Object) Object {
		c["securityContext"] = containerSecurity()
		return c
	}
	return Object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": Object{
			"name": "full", "generateName": "full-", "namespace": "shop", "uid": "0b7c1c62-64e6-4f0c-8a3e-2a7f4d7f9f10",
			"labels":      Object{"app": "full", "example.com/tier": "front"},
			"annotations": Object{"example.com/note": "any text: at all\n"},
		},
		"spec": Object{
			"volumes": append([]any{
				Object{"name": "scratch", "emptyDir": Object{"medium": "Memory", "sizeLimit": "16Mi"}},
				Object{"name": "logs", "hostPath": Object{"path": "/var/log", "type": "Directory"}},
				Object{"name": "plain"},
			}, fullVolumes()...),
			"initContainers": []any{secured(container("prepare", 8080)), lively(Object{"name": "sidecar", "image": "i", "restartPolicy": "Always"})},
			"containers": []any{
				probed(secured(container("web", 8081)), 2, "httpGet", Object{"path": "/healthz?full=1", "port": "http", "host": "web.example", "scheme": "HTTPS",
					"httpHeaders": []any{Object{"name": "X-Probe", "value": "yes"}}}),
				probed(container("log", 8082), 3, "exec", Object{"command": []any{"test", "-e", "/ready"}}),
				probed(Object{"name": "tcp", "image": "i"}, 4, "tcpSocket", Object{"port": 8081, "host": "10.0.0.1"}),
				probed(Object{"name": "grpc", "image": "i"}, 5, "grpc", Object{"port": 8081, "service": "shop.Cart"}),
				lively(Object{"name": "lively", "image": "i"}),
				Object{"name": "hooked", "image": "i", "lifecycle": Object{"preStop": Object{"httpGet": Object{"port": 80}}, "postStart": Object{"tcpSocket": Object{"port": 80}}}},
			},
			"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 20, "dnsPolicy": "Default",
			"nodeSelector": Object{"kubernetes.io/os": "linux"},
			"affinity": Object{"nodeAffinity": Object{"requiredDuringSchedulingIgnoredDuringExecution": Object{"nodeSelectorTerms": clone(nodeTerms)},
				"preferredDuringSchedulingIgnoredDuringExecution": []any{Object{"weight": 5, "preference": clone(nodeTerms[0])}}},
				"podAffinity": podAffinity(), "podAntiAffinity": podAffinity()},
			"topologySpreadConstraints": spreadConstraints(),
			"serviceAccountName":        "builder", "serviceAccount": "builder", "automountServiceAccountToken": true,
			"nodeName": "node-a", "hostNetwork": false, "hostPID": false, "hostIPC": false, "hostUsers": true, "shareProcessNamespace": true,
			"runtimeClassName": "kata", "overhead": Object{"cpu": "250m", "memory": "120Mi"},
			"resources":       Object{"limits": Object{"cpu": 8, "memory": "8Gi"}, "requests": Object{"cpu": "4"}},
			"securityContext": podSecurity(), "schedulerName": "mine",
			"tolerations": []any{
				Object{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 60},
				Object{"operator": "Exists"},
			},
			"priorityClassName": "system-node-critical", "priority": 2000001000, "preemptionPolicy": "PreemptLowerPriority", "imagePullSecrets": []any{Object{"name": "login"}}, "enableServiceLinks": false,
			"hostname": "web-0", "subdomain": "shop", "setHostnameAsFQDN": false, "hostnameOverride": "web.example", "os": Object{"name": "linux"}, "activeDeadlineSeconds": 3600,
			"readinessGates": []any{Object{"conditionType": "example.com/open"}},
			"hostAliases":    []any{Object{"ip": "10.0.0.1", "hostnames": []any{"a.example", "b"}}},
			"dnsConfig": Object{"nameservers": []any{"10.0.0.10"}, "searches": []any{"a.example"},
				"options": []any{Object{"name": "ndots", "value": "2"}, Object{"name": "edns0"}}},
		},
	}
}

// wrongTypes are one value of each JSON type, and null.
var wrongTypes = []any{nil, "text", "", 5, 1.5, true, Object{}, Object{"a": "b"}, []any{}, []any{"x"}, []any{nil}, []any{Object{}}}

// numbers are at and over the borders of what the API's integers mean.
var numbers = []any{0, 1, -1, 65535, 65536, math.MaxInt32, math.MaxInt32 + 1, math.MinInt32, math.MinInt32 - 1,
	math.MaxInt64, math.MinInt64, 1e19, 80.0}

// names are at and over the borders of labels, subdomains and qualified names.
var names = []string{"Upper", "under_score", "-dash", "dash-", ".dot", "a.b", "a..b", "a b", " a", "a ", "é", "a/b", "a/b/c", "/a", "a/",
	"12345", "1a", "a-", "a\tb", "a\nb",
	strings.Repeat("a", 15), strings.Repeat("a", 16), strings.Repeat("a", 63), strings.Repeat("a", 64),
	strings.Repeat("a", 253), strings.Repeat("a", 254), strings.Repeat("long.", 50) + "abc", strings.Repeat("p", 253) + "/k",
	strings.Repeat("p", 254) + "/k"}

// enums are the words that the API knows, each of them wrong in most places.
var enums = []string{"Always", "OnFailure", "Never", "IfNotPresent", "always", "Default", "ClusterFirst", "ClusterFirstWithHostNet",
	"TCP", "UDP", "SCTP", "tcp", "File", "FallbackToLogsOnError", "Directory", "DirectoryOrCreate", "FileOrCreate", "Socket", "CharDevice",
	"BlockDevice", "None", "HostToContainer", "Bidirectional", "Memory", "Exists", "Equal", "Gt", "Lt", "NoSchedule", "PreferNoSchedule",
	"NoExecute", "default", "system-cluster-critical", "HTTP", "HTTPS", "http", "https",
	"Localhost", "RuntimeDefault", "Unconfined", "Unmasked", "Merge", "Strict", "MountOption", "Recursive"}

var paths = []string{"/", "relative", "..", "../x", "/a/../b", "/..a", "/a/..", "/a:b", "/scratch", "/logs", "//", `C:\x`, "/" + strings.Repeat("d", 300)}

var images = []string{"nginx", "nginx:latest", "nginx:1", "a/b:latest", "localhost:5000/a", "UPPER", "a//b", ":", "@", "nginx:",
	"nginx@sha256:" + strings.Repeat("a", 64), "nginx:latest@sha256:" + strings.Repeat("a", 64), "nginx:1@sha256:" + strings.Repeat("a", 64), "nginx@sha256:short",
	strings.Repeat("f", 64), "sha256:" + strings.Repeat("a", 64), " nginx", "nginx "}

var quantities = []any{"0", "-1", "-1m", "1.5", "100m", "1e3", "1E", "1Ei", "9Ei", "100Ei", "0.0001", "64mb", "", "1k", "5u", "1n", " 1", "1 ", "+1", "0x1",
	"1.1.1", "1e-3", "2Mi", "4Mi", "3Mi", "1Gi", 0, 1, -1, 0.5, 0.0001, 1e19, "NaN", "Inf", "1_000", ".5", "5.", "１"}

// resourceNames are keys of limits and requests.
var resourceNames = []string{"storage", "pods", "gpu", "hugepages-", "hugepages-x", "hugepages-2M", "hugepages-64Ki", "hugepages-1Gi", "hugepages--1",
	"hugepages-0", "hugepages-1500m", "requests.cpu", "CPU", "a b", "", "under_score!", strings.Repeat("r", 64)}

var labelKeys = append([]string{"", "A", "kubernetes.io/os", "Example.com/k", "a_b.c-d", "_a", strings.Repeat("k", 63), strings.Repeat("k", 64)}, names...)

// Variant is a manifest and how it came about.
type Variant struct {
	What string
	Data []byte
}

// Systematic makes one variant of Full for each thing that can be wrong in each
// place: the value removed, null, empty, of another type, at and over each
// border, given twice, misspelt.
func Systematic() []Variant {
	return append(systematic(Full, borders), combinations()...)
}

func systematic(full func() Object, own func(place) []any) []Variant {
	var out []Variant
	add := func(what string, o Object) { out = append(out, Variant{what, encode(o)}) }
	add("full", full())
	for i, p := range places(full(), "", nil) {
		if p.path == ".apiVersion" || p.path == ".kind" {
			continue
		}
		alter := func(what string, change func(place)) {
			o := full()
			change(places(o, "", nil)[i])
			add(p.path+" "+what, o)
		}
		alter("removed", func(p place) { p.remove() })
		values := own(p)
		if values == nil {
			values = borders(p)
		}
		for _, v := range slices.Concat(wrongTypes, values) {
			alter(fmt.Sprintf("set to %.40s", fmt.Sprint(v)), func(p place) { p.set(clone(v)) })
		}
		if p.duplicate != nil {
			alter("duplicated", func(p place) { p.duplicate() })
			continue
		}
		for _, to := range otherKeys(p.path, p.key) {
			alter("renamed to "+to, func(p place) { p.rename(to) })
		}
		alter("given twice", func(p place) { p.rename(p.key + twice) })
		alter("given twice with another value", func(p place) { p.rename(p.key + twiceOther) })
	}
	return out
}

// borders are the values that mean something in one place.
func borders(p place) []any {
	key := p.key
	var texts []string
	switch {
	case strings.Contains(p.path, ".limits.") || strings.Contains(p.path, ".requests.") || strings.Contains(p.path, ".overhead.") || key == "sizeLimit":
		return quantities
	case strings.HasSuffix(p.path, ".divisor"):
		return divisors
	case key == "mode" || key == "defaultMode":
		return modes
	case key == "fieldPath":
		texts = fieldRefs
	case key == "resource":
		texts = resourceRefs
	case key == "subPath" || key == "subPathExpr":
		texts = subPaths
	case key == "path" && (strings.Contains(p.path, ".items") || strings.Contains(p.path, ".sources")):
		texts = filePaths
	case key == "image" || key == "reference":
		texts = images
	case key == "path" || key == "mountPath" || key == "workingDir" || key == "terminationMessagePath" || key == "localhostProfile":
		texts = paths
	case key == "hostIP":
		return []any{"::1", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0"}
	case strings.HasSuffix(key, "olicy") || slices.Contains([]string{"protocol", "type", "medium", "scheme", "operator", "effect", "mountPropagation", "priorityClassName", "serviceAccountName", "serviceAccount", "procMount"}, key):
		texts = enums
	}
	switch p.value.(type) {
	case string:
		var out []any
		for _, t := range slices.Concat(texts, names) {
			out = append(out, t)
		}
		return out
	case int, float64:
		return numbers
	case bool:
		return []any{true, false, "true", 1}
	}
	return nil
}

// otherKeys misspells a field, or gives a dictionary strange keys.
func otherKeys(path, key string) []string {
	switch {
	case strings.Contains(path, ".limits.") || strings.Contains(path, ".requests.") || strings.Contains(path, ".overhead."):
		return resourceNames
	case strings.Contains(path, ".labels.") || strings.Contains(path, ".annotations.") || strings.Contains(path, ".nodeSelector."):
		return labelKeys
	}
	return []string{strings.ToUpper(key[:1]) + key[1:], key + "s", "x-" + key}
}

// combinations are rules between fields, on a small pod.
func combinations() (out []Variant) {
	pod := func(what, spec string) {
		out = append(out, Variant{what, []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{` + spec + `}}`)})
	}
	c := func(name, rest string) string { return `{"name":"` + name + `","image":"i"` + rest + `}` }
	for _, host := range []string{"true", "false"} {
		for _, port := range []string{`"containerPort":80`, `"containerPort":80,"hostPort":80`, `"containerPort":80,"hostPort":81`, `"hostPort":80`, `"containerPort":0`} {
			pod("hostNetwork and ports", `"hostNetwork":`+host+`,"containers":[`+c("a", `,"ports":[{`+port+`}]`)+`]`)
			pod("hostNetwork and ports of an init container", `"hostNetwork":`+host+`,"containers":[`+c("a", "")+`],"initContainers":[`+c("b", `,"ports":[{`+port+`}]`)+`]`)
			pod("two containers with a port", `"hostNetwork":`+host+`,"containers":[`+c("a", `,"ports":[{`+port+`}]`)+`,`+c("b", `,"ports":[{`+port+`}]`)+`]`)
			pod("one container with a port twice", `"hostNetwork":`+host+`,"containers":[`+c("a", `,"ports":[{`+port+`},{`+port+`}]`)+`]`)
			pod("init containers with a port twice", `"hostNetwork":`+host+`,"containers":[`+c("a", "")+`],"initContainers":[`+c("b", "")+`,`+c("d", `,"ports":[{`+port+`},{`+port+`}]`)+`]`)
		}
		for _, share := range []string{"true", "false", "null"} {
			pod("hostPID and shareProcessNamespace", `"hostPID":`+host+`,"hostIPC":`+host+`,"shareProcessNamespace":`+share+`,"containers":[`+c("a", "")+`]`)
		}
	}
	for _, limits := range []string{"null", "{}", `{"cpu":"1"}`, `{"memory":"1Gi"}`, `{"hugepages-2Mi":"2Mi"}`, `{"cpu":1,"hugepages-2Mi":"2Mi"}`, `{"cpu":1,"hugepages-2Mi":"3Mi"}`, `{"cpu":null}`} {
		for _, requests := range []string{"null", "{}", `{"cpu":"999m"}`, `{"cpu":"1001m"}`, `{"cpu":"1","memory":"2Gi"}`, `{"hugepages-2Mi":"2Mi"}`, `{"hugepages-2Mi":"4Mi"}`, `{"cpu":1,"hugepages-1Gi":"1Gi"}`, `{"ephemeral-storage":"1"}`, `{"memory":null}`} {
			pod("limits and requests", `"containers":[`+c("a", `,"resources":{"limits":`+limits+`,"requests":`+requests+`}`)+`]`)
		}
	}
	for _, v := range []string{`{"name":"v"}`, `{"name":"v","emptyDir":{}}`, `{"name":"v","emptyDir":null}`, `{"name":"v","emptyDir":{},"hostPath":{"path":"/"}}`,
		`{"name":"v","hostPath":{"path":""}}`, `{"name":"V"}`, `{"name":"w"}`, `null`, `{}`} {
		for _, m := range []string{`{"name":"v","mountPath":"/a"}`, `{"name":"v"}`, `{"mountPath":"/a"}`, `{"name":"v","mountPath":"a"}`, `{"name":"v","mountPath":"/a:b"}`,
			`{"name":"v","mountPath":"/a"},{"name":"v","mountPath":"/a"}`, `{"name":"v","mountPath":"/a"},{"name":"v","mountPath":"/a/"}`,
			`{"name":"v","mountPath":"/a","mountPropagation":"Bidirectional"}`, `{"name":"v","mountPath":"/a","mountPropagation":""}`, `null`} {
			pod("a volume and its mounts", `"volumes":[`+v+`],"containers":[`+c("a", `,"volumeMounts":[`+m+`]`)+`]`)
			pod("two volumes of one name", `"volumes":[`+v+`,{"name":"v"}],"containers":[`+c("a", `,"volumeMounts":[`+m+`]`)+`]`)
		}
	}
	for _, op := range []string{"", "Exists", "Equal", "Gt", "Lt", "In"} {
		for _, rest := range []string{``, `,"key":"a"`, `,"key":"a","value":"b"`, `,"value":"b"`, `,"key":"a","value":"5"`, `,"key":"a b"`, `,"key":"a","value":"a b"`,
			`,"effect":"NoSchedule"`, `,"key":"a","tolerationSeconds":1`, `,"key":"a","tolerationSeconds":-1,"effect":"NoExecute"`, `,"key":"a","effect":"Never"`} {
			pod("a toleration", `"tolerations":[{"operator":"`+op+`"`+rest+`}],"containers":[`+c("a", "")+`]`)
		}
	}
	for _, containers := range []string{``, `"containers":null`, `"containers":[]`, `"containers":{}`, `"containers":[null]`, `"containers":[{}]`,
		`"containers":[` + c("a", "") + `,` + c("a", "") + `]`, `"containers":[` + c("a", "") + `],"initContainers":[` + c("a", "") + `]`,
		`"containers":[` + c("a", "") + `],"initContainers":[{}]`, `"containers":[],"initContainers":[` + c("a", "") + `]`,
		`"containers":[` + c("a", `,"env":[{"name":"A"},{"name":"A"},null,{"value":"x"},{"name":"a=b"},{"name":"1"},{"name":"é"}]`) + `]`,
		`"serviceAccountName":"default","serviceAccount":"","containers":[` + c("a", "") + `]`} {
		pod("containers", containers)
	}
	for _, policy := range []string{"None", "Default"} {
		for _, config := range []string{`null`, `{}`, `{"nameservers":[]}`, `{"nameservers":["10.0.0.1","::1","10.0.0.2"]}`, `{"nameservers":["1.1.1.1","2.2.2.2","3.3.3.3","4.4.4.4"]}`,
			`{"nameservers":["010.0.0.1"]}`, `{"nameservers":["::ffff:1.1.1.1"]}`, `{"nameservers":[""]}`, `{"nameservers":["1.1.1.1"],"searches":[".","a.","a_b.c","a..b","",".a"]}`,
			`{"nameservers":["1.1.1.1"],"searches":["x"` + strings.Repeat(`,"x"`, 31) + `]}`, `{"nameservers":["1.1.1.1"],"searches":["x"` + strings.Repeat(`,"x"`, 32) + `]}`,
			`{"nameservers":["1.1.1.1"],"searches":["x"` + strings.Repeat(`,"`+strings.Repeat("long.", 40)+`x"`, 11) + `]}`,
			`{"nameservers":["1.1.1.1"],"options":[{"name":""},{"value":"x"},null,{"name":"a","value":null},{"name":"a","value":""}]}`} {
			pod("a DNS configuration", `"dnsPolicy":"`+policy+`","dnsConfig":`+config+`,"containers":[`+c("a", "")+`]`)
		}
	}
	for _, alias := range []string{`{}`, `null`, `{"ip":""}`, `{"ip":"10.0.0.1"}`, `{"ip":"::1","hostnames":["a.example","A","",null,"a_b"]}`, `{"ip":"010.0.0.1"}`, `{"hostnames":["a"]}`} {
		pod("a host alias", `"hostAliases":[`+alias+`],"containers":[`+c("a", "")+`]`)
		pod("a host alias on the host", `"hostNetwork":true,"hostAliases":[`+alias+`,`+alias+`],"containers":[`+c("a", "")+`]`)
	}
	return slices.Concat(out, probes(), lives(), security(), podResources(), spread())
}

// podResources are the rules of the resources of a pod as a whole, beside those of
// its containers.
func podResources() (out []Variant) {
	lists := []string{`null`, `{}`, `{"cpu":"2"}`, `{"cpu":"1500m","memory":"1Gi"}`, `{"memory":"2Gi","hugepages-2Mi":"6Mi"}`, `{"hugepages-2Mi":"2Mi"}`,
		`{"cpu":"0.0001"}`, `{"cpu":"-1"}`, `{"ephemeral-storage":"1Gi"}`, `{"pods":1}`, `{"memory":null}`}
	for _, limits := range lists {
		for _, requests := range lists {
			if strings.Contains(limits, "ephemeral") {
				continue // refused by name, whoever's limit it is
			}
			for _, containers := range [][2]string{
				{`{}`, `{}`},
				{`{"limits":{"cpu":"1","memory":"512Mi","hugepages-2Mi":"4Mi"}}`, `{"limits":{"cpu":"1"},"requests":{"memory":"1Gi"}}`},
				{`{"requests":{"cpu":"1"}}`, `{"limits":{"cpu":"3","memory":"3Gi"}}`},
			} {
				out = append(out, Variant{"the pod's own resources", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{` +
					`"resources":{"limits":` + limits + `,"requests":` + requests + `},"containers":[{"name":"a","image":"i","resources":` + containers[0] +
					`},{"name":"b","image":"i","resources":` + containers[1] + `}],"initContainers":[{"name":"c","image":"i","resources":` + containers[1] +
					`}]}}`)})
			}
		}
	}
	return out
}

// probes are the rules of readiness probes.
func probes() (out []Variant) {
	pod := func(kind, probe string) {
		out = append(out, Variant{"a readiness probe", []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{` +
			`"containers":[{"name":"a","image":"i"` + map[bool]string{true: `,"readinessProbe":` + probe}[kind == "app"] + `}]` +
			map[bool]string{true: `,"initContainers":[{"name":"b","image":"i","readinessProbe":` + probe + `}]`}[kind == "init"] + `}}`)})
	}
	handlers := []string{`"exec":{"command":["x"]}`, `"exec":{}`, `"exec":{"command":[]}`, `"exec":{"command":[""]}`, `"exec":null`, `"tcpSocket":{}`,
		`"tcpSocket":{"port":80}`, `"tcpSocket":{"port":"http"}`, `"grpc":{}`, `"grpc":{"port":0}`, `"grpc":{"port":5,"service":null}`, `"grpc":{"port":"5"}`}
	for _, port := range []string{`0`, `1`, `65535`, `65536`, `-1`, `2147483648`, `80.5`, `true`, `null`, `{}`, `[]`, `""`, `"80"`, `"http"`, `"HTTP"`, `"-a"`, `"a--b"`,
		`"1a"`, `"averyveryverylongname"`} {
		handlers = append(handlers, `"tcpSocket":{"port":`+port+`}`, `"httpGet":{"port":`+port+`}`)
	}
	for _, rest := range []string{``, `,"path":"relative"`, `,"path":""`, `,"path":"%zz"`, `,"scheme":""`, `,"scheme":"http"`, `,"scheme":"HTTPS"`, `,"host":""`,
		`,"host":"a b"`, `,"httpHeaders":[]`, `,"httpHeaders":[null]`, `,"httpHeaders":[{"name":"A"}]`, `,"httpHeaders":[{"value":"x"}]`,
		`,"httpHeaders":[{"name":"a b","value":"x"},{"name":"Host","value":"h"},{"name":"é","value":""}]`} {
		handlers = append(handlers, `"httpGet":{"port":80`+rest+`}`)
	}
	for i, h := range handlers {
		pod("app", `{`+h+`}`)
		pod("init", `{`+h+`}`)
		pod("app", `{`+h+`,`+handlers[(i+7)%len(handlers)]+`}`)
	}
	pod("app", `{}`)
	pod("app", `null`)
	for _, name := range []string{"initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "terminationGracePeriodSeconds"} {
		for _, v := range []string{`-1`, `0`, `1`, `2147483647`, `2147483648`, `1.5`, `"1"`, `null`} {
			pod("app", `{"exec":{"command":["x"]},"`+name+`":`+v+`}`)
		}
	}
	return out
}
