package corpus

import (
	"fmt"
	"strings"
)

// podSecurity and containerSecurity are the parts of Full about privileges.
func podSecurity() Object {
	return Object{
		"seLinuxOptions": Object{"user": "system_u", "role": "system_r", "type": "container_t", "level": "s0:c1,c2"}, "seLinuxChangePolicy": "Recursive",
		"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true,
		"fsGroup": 7, "fsGroupChangePolicy": "OnRootMismatch",
		"supplementalGroups": []any{5, 6}, "supplementalGroupsPolicy": "Merge",
		"sysctls":         []any{Object{"name": "net.ipv4.tcp_syncookies", "value": "1"}, Object{"name": "net/ipv4/ip_local_port_range", "value": "1024 65000"}},
		"seccompProfile":  Object{"type": "Localhost", "localhostProfile": "profiles/audit.json"},
		"appArmorProfile": Object{"type": "Localhost", "localhostProfile": "k8s-deny-write"},
	}
}

func containerSecurity() Object {
	return Object{
		"capabilities": Object{"add": []any{"NET_ADMIN", "SYS_TIME"}, "drop": []any{"ALL"}}, "privileged": false,
		"seLinuxOptions": Object{"user": "system_u", "role": "system_r", "type": "container_t", "level": "s0"},
		"runAsUser":      2000, "runAsGroup": 3000, "runAsNonRoot": false, "readOnlyRootFilesystem": true,
		"allowPrivilegeEscalation": false, "procMount": "Default",
		"seccompProfile":  Object{"type": "Localhost", "localhostProfile": "audit.json"},
		"appArmorProfile": Object{"type": "Localhost", "localhostProfile": "k8s-deny-write"},
	}
}

