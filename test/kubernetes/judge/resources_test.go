package judge

import (
	"context"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	serviceapi "k8s.io/kubernetes/pkg/api/service"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/discovery"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	"k8s.io/kubernetes/pkg/apis/node"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
)

// object is an API object of either form.
type object interface {
	runtime.Object
	metav1.Object
}

// strategy is what a registry does with a request.
type strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

// served is how the API server serves a kind.
type served struct {
	resource, group     string
	versioned, internal func() object
	strategy            strategy
}

var servedKinds = map[string]served{
	"Service":               {"services", "", func() object { return &v1.Service{} }, func() object { return &core.Service{} }, service.Strategy},
	"ConfigMap":             {"configmaps", "", func() object { return &v1.ConfigMap{} }, func() object { return &core.ConfigMap{} }, configmap.Strategy},
	"Secret":                {"secrets", "", func() object { return &v1.Secret{} }, func() object { return &core.Secret{} }, secret.Strategy},
	"PersistentVolume":      {"persistentvolumes", "", func() object { return &v1.PersistentVolume{} }, func() object { return &core.PersistentVolume{} }, persistentvolume.Strategy},
	"PersistentVolumeClaim": {"persistentvolumeclaims", "", func() object { return &v1.PersistentVolumeClaim{} }, func() object { return &core.PersistentVolumeClaim{} }, persistentvolumeclaim.Strategy},
	"Namespace":             {"namespaces", "", func() object { return &v1.Namespace{} }, func() object { return &core.Namespace{} }, namespace.Strategy},
	"ServiceAccount":        {"serviceaccounts", "", func() object { return &v1.ServiceAccount{} }, func() object { return &core.ServiceAccount{} }, serviceaccount.Strategy},
	"RuntimeClass":          {"runtimeclasses", "node.k8s.io", func() object { return &nodev1.RuntimeClass{} }, func() object { return &node.RuntimeClass{} }, runtimeclass.Strategy},
	"PriorityClass":         {"priorityclasses", "scheduling.k8s.io", func() object { return &schedulingv1.PriorityClass{} }, func() object { return &scheduling.PriorityClass{} }, priorityclass.Strategy},

	"Endpoints":     {"endpoints", "", func() object { return &v1.Endpoints{} }, func() object { return &core.Endpoints{} }, endpoint.Strategy},
	"EndpointSlice": {"endpointslices", "discovery.k8s.io", func() object { return &discoveryv1.EndpointSlice{} }, func() object { return &discovery.EndpointSlice{} }, endpointslice.Strategy},
}

func (k served) request(verb, namespace string) context.Context {
	ctx := genericapirequest.WithNamespace(context.Background(), namespace)
	return genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIPrefix: "api", APIGroup: k.group, APIVersion: "v1", Resource: k.resource, Namespace: namespace})
}

// decode reads an object as the API server does, up to its allocators.
func (k served) decode(data []byte) (object, opinion) {
	read := k.versioned()
	o := strict(data, read)
	if o.text != "" {
		return nil, o
	}
	legacyscheme.Scheme.Default(read)
	switch {
	case !k.strategy.NamespaceScoped():
		// What the handler of the request does.
		read.SetNamespace("")
	case read.GetNamespace() == "":
		read.SetNamespace(metav1.NamespaceDefault)
	}
	if read.GetName() == "" && read.GetGenerateName() != "" {
		read.SetName(read.GetGenerateName() + "abcde")
	}
	internal := k.internal()
	if err := legacyscheme.Scheme.Convert(read, internal, nil); err != nil {
		o.text, o.wrongType = err.Error(), "a conversion that fails"
		return nil, o
	}
	o.decoded = true
	return internal, o
}

// madeUpPort stands for a node port that the allocator gives out.
const madeUpPort = 32000

// allocate does what the registry does for a new Service before its strategy
// looks at it, and returns what takes back what was made up.
func allocate(o object) (takeBack func()) {
	s, ok := o.(*core.Service)
	if !ok {
		return func() {}
	}
	if s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) == 0 {
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if !serviceapi.NeedsHealthCheck(s) || s.Spec.HealthCheckNodePort != 0 {
		return func() {}
	}
	s.Spec.HealthCheckNodePort = madeUpPort
	return func() { s.Spec.HealthCheckNodePort = 0 }
}

