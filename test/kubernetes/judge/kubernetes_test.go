package judge

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	kjson "sigs.k8s.io/json"
)

// TestMain sets what kube-apiserver's flags set: --allow-privileged, which every
// cluster has whose nodes run a network plugin.
func TestMain(m *testing.M) {
	capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true})
	// Off by default in v1.37, where the API server then drops the field.
	if err := utilfeature.DefaultMutableFeatureGate.Set("ContainerStopSignals=true"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// opinion is what Kubernetes makes of a manifest.
type opinion struct {
	// decoded is false when it ends there; one of the next five says why.
	decoded            bool
	wrongType          string // path without indexes and keys
	quantity           bool   // a text that is none
	base64             bool   // a text that is none
	unnamed            bool   // a wrong type whose place the error does not say
	unknown, duplicate []string

	// fields are the paths of all errors of validation.
	fields []string
	// pod is what the API server would store.
	pod *v1.Pod
	// text are all errors in words.
	text string
}

// decode reads a manifest as the API server does: strictly, with defaults.
func decode(data []byte) (*core.Pod, *v1.Pod, opinion) {
	read := &v1.Pod{}
	o := strict(data, read)
	if o.text != "" {
		return nil, nil, o
	}
	legacyscheme.Scheme.Default(read)
	// What the request adds, before validation.
	if read.Namespace == "" {
		read.Namespace = metav1.NamespaceDefault
	}
	if read.Name == "" && read.GenerateName != "" {
		read.Name = read.GenerateName + "abcde"
	}
	internal := &core.Pod{}
	if err := legacyscheme.Scheme.Convert(read.DeepCopy(), internal, nil); err != nil {
		o.text, o.wrongType = err.Error(), "a conversion that fails"
		return nil, nil, o
	}
	o.decoded = true
	return internal, read, o
}

// strict is the API server's strict decoding; without an error, text is empty.
func strict(data []byte, into any) (o opinion) {
	found, err := kjson.UnmarshalStrict(data, into)
	if err != nil {
		o.text = err.Error()
		var wrong *json.UnmarshalTypeError
		var corrupt base64.CorruptInputError
		switch {
		case errors.As(err, &wrong) && wrong.Field == "":
			o.unnamed = true
		case errors.As(err, &wrong):
			// encoding/json names the Go structs whose fields stand in their parent.
			o.wrongType = strings.NewReplacer(".VolumeSource.", ".", ".PersistentVolumeSource.", ".", ".LocalObjectReference.", ".", ".ProbeHandler.", ".").Replace(wrong.Field)
		case errors.As(err, &corrupt):
			o.base64 = true
		case strings.Contains(o.text, "quantit") || strings.Contains(o.text, "suffix"):
			o.quantity = true
		default:
			o.wrongType = "an error of another kind"
		}
		return o
	}
	for _, e := range found {
		o.text += e.Error() + "; "
		var at kjson.FieldError
		switch {
		case !errors.As(e, &at):
			o.unknown = append(o.unknown, "an error of another kind")
		case strings.HasPrefix(e.Error(), "duplicate"):
			o.duplicate = append(o.duplicate, at.FieldPath())
		default:
			o.unknown = append(o.unknown, at.FieldPath())
		}
	}
	return o
}

func request(verb, namespace string) context.Context {
	ctx := genericapirequest.WithNamespace(context.Background(), namespace)
	return genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIPrefix: "api", APIVersion: "v1", Resource: "pods", Namespace: namespace})
}

// createOpinion is what the API server says to a request to create a pod.
func createOpinion(data []byte) opinion {
	internal, read, o := decode(data)
	if !o.decoded {
		return o
	}
	ctx := request("create", internal.Namespace)
	pod.Strategy.PrepareForCreate(ctx, internal)
	o.judge(rest.ValidateCreate(ctx, internal, pod.Strategy))
	o.pod = &v1.Pod{}
	if err := legacyscheme.Scheme.Convert(internal, o.pod, nil); err != nil {
		o.fields, o.text = []string{""}, fmt.Sprintf("convert: %v", err)
	}
	// The server counts generations of a spec; nodeagent has revisions.
	o.pod.Generation = read.Generation
	// It writes labels of the pod into selectors that only a scheduler reads;
	// nodeagent checks what comes of that, and keeps the pod as written.
	o.pod.Spec.Affinity, o.pod.Spec.TopologySpreadConstraints = read.Spec.Affinity, read.Spec.TopologySpreadConstraints
	return o
}

// updateOpinion is what it says to a request to replace one.
func updateOpinion(data, before []byte) opinion {
	updated, _, o := decode(data)
	old, _, was := decode(before)
	if !o.decoded || !was.decoded {
		return opinion{text: o.text + was.text}
	}
	pod.Strategy.PrepareForCreate(request("create", old.Namespace), old)
	old.ResourceVersion, updated.ResourceVersion = "1", "1"
	updated.Generation = old.Generation
	// An API server completes the pod's own resources when the pod is created, and
	// would refuse to have the same manifest put again. nodeagent takes it.
	podutil.DefaultPodLevelResources(updated)
	ctx := request("update", old.Namespace)
	pod.Strategy.PrepareForUpdate(ctx, updated, old)
	if updated.UID == "" {
		updated.UID = old.UID
	}
	o.judge(rest.ValidateUpdate(ctx, updated, old, pod.Strategy))
	return o
}

func (o *opinion) judge(errs field.ErrorList) {
	for _, e := range errs {
		o.fields = append(o.fields, e.Field)
	}
	o.text = "it accepts"
	if len(errs) > 0 {
		o.text = errs.ToAggregate().Error()
	}
}

// withoutServerSide takes out of a manifest what only an API server writes, as
// nodeagent does.
func withoutServerSide(data []byte) []byte {
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return data
	}
	delete(doc, "status")
	if meta, ok := doc["metadata"].(map[string]any); ok {
		for _, key := range []string{"selfLink", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp",
			"deletionGracePeriodSeconds", "managedFields"} {
			delete(meta, key)
		}
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return data
	}
	return out
}
