//go:build !race

package testbed

// raceEnabled: agents under test are built with the race detector when the
// test itself is.
const raceEnabled = false
