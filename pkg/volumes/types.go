// Package volumes sets up what a pod's spec.volumes name and takes it down
// again. One file per kind behind one small interface; every call is
// idempotent, and what a crash left is found on disk and in the mount table,
// never in memory.
package volumes

// Mounted is one volume of one pod, ready to be bound into containers.
type Mounted struct {
	Name     string // spec.volumes[].name
	Kind     string // "emptyDir", "hostPath", …
	HostPath string // absolute path to bind from; empty for an image
	Image    bool   // the runtime mounts an image
	Block    bool   // HostPath is a block device, for volumeDevices
	ReadOnly bool   // the volume itself is read-only
	// Relabel asks the runtime to give it the container's SELinux label.
	Relabel bool
	// Group is one that the pod's processes need besides their own, nil for none.
	Group *int64
}
