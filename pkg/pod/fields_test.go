package pod

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func TestField(t *testing.T) {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: "web", Namespace: "shop", UID: "u-1",
		Labels:      map[string]string{"tier": "front", "app": "web"},
		Annotations: map[string]string{"example.com/note": "two\nlines \"quoted\" ü", "a": ""},
	}}
	for path, want := range map[string]string{
		"metadata.name": "web", "metadata.namespace": "shop", "metadata.uid": "u-1",
		"metadata.labels":                           "app=\"web\"\ntier=\"front\"",
		"metadata.annotations":                      "a=\"\"\nexample.com/note=\"two\\nlines \\\"quoted\\\" ü\"",
		"metadata.labels['app']":                    "web",
		"metadata.labels['none']":                   "",
		"metadata.annotations['example.com/note']":  "two\nlines \"quoted\" ü",
		"spec.nodeName":                             "!",
		"metadata.name['app']":                      "!",
		"['app']":                                   "!",
		"metadata.labels['app'":                     "!",
		"metadata.annotations['example.com/note'] ": "!",
	} {
		got, err := Field(p, path)
		if want == "!" {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		} else if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestResourceField(t *testing.T) {
	list := func(cpu, memory, huge string) v1.ResourceList {
		return v1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory), "hugepages-2Mi": resource.MustParse(huge)}
	}
	p := &v1.Pod{}
	p.Spec.Containers = []v1.Container{
		{Name: "set", Resources: v1.ResourceRequirements{Limits: list("1500m", "100Mi", "4Mi"), Requests: list("250m", "64Mi", "4Mi")}},
		{Name: "unset"},
	}
	node := v1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("4Gi"), "ephemeral-storage": resource.MustParse("9Gi")}
	for _, tc := range []struct{ container, resource, divisor, want string }{
		{"set", "limits.cpu", "0", "2"},
		{"set", "limits.cpu", "1m", "1500"},
		{"set", "requests.cpu", "1m", "250"},
		{"set", "requests.cpu", "1", "1"},
		{"set", "limits.memory", "1Mi", "100"},
		{"set", "requests.memory", "1Gi", "1"},
		{"set", "requests.memory", "0", "67108864"},
		{"set", "limits.hugepages-2Mi", "1Mi", "4"},
		{"set", "limits.ephemeral-storage", "1Gi", "9"},
		{"unset", "limits.cpu", "0", "2"},
		{"unset", "limits.memory", "1Gi", "4"},
		{"unset", "limits.hugepages-2Mi", "0", "0"},
		{"unset", "requests.cpu", "1m", "0"},
		{"unset", "limits.pods", "0", "!"},
		{"unset", "caps.cpu", "0", "!"},
		{"none", "limits.cpu", "0", "!"},
	} {
		got, err := ResourceField(p, tc.container, &v1.ResourceFieldSelector{Resource: tc.resource, Divisor: resource.MustParse(tc.divisor)}, node)
		if tc.want == "!" {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v: %q, %v", tc, got, err)
			}
		} else if err != nil || got != tc.want {
			t.Errorf("%v: %q, %v", tc, got, err)
		}
	}
}
