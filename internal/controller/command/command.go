// Package command is the command line of the controller.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"bulkhead/internal/controller"
	"bulkhead/internal/version"
)

// Exit codes.
const (
	exitGood   = 0
	exitUsage  = 2
	exitCannot = 3
)

// DefaultConfig is where the configuration is looked for.
const DefaultConfig = "/etc/bulkhead/controller.yaml"

const usage = `Usage: bulkhead-controller [COMMAND] [FLAGS]

Commands:
  run           serve agents and the API (the default)
  config check  read the configuration and say what is wrong with it
  version       print the version

Flags:
  --config FILE  configuration (default ` + DefaultConfig + `)
`

// Run runs the command that args name and returns the exit code. Answers go to stdout, everything else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "bulkhead-controller: %v\n", err)
		return code
	}
	name, rest := split(args)
	var path string
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&path, "config", DefaultConfig, "")
	switch err := set.Parse(rest); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitGood
	case err != nil:
		return fail(exitUsage, fmt.Errorf("%w; see bulkhead-controller --help", err))
	case set.NArg() > 0:
		return fail(exitUsage, fmt.Errorf("unexpected argument %q; see bulkhead-controller --help", set.Arg(0)))
	}
	switch name {
	case "version":
		fmt.Fprintln(stdout, "bulkhead-controller", version.String())
		return exitGood
	case "help":
		fmt.Fprint(stdout, usage)
		return exitGood
	case "run", "config check":
	default:
		return fail(exitUsage, fmt.Errorf("unknown command %q; see bulkhead-controller --help", name))
	}
	cfg, err := load(path)
	if err != nil {
		return fail(exitUsage, err)
	}
	if name == "config check" {
		fmt.Fprintf(stdout, "%s is good\n", path)
		return exitGood
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if err := controller.New(cfg, controller.Deps{Log: log, Version: version.String()}).Run(ctx); err != nil {
		return fail(exitCannot, err)
	}
	return exitGood
}

// split takes the command off the arguments; without one it is run.
func split(args []string) (name string, rest []string) {
	switch {
	case len(args) == 0 || strings.HasPrefix(args[0], "-"):
		return "run", args
	case args[0] == "config" && len(args) > 1 && !strings.HasPrefix(args[1], "-"):
		return "config " + args[1], args[2:]
	}
	return args[0], args[1:]
}

func load(path string) (controller.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return controller.Config{}, fmt.Errorf("%w; write one there or name another with --config", err)
	}
	return controller.ParseConfig(path, data)
}
