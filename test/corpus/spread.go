package corpus

import "fmt"

// podTerm is a term of an affinity to other pods that has all fields.
func podTerm() Object {
	selector := func() Object {
		return Object{"matchLabels": Object{"app": "full"}, "matchExpressions": []any{Object{"key": "tier", "operator": "In", "values": []any{"front", "back"}}}}
	}
	return Object{"topologyKey": "topology.kubernetes.io/zone", "labelSelector": selector(), "namespaceSelector": selector(), "namespaces": []any{"shop"},
		"matchLabelKeys": []any{"pod-template-hash"}, "mismatchLabelKeys": []any{"tenant"}}
}

func podAffinity() Object {
	return Object{"requiredDuringSchedulingIgnoredDuringExecution": []any{podTerm()},
		"preferredDuringSchedulingIgnoredDuringExecution": []any{Object{"weight": 50, "podAffinityTerm": podTerm()}}}
}

func spreadConstraints() []any {
	return []any{
		Object{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2,
			"nodeAffinityPolicy": "Honor", "nodeTaintsPolicy": "Ignore", "labelSelector": podTerm()["labelSelector"], "matchLabelKeys": []any{"pod-template-hash"}},
		Object{"maxSkew": 2, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"},
	}
}

// spread are the rules between the fields of what a scheduler reads.
func spread() (out []Variant) {
	pod := func(what, spec string) {
		out = append(out, Variant{what, []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"1","b":""}},"spec":{` + spec + `,"containers":[{"name":"c","image":"i"}]}}`)})
	}
	selectors := []string{`null`, `{}`, `{"matchLabels":{"a":"1"}}`, `{"matchLabels":{"b c":"?"}}`, `{"matchExpressions":[{"key":"a","operator":"Exists"}]}`,
		`{"matchExpressions":[{"key":"c","operator":"In"},{"key":"c","operator":"DoesNotExist","values":["x"]},{"key":"","operator":"Gt","values":["a b"]}]}`,
		`{"matchLabels":{"a":"1","c":"1"},"matchExpressions":[{"key":"c","operator":"NotIn","values":["1"]}]}`}
	keys := []string{`[]`, `["a"]`, `["a","a"]`, `["b","c"]`, `["c"]`, `["a b"]`, `[""]`, `null`}
	for _, s := range selectors {
		for i, match := range keys {
			for _, mismatch := range []string{`[]`, keys[(i+1)%len(keys)], match} {
				term := fmt.Sprintf(`{"topologyKey":"zone","labelSelector":%s,"matchLabelKeys":%s,"mismatchLabelKeys":%s}`, s, match, mismatch)
				pod("an affinity to pods", `"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[`+term+`]}}`)
				pod("an affinity against pods", `"affinity":{"podAntiAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"podAffinityTerm":`+term+`}]}}`)
			}
			pod("pods that are spread", fmt.Sprintf(`"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"ScheduleAnyway"},`+
				`{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":%s,"matchLabelKeys":%s}]`, s, match))
		}
	}
	for _, term := range []string{`{}`, `null`, `{"topologyKey":""}`, `{"topologyKey":"a b"}`, `{"topologyKey":"zone","namespaces":["","A","ok"]}`, `{"topologyKey":"zone","namespaceSelector":{}}`} {
		pod("a term", `"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[`+term+`]}}`)
		for _, weight := range []string{`0`, `100`, `101`, `-1`} {
			pod("a weighted term", `"affinity":{"podAntiAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":`+weight+`,"podAffinityTerm":`+term+`}]}}`)
		}
	}
	for _, when := range []string{`"DoNotSchedule"`, `"ScheduleAnyway"`, `""`, `"Never"`} {
		for _, rest := range []string{``, `,"topologyKey":"zone"`, `,"topologyKey":"a b"`, `,"topologyKey":"zone","minDomains":1`, `,"topologyKey":"zone","minDomains":0`,
			`,"topologyKey":"zone","nodeAffinityPolicy":"Honor","nodeTaintsPolicy":"Never"`, `,"topologyKey":"zone","nodeAffinityPolicy":""`} {
			for _, skew := range []string{`1`, `0`, `-1`} {
				one := `{"maxSkew":` + skew + `,"whenUnsatisfiable":` + when + rest + `}`
				pod("a spread", `"topologySpreadConstraints":[`+one+`]`)
				pod("a spread that is there twice", `"topologySpreadConstraints":[`+one+`,`+one+`]`)
			}
		}
	}
	return out
}
