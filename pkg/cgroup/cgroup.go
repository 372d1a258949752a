// Package cgroup makes one cgroup per pod, under QoS parents, on cgroup v1 and
// v2, with the cgroupfs and systemd drivers' names.
package cgroup
