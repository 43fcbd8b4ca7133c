package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"bulkhead": func() { os.Exit(Run(New())) },
	})
}

// TestScripts runs the command as users do, one file of testdata/script for each verb or concern, beside a copy of the
// documents in testdata/bank. UPDATE=1 writes what differs from the golden files back into them.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       os.Getenv("UPDATE") != "",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// Nothing of the developer's own environment may reach a controller.
			for _, name := range []string{"BULKHEAD_CONTROLLER", "BULKHEAD_TOKEN_FILE", "BULKHEAD_CA"} {
				env.Setenv(name, "")
			}
			env.Values[siteKey{}] = newSite(env.T())
			return os.CopyFS(filepath.Join(env.WorkDir, "bank"), os.DirFS(filepath.Join("testdata", "bank")))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":             exits,
			"controller":        startController,
			"stop-controller":   stopController,
			"broken-controller": brokenController,
			"join":              join,
			"agent":             agent,
			"record":            record,
		},
	})
}

// exits STATUS COMMAND runs a command that must end with that exit status.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var status interface{ ExitCode() int }
		if !errors.As(err, &status) {
			ts.Fatalf("%v", err)
		}
		got = status.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
