package server

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// selection is which objects of a list or watch the client wants.
type selection struct {
	namespace string // empty: all
	labels    labels.Selector
	fields    fields.Selector
	fieldsOf  func(metav1.Object) fields.Set
}

// selection reads labelSelector and fieldSelector. A field that objects of the
// kind cannot be selected by is refused as kube-apiserver does.
func (v *view) selection(q url.Values, namespace string) (selection, error) {
	sel := selection{namespace: namespace, labels: labels.Everything(), fields: fields.Everything(), fieldsOf: v.fields}
	if t := q.Get("labelSelector"); t != "" {
		l, err := labels.Parse(t)
		if err != nil {
			return sel, apierrors.NewBadRequest(fmt.Sprintf("unable to parse requirement: %v", err))
		}
		sel.labels = l
	}
	if t := q.Get("fieldSelector"); t != "" {
		f, err := fields.ParseSelector(t)
		if err != nil {
			return sel, apierrors.NewBadRequest(err.Error())
		}
		have := v.fields(v.empty())
		for _, req := range f.Requirements() {
			if _, ok := have[req.Field]; !ok {
				return sel, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s: choose one of %s",
					req.Field, strings.Join(slices.Sorted(maps.Keys(have)), ", ")))
			}
		}
		sel.fields = f
	}
	return sel, nil
}

func (s selection) matches(o metav1.Object) bool {
	return (s.namespace == "" || s.namespace == o.GetNamespace()) &&
		s.labels.Matches(labels.Set(o.GetLabels())) && (s.fields.Empty() || s.fields.Matches(s.fieldsOf(o)))
}

// resourceFields are the fields that kube-apiserver lets clients select other
// kinds by.
func resourceFields(o metav1.Object) fields.Set {
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	switch o := o.(type) {
	case *v1.Service:
		set["spec.clusterIP"], set["spec.type"] = o.Spec.ClusterIP, string(o.Spec.Type)
	case *v1.Secret:
		set["type"] = string(o.Type)
	case *v1.Namespace:
		set["name"], set["status.phase"] = o.Name, string(o.Status.Phase)
	case *v1.PersistentVolume, *v1.PersistentVolumeClaim:
		set["name"] = o.GetName()
	}
	if r, ok := o.(manifest.Resource); ok && !manifest.IsNamespaced(manifest.KindOf(r)) {
		delete(set, "metadata.namespace")
	}
	return set
}

// podFields are the fields that kube-apiserver lets clients select Pods by.
func podFields(o metav1.Object) fields.Set {
	p := o.(*v1.Pod)
	ip := p.Status.PodIP
	if ip == "" && len(p.Status.PodIPs) > 0 {
		ip = p.Status.PodIPs[0].IP
	}
	return fields.Set{
		"metadata.name":            p.Name,
		"metadata.namespace":       p.Namespace,
		"spec.nodeName":            p.Spec.NodeName,
		"spec.restartPolicy":       string(p.Spec.RestartPolicy),
		"spec.schedulerName":       p.Spec.SchedulerName,
		"spec.serviceAccountName":  p.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(p.Spec.HostNetwork),
		"status.phase":             string(p.Status.Phase),
		"status.podIP":             ip,
		"status.nominatedNodeName": p.Status.NominatedNodeName,
	}
}

// nodeFields are the fields that kube-apiserver lets clients select Nodes by.
func nodeFields(o metav1.Object) fields.Set {
	return fields.Set{"metadata.name": o.GetName(), "spec.unschedulable": "false"}
}

// eventFields are the fields that kube-apiserver lets clients select Events by.
func eventFields(o metav1.Object) fields.Set {
	e := o.(*v1.Event)
	return fields.Set{
		"metadata.name":                  e.Name,
		"metadata.namespace":             e.Namespace,
		"involvedObject.kind":            e.InvolvedObject.Kind,
		"involvedObject.namespace":       e.InvolvedObject.Namespace,
		"involvedObject.name":            e.InvolvedObject.Name,
		"involvedObject.uid":             string(e.InvolvedObject.UID),
		"involvedObject.apiVersion":      e.InvolvedObject.APIVersion,
		"involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
		"involvedObject.fieldPath":       e.InvolvedObject.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         e.Source.Component,
		"type":                           e.Type,
	}
}

// boolParam reads a boolean query parameter; absent is false, present without
// a value is true, as clients write ?watch.
func boolParam(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	t := q.Get(name)
	if t == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(t)
	if err != nil {
		return false, apierrors.NewBadRequest(fmt.Sprintf("query parameter %s: %q is not a boolean", name, t))
	}
	return b, nil
}

// intParam reads an integer query parameter; nil when absent.
func intParam(q url.Values, name string) (*int64, error) {
	t := q.Get(name)
	if t == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("query parameter %s: %q is not a number", name, t))
	}
	return &n, nil
}
