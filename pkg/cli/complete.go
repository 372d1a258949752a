package cli

import (
	"context"
	"slices"
	"time"
)

// completionPatience bounds what a press of the tab key waits for.
const completionPatience = time.Second

// CompleteNames lists the names of one kind that the running agent knows. No
// agent, no names: a completion must not print an error into the prompt.
func (c *CLI) CompleteNames(ctx context.Context, kind string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	res, err := findResource(kind)
	if err != nil {
		return nil
	}
	items, _, err := c.find(ctx, res, c.Namespace, nil, nil)
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range items {
		out = append(out, res.ids(o)[0])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// CompleteContainers lists a pod's containers.
func (c *CLI) CompleteContainers(ctx context.Context, podName string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	p, err := c.pod(ctx, podName)
	if err != nil {
		return nil
	}
	var out []string
	for i := range p.Spec.Containers {
		out = append(out, p.Spec.Containers[i].Name)
	}
	for i := range p.Spec.InitContainers {
		out = append(out, p.Spec.InitContainers[i].Name)
	}
	return out
}

// CompleteNamespaces lists the namespaces that pods are in.
func (c *CLI) CompleteNamespaces(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	res := podResource()
	items, _, err := c.find(ctx, res, "", nil, nil)
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range items {
		out = append(out, res.namespace(o))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
