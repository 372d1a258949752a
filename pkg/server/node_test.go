package server

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const nodePath = "/api/v1/nodes/" + nodeName

// TestChangeNode: clients label, annotate, taint and cordon the node; what the
// agent says of it is not theirs.
func TestChangeNode(t *testing.T) {
	f := newFixture(t, nil)
	patch := func(media types.PatchType, text string) answer {
		return f.call(t, "PATCH", nodePath, text, "Content-Type", string(media))
	}
	node := func(a answer) *v1.Node {
		var n v1.Node
		a.code(200).into(&n)
		return &n
	}
	n := node(patch(types.StrategicMergePatchType, `{"spec":{"unschedulable":true},"metadata":{"labels":{"disk":"ssd"},"annotations":{"a":"b"}}}`))
	if !n.Spec.Unschedulable || n.Labels["disk"] != "ssd" || n.Annotations["a"] != "b" || len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != v1.TaintNodeUnschedulable {
		t.Errorf("%+v", n)
	}
	n = node(patch(types.MergePatchType, `{"spec":{"taints":[{"key":"k","value":"v","effect":"NoExecute"}]}}`))
	if len(n.Spec.Taints) != 2 || n.Spec.Taints[0].TimeAdded == nil {
		t.Errorf("%+v", n.Spec)
	}
	if dry := node(f.call(t, "PATCH", nodePath+"?dryRun=All", `{"spec":{"unschedulable":false}}`, "Content-Type", string(types.MergePatchType))); dry.Spec.Unschedulable {
		t.Errorf("%+v", dry.Spec)
	}
	f.call(t, "GET", nodePath, "").into(n)
	if !n.Spec.Unschedulable {
		t.Error("a dry run has opened the node")
	}
	n = node(patch(types.MergePatchType, `{"spec":{"unschedulable":null,"taints":null},"metadata":{"labels":{"disk":null}}}`))
	if n.Spec.Unschedulable || n.Spec.Taints != nil || n.Labels["disk"] != "" || n.Labels["node-role.kubernetes.io/edge"] != "" {
		t.Errorf("%+v", n)
	}
	for text, field := range map[string]string{
		`{"metadata":{"labels":{"node-role.kubernetes.io/edge":"x"}}}`:                              "metadata.labels[node-role.kubernetes.io/edge]",
		`{"metadata":{"labels":{"x":"a b"}}}`:                                                       "metadata.labels",
		`{"metadata":{"annotations":{"x y":"b"}}}`:                                                  "metadata.annotations",
		`{"spec":{"podCIDR":"10.0.0.0/8"}}`:                                                         "spec",
		`{"spec":{"taints":[{"key":"k","effect":"Never"}]}}`:                                        "spec.taints[0].effect",
		`{"spec":{"taints":[{"key":"","effect":"NoSchedule"}]}}`:                                    "spec.taints[0].key",
		`{"spec":{"taints":[{"key":"k","value":"v v","effect":"NoSchedule"}]}}`:                     "spec.taints[0].value",
		`{"spec":{"taints":[{"key":"k","effect":"NoSchedule"},{"key":"k","effect":"NoSchedule"}]}}`: "spec.taints[1]",
	} {
		s := patch(types.MergePatchType, text).status(422, metav1.StatusReasonInvalid)
		if s.Details.Causes[0].Field != field {
			t.Errorf("%s: %+v", text, s.Details.Causes)
		}
	}
	patch(types.MergePatchType, `{"spec":{"colour":"red"}}`).status(400, metav1.StatusReasonBadRequest)
	patch(types.MergePatchType, `{"metadata":{"resourceVersion":"1"},"spec":{"unschedulable":true}}`).status(409, metav1.StatusReasonConflict)
	f.call(t, "DELETE", nodePath, "").status(405, metav1.StatusReasonMethodNotAllowed)
	f.call(t, "POST", "/api/v1/nodes", "{}").status(405, metav1.StatusReasonMethodNotAllowed)
}

// TestEviction: a pod of the API is deleted by its eviction, with its options;
// one of a folder is not.
func TestEviction(t *testing.T) {
	f := newFixture(t, nil)
	p := f.create(t, "web", "")
	evict := func(name, query, rest string) answer {
		return f.call(t, "POST", podsPath+"/"+name+"/eviction"+query, `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"`+name+`","namespace":"default"}`+rest+`}`)
	}
	evict("none", "", "").status(404, metav1.StatusReasonNotFound)
	evict("web", "?dryRun=All", "").code(201)
	evict("web", "", `,"deleteOptions":{"dryRun":["All"]}`).code(201)
	evict("web", "", `,"deleteOptions":{"preconditions":{"uid":"other"}}`).status(409, metav1.StatusReasonConflict)
	evict("web", "", `,"soon":true`).status(400, metav1.StatusReasonBadRequest)
	f.call(t, "POST", podsPath+"/web/eviction", strings.ReplaceAll(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"x"}}`, "x", "other")).status(400, metav1.StatusReasonBadRequest)
	f.call(t, "GET", podsPath+"/web/eviction", "").status(405, metav1.StatusReasonMethodNotAllowed)
	if f.pod(t, "web").DeletionTimestamp != nil {
		t.Fatal("what was refused or only tried has deleted the pod")
	}
	evict("web", "", `,"deleteOptions":{"gracePeriodSeconds":7,"preconditions":{"uid":"`+string(p.UID)+`"}}`).code(201)
	if now := f.pod(t, "web"); now.DeletionTimestamp == nil || *now.DeletionGracePeriodSeconds != 7 {
		t.Errorf("%+v", now.ObjectMeta)
	}
	f.fromFile(t, "from-file")
	if f.pod(t, "from-file").Annotations["kubernetes.io/config.mirror"] == "" {
		t.Error("a drain would not pass over a pod of a folder")
	}
	evict("from-file", "", "").status(403, metav1.StatusReasonForbidden)
}
