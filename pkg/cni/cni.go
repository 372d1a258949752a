// Package cni owns the node's CNI network configuration: it writes a default
// network where there is none, validates what users put there, says whether
// pods can get addresses, and collects what crashes leaked. ADD and DEL are
// the runtime's calls, never ours.
package cni
