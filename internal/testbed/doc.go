// Package testbed gives a test a real node: a network, mount, PID and UTS
// namespace of its own with a private containerd, a loopback registry, images
// made from static binaries and, when asked, a running agent.
//
// Everything of a node hangs on one holder process, the first process of the
// node's PID namespace. When the holder dies the kernel ends every process of
// the node, and with the last of them go its mounts and its network. The
// holder dies with the test process (parent death signal), so a test binary
// that is killed leaves nothing running and nothing mounted; what remains are
// files under /var/tmp and empty cgroups, which the next test run sweeps.
//
// A reboot is the same thing done on purpose: the holder is killed, /run is
// empty, the kernel has a new boot id, and only the disk is as it was.
package testbed
