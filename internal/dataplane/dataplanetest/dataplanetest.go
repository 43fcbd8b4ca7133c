// Package dataplanetest holds the conformance suite of the dataplane port, and the small lab it runs in: two hosts as
// network namespaces joined by a cable, with processes in cgroups that make real connections.
//
// RunPort tests what every implementation promises. Run tests what one that judges real packets must do, situation by
// situation. A test binary that calls Run must call Main in its TestMain, because the processes of the lab are the
// binary itself.
package dataplanetest

import (
	"os"
	"slices"
	"strings"
	"testing"

	"bulkhead/internal/dataplane"
)

// Place is where an implementation is to live.
type Place struct {
	CgroupRoot string // sockets made below it are to be judged
	BPFFS      string // a directory of its own on a bpffs
}

// Open makes a dataplane, or takes over the one that is at the place. It is called in the host's network namespace.
type Open func(t testing.TB, at Place) dataplane.Dataplane

// Main runs the tests, or, in the processes of the lab, what they are told.
func Main(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(worker(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// Cannot skips the test because the machine lacks what it needs, or fails it where BULKHEAD_REQUIRE, a list of
// capabilities such as "bpf,netns", says that it must not be lacking.
func Cannot(t testing.TB, capability string, reason error) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("BULKHEAD_REQUIRE"), ","), capability) {
		t.Fatalf("%s is required here, but: %v", capability, reason)
	}
	t.Skipf("needs %s: %v", capability, reason)
}
