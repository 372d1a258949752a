package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// defaultContainerAnnotation names the container that commands mean when they
// are given none; kubectl knows it.
const defaultContainerAnnotation = "kubectl.kubernetes.io/default-container"

func (c *CLI) pod(ctx context.Context, name string) (*v1.Pod, error) {
	p := &v1.Pod{}
	if err := c.client.get(ctx, podPath(c.Namespace, podName(name)), nil, p); err != nil {
		return nil, err
	}
	return p, nil
}

// podName accepts pod/NAME for NAME.
func podName(s string) string {
	if kind, name, ok := strings.Cut(s, "/"); ok && slices.Contains(podResource().names, kind) {
		return name
	}
	return s
}

// container picks the container a command is for and says so when it had a
// choice.
func (c *CLI) container(p *v1.Pod, name string) (*v1.Container, error) {
	names := containerNames(p)
	if name == "" {
		name = p.Annotations[defaultContainerAnnotation]
		if _, _, ok := pod.Container(p, name); !ok {
			name = p.Spec.Containers[0].Name
			if len(names) > 1 {
				fmt.Fprintf(c.Err, "Defaulted container %q out of: %s\n", name, table.Safe(strings.Join(names, ", ")))
			}
		}
	}
	found, _, ok := pod.Container(p, name)
	if !ok {
		return nil, fmt.Errorf("container %s not found in pod %s; it has: %s", name, p.Name, strings.Join(names, ", "))
	}
	return found, nil
}

// containerNames are all of a pod's, init containers last and marked.
func containerNames(p *v1.Pod) []string {
	var out []string
	for i := range p.Spec.Containers {
		out = append(out, p.Spec.Containers[i].Name)
	}
	for i := range p.Spec.InitContainers {
		out = append(out, p.Spec.InitContainers[i].Name+" (init)")
	}
	return out
}
