// Package command is the command line of the agent.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"bulkhead/internal/agent"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/version"
)

// Exit codes. Of run, 1 says that it is worth to start it again, as the service manager does, and 3 that it is not
// until somebody has put something right.
const (
	exitGood   = 0
	exitNo     = 1
	exitUsage  = 2
	exitCannot = 3
)

// DefaultConfig is where the configuration is looked for.
const DefaultConfig = "/etc/bulkhead/agent.yaml"

const usage = `Usage: bulkhead-agent [COMMAND] [FLAGS]

Commands:
  run           look after this host (the default)
  status        how the agent on this host is doing
  config check  read the configuration and say what is wrong with it
  break-glass   let everything pass for a time, whatever policy says; needs no controller and no agent
  remove        take Bulkhead's programs out of the kernel; nothing is judged any more
  version       print the version

Flags:
  --config FILE  configuration (default ` + DefaultConfig + `)
  -o FORMAT      of status: table or json
  --for TIME     of break-glass: how long (15m); it ends by itself
  --reason TEXT  of break-glass: for the audit log
  --end          of break-glass: policy is in force again
`

// options are the flags; every command takes --config.
type options struct {
	config string
	output string
	long   time.Duration // of break-glass
	reason string
	end    bool
}

// Run runs the command that args name and returns the exit code. Answers go to stdout, everything else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "bulkhead-agent: %v\n", err)
		return code
	}
	name, rest := split(args)
	var o options
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&o.config, "config", DefaultConfig, "")
	set.StringVar(&o.output, "o", "table", "")
	if name == "break-glass" {
		set.DurationVar(&o.long, "for", 0, "")
		set.StringVar(&o.reason, "reason", "no reason given", "")
		set.BoolVar(&o.end, "end", false, "")
	}
	switch err := set.Parse(rest); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitGood
	case err != nil:
		return fail(exitUsage, fmt.Errorf("%w; see bulkhead-agent --help", err))
	case set.NArg() > 0:
		return fail(exitUsage, fmt.Errorf("unexpected argument %q; see bulkhead-agent --help", set.Arg(0)))
	}
	switch name {
	case "version":
		fmt.Fprintln(stdout, "bulkhead-agent", version.String())
		return exitGood
	case "help":
		fmt.Fprint(stdout, usage)
		return exitGood
	case "run", "status", "config check", "remove", "break-glass":
	default:
		return fail(exitUsage, fmt.Errorf("unknown command %q; see bulkhead-agent --help", name))
	}
	cfg, err := load(o.config)
	if err != nil {
		return fail(exitUsage, err)
	}
	switch name {
	case "config check":
		fmt.Fprintf(stdout, "%s is good\n", o.config)
		return exitGood
	case "status":
		return o.status(ctx, cfg, stdout, fail)
	case "break-glass":
		code, err := o.breakGlass(ctx, cfg, stdout)
		if err != nil {
			return fail(code, err)
		}
		return code
	case "remove":
		if err := remove(ctx, cfg); err != nil {
			return fail(exitCannot, err)
		}
		fmt.Fprintln(stdout, "removed; nothing of Bulkhead is in the kernel any more, and no traffic is judged")
		return exitGood
	}
	if err := run(ctx, cfg, stderr); err != nil {
		return fail(exitCode(err), explain(err))
	}
	return exitGood
}

// exitCode is that of run.
func exitCode(err error) int {
	var no *enroll.RefusedError
	if errors.As(err, &no) || errors.Is(err, dataplane.ErrUnsupported) || errors.Is(err, inventory.ErrNoCgroup2) {
		return exitCannot
	}
	return exitNo
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

func load(path string) (agent.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return agent.Config{}, fmt.Errorf("%w; write one there or name another with --config", err)
	}
	return agent.ParseConfig(path, data)
}

// explain adds what still works where the machine cannot run the dataplane.
func explain(err error) error {
	var no *enroll.RefusedError
	switch {
	case errors.As(err, &no):
		return no // one line that says what to do; what lies around it does not help
	case errors.Is(err, dataplane.ErrUnsupported), errors.Is(err, inventory.ErrNoCgroup2):
		return fmt.Errorf("this host cannot be protected: %w (the offline commands of bulkhead work here: check, test, eval, explain)", err)
	}
	return err
}

