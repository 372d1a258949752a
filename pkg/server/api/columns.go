package api

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Column is one column of the printed form of a list.
type Column struct {
	Name string // as kubectl prints it: "CLUSTER-IP"
	Wide bool   // only with -o wide
}

// Columns are those of a kind that is no Pod, and kubectl's. The problem of an
// object that cannot be served is added to them.
func Columns(kind string) []Column {
	head, age := []Column{{Name: "NAME"}}, Column{Name: "AGE"}
	switch kind {
	case "Service":
		head = append(head, Column{Name: "TYPE"}, Column{Name: "CLUSTER-IP"}, Column{Name: "EXTERNAL-IP"}, Column{Name: "PORT(S)"}, age, Column{"SELECTOR", true})
	case "Endpoints":
		head = append(head, Column{Name: "ENDPOINTS"}, age)
	case "EndpointSlice":
		head = append(head, Column{Name: "ADDRESSTYPE"}, Column{Name: "PORTS"}, Column{Name: "ENDPOINTS"}, age)
	default:
		head = append(head, configColumns(kind)...)
	}
	return append(head, Column{"PROBLEM", true})
}

// Object is what Cells takes of an object.
type Object interface {
	GetName() string
	GetAnnotations() map[string]string
}

// Cells are what an object has in its kind's Columns; age is its age in words.
func Cells(o Object, age string) []string {
	var cells []string
	switch o := o.(type) {
	case *v1.Service:
		cells = []string{string(o.Spec.Type), orNone(o.Spec.ClusterIP), externalIPs(o), servicePorts(o), age, orNone(labels.FormatLabels(o.Spec.Selector))}
	case *v1.Endpoints:
		cells = []string{some(3, endpointPairs(o)), age}
	case *discoveryv1.EndpointSlice:
		cells = []string{string(o.AddressType), slicePorts(o), some(3, sliceAddresses(o)), age}
	default:
		cells = configCells(o, age)
	}
	return append(append([]string{o.GetName()}, cells...), orNone(o.GetAnnotations()[pod.AnnotationProblem]))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// externalIPs are the addresses that a Service has outside.
func externalIPs(s *v1.Service) string {
	all := s.Spec.ExternalIPs
	switch s.Spec.Type {
	case v1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case v1.ServiceTypeLoadBalancer:
		var ingress []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				ingress = append(ingress, in.IP)
			} else if in.Hostname != "" {
				ingress = append(ingress, in.Hostname)
			}
		}
		if all = slices.Concat(ingress, all); len(all) == 0 {
			return "<pending>"
		}
	}
	return orNone(strings.Join(all, ","))
}

func servicePorts(s *v1.Service) string {
	var out []string
	for _, p := range s.Spec.Ports {
		text := strconv.Itoa(int(p.Port))
		if p.NodePort != 0 {
			text += ":" + strconv.Itoa(int(p.NodePort))
		}
		out = append(out, text+"/"+string(p.Protocol))
	}
	return orNone(strings.Join(out, ","))
}

// some shows the first few of many.
func some(most int, all []string) string {
	if len(all) <= most {
		return orNone(strings.Join(all, ","))
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(all[:most], ","), len(all)-most)
}

func endpointPairs(e *v1.Endpoints) (out []string) {
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			if len(s.Ports) == 0 {
				out = append(out, a.IP)
			}
			for _, p := range s.Ports {
				out = append(out, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	return out
}

func slicePorts(s *discoveryv1.EndpointSlice) string {
	var out []string
	for _, p := range s.Ports {
		if p.Port != nil {
			out = append(out, strconv.Itoa(int(*p.Port)))
		}
	}
	if len(out) == 0 {
		return "<unset>"
	}
	return some(3, out)
}

func sliceAddresses(s *discoveryv1.EndpointSlice) (out []string) {
	for _, e := range s.Endpoints {
		out = append(out, e.Addresses...)
	}
	return out
}