// security are the rules between the fields of security contexts, and those of
// the annotations that were fields.
func security() (out []Variant) {
	pod := func(what, annotations, spec, container string) {
		for _, where := range []string{`"containers":[{"name":"a","image":"i"%s}]`, `"containers":[{"name":"b","image":"i"}],"initContainers":[{"name":"a","image":"i"%s}]`} {
			if container != "" && !strings.HasPrefix(container, ",") {
				container = `,"securityContext":` + container
			}
			out = append(out, Variant{what, []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","annotations":{` + annotations + `}},"spec":{` +
				spec + fmt.Sprintf(where, container) + `}}`)})
		}
	}
	for _, privileged := range []string{"true", "false", "null"} {
		for _, escalation := range []string{"true", "false", "null"} {
			for _, caps := range []string{`null`, `{}`, `{"add":["CAP_SYS_ADMIN"]}`, `{"add":["SYS_ADMIN"]}`, `{"add":["ALL"],"drop":["ALL"]}`, `{"add":["","é"]}`, `{"add":[null]}`, `{"add":[5]}`} {
				pod("privileges", ``, ``, `{"privileged":`+privileged+`,"allowPrivilegeEscalation":`+escalation+`,"capabilities":`+caps+`}`)
			}
		}
	}
	profiles := []string{`null`, `{}`, `{"type":""}`, `{"type":"Localhost"}`, `{"type":"Localhost","localhostProfile":""}`, `{"type":"Localhost","localhostProfile":" "}`,
		`{"type":"Localhost","localhostProfile":"x"}`, `{"type":"Localhost","localhostProfile":"/x"}`, `{"type":"Localhost","localhostProfile":"../x"}`,
		`{"type":"Localhost","localhostProfile":"a/../x"}`, `{"type":"Localhost","localhostProfile":"..a/x.."}`, `{"type":"Localhost","localhostProfile":"/../x"}`,
		`{"type":"Localhost","localhostProfile":" x"}`, `{"type":"Localhost","localhostProfile":"` + strings.Repeat("p", 4095) + `"}`,
		`{"type":"Localhost","localhostProfile":"` + strings.Repeat("p", 4096) + `"}`, `{"type":"RuntimeDefault"}`, `{"type":"RuntimeDefault","localhostProfile":""}`,
		`{"type":"RuntimeDefault","localhostProfile":"x"}`, `{"type":"Unconfined"}`, `{"type":"unconfined"}`, `{"type":"Else","localhostProfile":"x"}`}
	values := []string{"", "unconfined", "runtime/default", "localhost/", "localhost/x", "localhost/ x", "localhost", "docker/default", "localhost/" + strings.Repeat("p", 4096)}
	for _, profile := range profiles {
		for _, name := range []string{"seccompProfile", "appArmorProfile"} {
			pod("a profile", ``, `"securityContext":{"`+name+`":`+profile+`},`, ``)
			pod("a profile", ``, ``, `{"`+name+`":`+profile+`}`)
		}
		for _, v := range values {
			pod("an annotation", `"container.apparmor.security.beta.kubernetes.io/a":"`+v+`"`, `"securityContext":{"appArmorProfile":`+profile+`},`, ``)
			pod("an annotation", `"container.apparmor.security.beta.kubernetes.io/a":"`+v+`"`, ``, `{"appArmorProfile":`+profile+`}`)
		}
	}
	for _, v := range values {
		pod("an annotation of no container", `"container.apparmor.security.beta.kubernetes.io/z":"`+v+`","container.apparmor.security.beta.kubernetes.io/":"unconfined"`, ``, ``)
		pod("an annotation, and nothing else", `"container.apparmor.security.beta.kubernetes.io/a":"`+v+`"`, ``, ``)
	}
	for _, id := range []string{`-1`, `0`, `1`, `2147483647`, `2147483648`, `4294967295`, `"0"`, `null`, `1.5`} {
		for _, name := range []string{"runAsUser", "runAsGroup"} {
			pod("an id", ``, `"securityContext":{"`+name+`":`+id+`},`, `{"`+name+`":`+id+`}`)
		}
		pod("groups", ``, `"securityContext":{"supplementalGroups":[`+id+`,`+id+`]},`, ``)
	}
	for _, name := range []string{``, `net.ipv4.x`, `net/ipv4/conf/eth0.1/x`, `net`, `kernel.msgmax`, `kernel/shmall`, `fs.mqueue.x`, `fs.file-max`, `user.max`, `kernel.domainname`,
		`A.b`, `a..b`, `.a`, `a.`, `a-`, `net.*`, strings.Repeat("a", 253), strings.Repeat("a", 254)} {
		for _, host := range []string{``, `"hostNetwork":true,`, `"hostIPC":true,`} {
			pod("a sysctl", ``, host+`"securityContext":{"sysctls":[{"name":"`+name+`","value":"1"},{"name":"`+name+`","value":""},{"value":"x"},null]},`, ``)
			pod("a sysctl", ``, host+`"securityContext":{"sysctls":[{"name":"`+name+`","value":"1"}]},`, ``)
		}
	}
	for _, users := range []string{`true`, `false`, `null`, `"false"`} {
		for _, host := range []string{``, `"hostNetwork":true,`, `"hostIPC":true,`, `"hostPID":true,`} {
			pod("hostUsers", ``, host+`"hostUsers":`+users+`,`, `{"procMount":"Unmasked","privileged":true}`)
			pod("hostUsers", ``, host+`"hostUsers":`+users+`,`, ``)
			pod("hostUsers and devices", ``, host+`"hostUsers":`+users+`,"volumes":[{"name":"d","persistentVolumeClaim":{"claimName":"c"}}],`, `,"volumeDevices":[{"name":"d","devicePath":"/dev/x"}]`)
		}
	}
	for _, class := range []string{`""`, `"kata"`, `"a.b"`, `"A"`, `"-"`, `null`, `5`} {
		for _, overhead := range []string{`null`, `{}`, `{"cpu":"10m","memory":"64Mi"}`, `{"cpu":"-1"}`, `{"pods":1}`, `{"hugepages-2Mi":"2Mi"}`, `{"cpu":"0.0001"}`, `{"cpu":null}`} {
			pod("a runtime class", ``, `"runtimeClassName":`+class+`,"overhead":`+overhead+`,`, ``)
		}
	}
	for _, mount := range []string{`"Default"`, `"Unmasked"`, `""`, `null`, `"unmasked"`} {
		pod("procMount", ``, ``, `{"procMount":`+mount+`}`)
	}
	for _, policy := range []string{`""`, `"Merge"`, `"Strict"`, `"merge"`, `null`, `"Recursive"`, `"MountOption"`} {
		pod("policies", ``, `"securityContext":{"supplementalGroupsPolicy":`+policy+`},`, ``)
		pod("policies", ``, `"securityContext":{"seLinuxChangePolicy":`+policy+`},`, ``)
	}
	return out
}
