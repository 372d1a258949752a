// Package bench measures nodeagent beside the real kubelet and beside the
// floor, which is the bare CRI calls that both have to make. `make bench` runs
// it (build tag bench) and prints one table; docs/benchmarks.md keeps a copy.
//
// What is compared is made the same: one containerd, one CNI network, one
// manifest, one cgroup parent, one log folder, the image on the node. The three
// take turns in short blocks, so that a machine that slows down slows all.
// Nothing is created ahead of the manifest.
package bench
