// Package dataplanetest holds the conformance suite of the dataplane port, and the small lab it runs in: two hosts as
// network namespaces joined by a cable, with processes in cgroups that make real connections.
//
// RunPort tests what every implementation promises. Run tests what one that judges real packets must do, situation by
// situation, and RunLoad that it does so under load. A test binary that calls one of these two must call Main in its
// TestMain, because the processes of the lab are the binary itself.
package dataplanetest

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"bulkhead/internal/dataplane"
)

// Place is where an implementation is to live.
type Place struct {
	CgroupRoot string // sockets made below it are to be judged
	BPFFS      string // a directory of its own on a bpffs
	Guard      bool   // the interfaces of the network namespace are to be guarded, where the implementation can
}

// Open makes a dataplane, or takes over the one that is at the place. It is called in the host's network namespace.
type Open func(t testing.TB, at Place) dataplane.Dataplane

// Main runs the tests, or, in the processes of the lab, what they are told. First it removes what tests that were killed
// have left behind.
func Main(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(worker(os.Stdin, os.Stdout))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	flag.Parse()
	if os.Geteuid() == 0 {
		release, err := claim()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer release()
		left, err := sweep()
		if err != nil {
			fmt.Fprintln(os.Stderr, "removing what killed tests have left behind:", err)
			return 1
		}
		for _, name := range left {
			fmt.Fprintln(os.Stderr, "removed what a killed test has left behind:", name)
		}
	}
	// The situations mostly wait for each other's packets: more of them fit on a processor than one.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(4 * runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
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
