//go:build tools

// Package kubernetes pins the real Kubernetes parts that tests and benchmarks
// compare nodeagent with. Nothing here is part of the product.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kubelet"
)
