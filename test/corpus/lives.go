package corpus

import "strings"

// lives are the rules of what goes on, ends and begins anew.
func lives() (out []Variant) {
	pod := func(what, spec, container, init string) {
		out = append(out, Variant{what, []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{` + spec +
			`"containers":[{"name":"a","image":"i"` + container + `}],"initContainers":[{"name":"b","image":"i"` + init + `}]}}`)})
	}
	const probe = `{"exec":{"command":["x"]}`
	for _, rest := range []string{`}`, `,"successThreshold":2}`, `,"successThreshold":0}`, `,"terminationGracePeriodSeconds":0}`, `,"terminationGracePeriodSeconds":5}`, `,"failureThreshold":-1}`} {
		for _, kind := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			pod("a probe of a container", ``, `,"`+kind+`":`+probe+rest, ``)
			for _, policy := range []string{`null`, `"Always"`, `"Never"`} {
				pod("a probe of an init container", ``, ``, `,"restartPolicy":`+policy+`,"`+kind+`":`+probe+rest)
			}
		}
	}
	for _, h := range []string{`{}`, `null`, `{"exec":{"command":["x"]}}`, `{"exec":{}}`, `{"httpGet":{"port":80}}`, `{"httpGet":{"port":0}}`, `{"tcpSocket":{"port":"http"}}`,
		`{"sleep":{"seconds":0}}`, `{"sleep":{"seconds":-1}}`, `{"sleep":{"seconds":30}}`, `{"sleep":{"seconds":31}}`, `{"sleep":{}}`, `{"sleep":{"seconds":1},"exec":{"command":["x"]}}`} {
		for _, when := range []string{"postStart", "preStop"} {
			pod("a hook", ``, `,"lifecycle":{"`+when+`":`+h+`}`, ``)
			pod("a hook and a grace period", `"terminationGracePeriodSeconds":5,`, `,"lifecycle":{"`+when+`":`+h+`}`, ``)
			pod("a hook of an init container", ``, ``, `,"lifecycle":{"`+when+`":`+h+`}`)
			pod("a hook of a sidecar", ``, ``, `,"restartPolicy":"Always","lifecycle":{"`+when+`":`+h+`}`)
		}
	}
	for _, signal := range []string{"", "SIGTERM", "TERM", "SIGRTMIN", "SIGRTMIN+1", "SIGRTMIN+15", "SIGRTMIN+16", "SIGRTMIN+0", "SIGRTMAX-14", "SIGRTMAX-15", "SIGRTMAX-01", "SIGTERM SIGHUP", "9"} {
		for _, os := range []string{``, `"os":{"name":"linux"},`, `"os":{},`, `"os":null,`} {
			pod("a stop signal", os, `,"lifecycle":{"stopSignal":"`+signal+`"}`, ``)
		}
	}
	for _, rules := range []string{`null`, `[]`, `[{}]`, `[{"action":"Restart"}]`, `[{"action":"Restart","exitCodes":{"operator":"In","values":[1]}}]`, `[{"action":"Ignore","exitCodes":{"operator":"Eq"}}]`,
		`[{"action":"RestartAllContainers","exitCodes":{"operator":"NotIn","values":[0,0,-1]}}]`, `[null` + strings.Repeat(`,{"action":"Restart","exitCodes":{"operator":"In"}}`, 20) + `]`,
		`[{"action":"Restart","exitCodes":{"operator":"In","values":[1` + strings.Repeat(`,1`, 255) + `]}}]`} {
		for _, policy := range []string{`null`, `"Always"`, `"Never"`, `"OnFailure"`, `""`, `"always"`} {
			pod("restart rules", ``, `,"restartPolicy":`+policy+`,"restartPolicyRules":`+rules, ``)
			pod("restart rules of an init container", ``, ``, `,"restartPolicy":`+policy+`,"restartPolicyRules":`+rules)
		}
	}
	for _, spec := range []string{`"hostnameOverride":"h","hostNetwork":true,`, `"hostnameOverride":"h","setHostnameAsFQDN":true,`, `"hostnameOverride":"h","hostname":"x",`,
		`"hostnameOverride":"` + strings.Repeat("a", 64) + `",`, `"hostnameOverride":"` + strings.Repeat("a", 65) + `",`, `"hostnameOverride":"",`, `"setHostnameAsFQDN":true,"hostNetwork":true,`,
		`"activeDeadlineSeconds":0,`, `"activeDeadlineSeconds":1,`, `"activeDeadlineSeconds":2147483648,`, `"readinessGates":[{}],`, `"readinessGates":[null],`, `"readinessGates":[{"conditionType":"a"},{"conditionType":"a"}],`} {
		pod("a pod's life", spec, ``, ``)
	}
	for _, p := range []string{`null`, `[]`, `[{}]`, `[{"resourceName":"cpu","restartPolicy":"NotRequired"}]`, `[{"resourceName":"memory","restartPolicy":"RestartContainer"}]`,
		`[{"resourceName":"cpu","restartPolicy":"Never"},{"resourceName":"cpu","restartPolicy":"NotRequired"},{"resourceName":"disk","restartPolicy":"NotRequired"}]`} {
		for _, never := range []string{``, `"restartPolicy":"Never",`} {
			pod("a resize policy", never, `,"resizePolicy":`+p, ``)
			pod("a resize policy of an init container", never, ``, `,"resizePolicy":`+p)
			pod("a resize policy of a sidecar", never, ``, `,"restartPolicy":"Always","resizePolicy":`+p)
		}
	}
	return out
}

// probed gives a container a readiness probe.
func probed(c Object, seconds int, how string, handler Object) Object {
	c["readinessProbe"] = Object{"initialDelaySeconds": seconds, "timeoutSeconds": seconds, "periodSeconds": seconds,
		"successThreshold": seconds, "failureThreshold": seconds, "terminationGracePeriodSeconds": nil, how: handler}
	return c
}

// lively gives a container that goes on all probes and hooks.
func lively(c Object) Object {
	c["livenessProbe"] = Object{"tcpSocket": Object{"port": 81}, "terminationGracePeriodSeconds": 7}
	c["startupProbe"] = Object{"exec": Object{"command": []any{"up"}}, "failureThreshold": 30}
	c["lifecycle"] = Object{"postStart": Object{"exec": Object{"command": []any{"hello"}}}, "preStop": Object{"sleep": Object{"seconds": 3}}, "stopSignal": "SIGUSR1"}
	c["resizePolicy"] = []any{Object{"resourceName": "cpu", "restartPolicy": "NotRequired"}}
	return probed(c, 1, "exec", Object{"command": []any{"ready"}})
}
