package apiserver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nodeOf keeps of a Node what the proxy reads. The rest changes all the time,
// and the list of images is long.
func nodeOf(object any) (*corev1.Node, error) {
	o, ok := object.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("the API server sent a %T as Node", object)
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, Labels: o.Labels, DeletionTimestamp: o.DeletionTimestamp},
		Spec:       corev1.NodeSpec{PodCIDR: o.Spec.PodCIDR, PodCIDRs: o.Spec.PodCIDRs, Taints: o.Spec.Taints, Unschedulable: o.Spec.Unschedulable},
		Status:     corev1.NodeStatus{Addresses: o.Status.Addresses},
	}, nil
}

func sameNode(a, b *corev1.Node) bool { return equality.Semantic.DeepEqual(a, b) }

// first is nil when there is none.
func first(all []*corev1.Node) *corev1.Node {
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

func cidrsOf(object any) ([]netip.Prefix, error) {
	o, ok := object.(*networkingv1.ServiceCIDR)
	if !ok {
		return nil, fmt.Errorf("the API server sent a %T as ServiceCIDR", object)
	}
	var out []netip.Prefix
	for _, s := range o.Spec.CIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("ServiceCIDR %s: %w", o.Name, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// merge sorts the ranges of all.
func merge(all [][]netip.Prefix) []netip.Prefix {
	out := slices.Concat(all...)
	slices.SortFunc(out, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	return slices.Compact(out)
}