// run opens the dataplane and runs the agent on it.
func run(ctx context.Context, cfg agent.Config, stderr io.Writer) (err error) {
	agent.LimitProcs()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if err := complete(&cfg); err != nil {
		return err
	}
	if err := mount(cfg.BPFFS); err != nil {
		return err
	}
	plane := ebpf.DefaultConfig()
	plane.CgroupRoot, plane.BPFFS, plane.Logger = cfg.CgroupRoot, cfg.BPFFS, log
	dp, err := ebpf.Open(plane)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dp.Close()) }()
	return agent.New(cfg, agent.Deps{Dataplane: dp, Log: log}).Run(ctx)
}

// remove takes the dataplane out, unless an agent looks after it.
func remove(ctx context.Context, cfg agent.Config) error {
	if _, err := status.NewClient(cfg.Socket).Status(ctx); err == nil {
		return errors.New("the agent is running; stop it first (systemctl stop bulkhead-agent)")
	}
	return ebpf.Uninstall(cfg.BPFFS)
}

// complete fills in what the machine tells.
func complete(cfg *agent.Config) (err error) {
	if cfg.Host == "" {
		if cfg.Host, err = os.Hostname(); err != nil {
			return fmt.Errorf("host name: %w; set `host:` in the configuration", err)
		}
	}
	if cfg.CgroupRoot == "" {
		if cfg.CgroupRoot, err = inventory.CgroupRoot(); err != nil {
			return err
		}
	}
	return nil
}

// mount sees to it that the directory for pins is on a bpffs: the usual place is mounted as a whole if it is not yet,
// any other directory is mounted by itself.
func mount(dir string) error {
	const usual = "/sys/fs/bpf"
	if dir == usual || strings.HasPrefix(dir, usual+"/") {
		_, err := ebpf.MountBPFFS(usual)
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	_, err := ebpf.MountBPFFS(dir)
	return err
}

func (o *options) status(ctx context.Context, cfg agent.Config, stdout io.Writer, fail func(int, error) int) int {
	if o.output != "table" && o.output != "json" {
		return fail(exitUsage, fmt.Errorf("-o %s: use table or json", o.output))
	}
	r, err := status.NewClient(cfg.Socket).Status(ctx)
	if err != nil {
		return fail(exitCannot, err)
	}
	if o.output == "json" {
		out := json.NewEncoder(stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(r); err != nil {
			return fail(exitCannot, err)
		}
	} else if err := table(stdout, r); err != nil {
		return fail(exitCannot, err)
	}
	if len(r.Problems) > 0 {
		return exitNo
	}
	return exitGood
}

// table writes the report for people.
func table(w io.Writer, r *status.Report) error {
	connected := "not connected to " + r.Controller + "; what is in force stays in force"
	if r.Connected {
		connected = "connected to " + r.Controller
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "host\t%s (%s)\n", r.Host, connected)
	if r.Hash == "" {
		fmt.Fprintf(t, "policy\tnone yet; nothing is dropped\n")
	} else {
		fmt.Fprintf(t, "policy\trevision %d, %.12s; %d rows, %d addresses\n", r.Revision, r.Hash, r.Dataplane.Rows, r.Dataplane.Addresses)
	}
	if r.Glass != nil {
		fmt.Fprintf(t, "BROKEN GLASS\teverything passes until %s: %s\n", r.Glass.Until.Format(time.RFC3339), r.Glass.Reason)
	}
	fmt.Fprintf(t, "flows\t%d allowed, %d would be denied, %d denied; %d packets dropped\n",
		r.Counters.Allowed, r.Counters.WouldDenied, r.Counters.Denied, r.Counters.DroppedPkts)
	if lost := r.Counters.EventsLost + r.RecordsLost; lost > 0 || r.SpoolBytes > 0 {
		fmt.Fprintf(t, "records\t%d lost, %d bytes not acknowledged yet\n", lost, r.SpoolBytes)
	}
	for _, s := range r.Subjects {
		fmt.Fprintf(t, "workload\t%s\n", describe(s))
	}
	for _, p := range r.Problems {
		fmt.Fprintf(t, "problem\t%s\n", p)
	}
	return t.Flush()
}

func describe(s status.Subject) string {
	text := s.Workload
	switch {
	case s.Unit != "" && len(s.Cgroups) == 0:
		text += " (" + s.Unit + ", not running)"
	case s.Unit != "":
		text += " (" + strings.Join(s.Cgroups, ", ") + ")"
	}
	if s.Isolated {
		text += ", isolated"
	} else if s.Quarantine != "" {
		text += ", quarantine " + s.Quarantine
	}
	return text
}