// resourceOpinion is what the API server says to a request to create an object,
// and what it would store. The status of a Service is judged as an update of the
// status is: nodeagent reads it from manifests.
func resourceOpinion(kind string, data []byte) (opinion, object) {
	k := servedKinds[kind]
	internal, o := k.decode(data)
	if !o.decoded {
		return o, nil
	}
	takeBack := allocate(internal)
	var status core.ServiceStatus
	if s, ok := internal.(*core.Service); ok {
		status = s.Status
	}
	ctx := k.request("create", internal.GetNamespace())
	k.strategy.PrepareForCreate(ctx, internal)
	errs := rest.ValidateCreate(ctx, internal, k.strategy)
	if s, ok := internal.(*core.Service); ok {
		s.Status = status
		errs = append(errs, validation.ValidateLoadBalancerStatus(&status.LoadBalancer, nil, field.NewPath("status", "loadBalancer"), &s.Spec)...)
	}
	o.judge(errs)
	takeBack()
	out := k.versioned()
	if err := legacyscheme.Scheme.Convert(internal, out, nil); err != nil {
		o.fields, o.text = []string{""}, "convert: "+err.Error()
	}
	out.SetGeneration(0)
	asRead(out)
	return o, out
}

// asRead does what happens between the API server's storage and its clients, and
// takes out what nodeagent has no use for.
func asRead(out object) {
	legacyscheme.Scheme.Default(out)
	switch out := out.(type) {
	case *v1.Namespace:
		out.Spec = v1.NamespaceSpec{} // finalizers
	case *v1.PersistentVolume:
		out.Status.LastPhaseTransitionTime = nil // now
	}
}

// resourceUpdateOpinion is what it says to a request to replace one. What its
// storage does before its strategy is not exported: patch and allocate stand for it.
func resourceUpdateOpinion(kind string, data, before []byte) opinion {
	k := servedKinds[kind]
	updated, o := k.decode(data)
	old, was := k.decode(before)
	if !o.decoded || !was.decoded {
		return opinion{text: o.text + was.text}
	}
	allocate(old)
	if s, ok := updated.(*core.Service); ok {
		patch(s, old.(*core.Service))
	}
	k.strategy.PrepareForCreate(k.request("create", old.GetNamespace()), old)
	old.SetResourceVersion("1")
	updated.SetResourceVersion("1")
	updated.SetGeneration(old.GetGeneration())
	if updated.GetUID() == "" {
		updated.SetUID(old.GetUID())
	}
	ctx := k.request("update", old.GetNamespace())
	k.strategy.PrepareForUpdate(ctx, updated, old)
	allocate(updated)
	o.judge(rest.ValidateUpdate(ctx, updated, old, k.strategy))
	return o
}

// patch carries over what a client did not send, as the registry's storage does.
func patch(now, old *core.Service) {
	external := func(s *core.Service) bool { return s.Spec.Type == core.ServiceTypeExternalName }
	if !external(now) && !external(old) {
		if now.Spec.ClusterIP == "" {
			now.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(now.Spec.ClusterIPs) == 0 && now.Spec.ClusterIP == old.Spec.ClusterIP {
			now.Spec.ClusterIPs = old.Spec.ClusterIPs
		}
		if len(now.Spec.IPFamilies) == 0 {
			now.Spec.IPFamilies = old.Spec.IPFamilies
		}
		if now.Spec.IPFamilyPolicy == nil {
			now.Spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
		}
	}
	if now.Spec.ClusterIP != old.Spec.ClusterIP && now.Spec.ClusterIP != "" && slices.Equal(now.Spec.ClusterIPs, old.Spec.ClusterIPs) {
		now.Spec.ClusterIPs = []string{now.Spec.ClusterIP}
	}
	if serviceapi.NeedsHealthCheck(now) && serviceapi.NeedsHealthCheck(old) && now.Spec.HealthCheckNodePort == 0 {
		now.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// withoutOwners takes out of a manifest what nodeagent drops of these kinds.
func withoutOwners(data []byte) []byte {
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return data
	}
	if meta, ok := doc["metadata"].(map[string]any); ok {
		for _, key := range []string{"resourceVersion", "generation", "creationTimestamp", "ownerReferences", "finalizers"} {
			delete(meta, key)
		}
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return data
	}
	return out
}

// resourceOwnRules are the differences that are meant.
var resourceOwnRules = map[string]string{
	"metadata.uid":                     "at most 63 letters, digits and '-'",
	"endpoints[].addresses[]":          "no multicast addresses: nothing can connect to one",
	"subsets[].addresses[].ip":         "the same",
	"subsets[].notReadyAddresses[].ip": "the same",
}

// resourceUnsupported are what nodeagent may refuse as unsupported.
var resourceUnsupported = map[string]bool{
	"overhead.podFixed[]": true, // names with a slash: there are no device plugins
}

var generalKey = regexp.MustCompile(`\[[^\]]*\]`)

func judgeResource(v verdict) string {
	if v.Old != nil {
		theirs := resourceUpdateOpinion(v.Kind, v.Manifest, v.Old)
		if !theirs.decoded {
			return "Kubernetes does not decode an update that nodeagent decodes: " + theirs.text
		}
		return sameFields(theirs, withoutOwn(v.Fields, theirs), v.Truncated)
	}
	data := []byte(v.Manifest)
	if v.ServerSide {
		data = withoutOwners(data)
	}
	theirs, stored := resourceOpinion(v.Kind, data)
	if accepted := len(v.Other) > 0; accepted != (len(v.Fields) == 0) {
		return "nodeagent has neither an object nor an error, or both"
	} else if !theirs.decoded {
		if accepted {
			v.Pod = &v1.Pod{}
		}
		return judgeUndecoded(v, theirs)
	}
	if len(v.Unsupported) > 0 {
		for _, f := range v.Unsupported {
			if !resourceUnsupported[generalKey.ReplaceAllString(f, "[]")] {
				return "nodeagent calls " + f + " unsupported, which is not agreed on"
			}
		}
		return ""
	}
	if problem := sameFields(theirs, withoutOwn(v.Fields, theirs), v.Truncated); problem != "" || len(v.Other) == 0 {
		return problem
	}
	ours := servedKinds[v.Kind].versioned()
	if err := json.Unmarshal(v.Other, ours); err != nil {
		return err.Error()
	}
	ours.SetUID(stored.GetUID()) // Kubernetes makes one of its own
	reflect.ValueOf(stored).Elem().FieldByName("TypeMeta").Set(reflect.ValueOf(ours).Elem().FieldByName("TypeMeta"))
	if !apiequality.Semantic.DeepEqual(ours, stored) {
		a, _ := json.Marshal(ours)
		b, _ := json.Marshal(stored)
		return "the defaulted objects differ: nodeagent\n" + string(a) + "\nKubernetes\n" + string(b)
	}
	return ""
}

func withoutOwn(fields []string, theirs opinion) []string {
	return slices.DeleteFunc(slices.Clone(fields), func(f string) bool {
		return resourceOwnRules[generalIndex.ReplaceAllString(f, "[]")] != "" && !slices.Contains(theirs.fields, f)
	})
}

// TestResourceAgreement is TestAgreement for the other kinds.
func TestResourceAgreement(t *testing.T) {
	markInputs(t)
	all, err := runVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	type count struct{ accepted, refused, updatesOK, updatesRefused int }
	counts, disagreements := map[string]count{}, 0
	for _, v := range all {
		if v.Kind == "" {
			continue
		}
		c := counts[v.Kind]
		switch {
		case v.Old != nil && len(v.Fields) == 0:
			c.updatesOK++
		case v.Old != nil:
			c.updatesRefused++
		case len(v.Other) > 0:
			c.accepted++
		default:
			c.refused++
		}
		counts[v.Kind] = c
		if problem := judgeResource(v); problem != "" {
			if disagreements++; disagreements <= 15 {
				t.Errorf("%s\n%.3000s\nbefore: %.2000s\nwhat: %.300s\nnodeagent says: %.1000q", problem, v.Manifest, v.Old, v.What, v.Messages)
			}
		}
	}
	t.Logf("seed %d: %+v; %d disagreements", *seed, counts, disagreements)
	for kind := range servedKinds {
		if c := counts[kind]; c.accepted < 300 || c.refused < 500 || c.updatesOK < 50 || c.updatesRefused < 50 {
			t.Errorf("%s: %+v is too little", kind, c)
		}
	}
}

// TestResourceJudgeNotices: a judge that cannot fail proves nothing.
func TestResourceJudgeNotices(t *testing.T) {
	markInputs(t)
	all, err := runVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	tried := map[string]int{}
	for i, v := range all {
		if v.Kind == "" || judgeResource(v) != "" {
			continue
		}
		changed, what := v, ""
		switch {
		case v.Old != nil && len(v.Fields) > 0:
			what, changed.Fields = "an update that is allowed", nil
		case v.Old != nil:
			what, changed.Fields = "an update that is refused", []string{"spec.elsewhere"}
		case len(v.Other) > 0 && i%2 == 0:
			what, changed.Other, changed.Fields = "an object that is refused", nil, []string{"spec.elsewhere"}
		case len(v.Other) > 0:
			what, changed.Other = "a label that is made up", addLabel(t, v.Other)
		case len(withoutOwn(v.Fields, opinion{})) == 0:
			continue
		default:
			what, changed.Fields, changed.Truncated = "an error at another field", []string{"spec.elsewhere"}, false
		}
		if tried[what]++; tried[what] <= 100 && judgeResource(changed) == "" {
			t.Errorf("the judge does not notice %s\n%.2000s", what, v.Manifest)
		}
	}
	for _, what := range []string{"an update that is allowed", "an update that is refused", "an object that is refused", "a label that is made up", "an error at another field"} {
		if tried[what] < 50 {
			t.Errorf("%s was tried only %d times", what, tried[what])
		}
	}
}

func addLabel(t *testing.T, data []byte) json.RawMessage {
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	doc["metadata"].(map[string]any)["labels"] = map[string]any{"made": "up"}
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
