// Package command is the command line of the agent.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"bulkhead/internal/agent"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/inventory"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/dataplane"
	"bulkhead/internal/dataplane/ebpf"
	"bulkhead/internal/dataplane/nft"
	"bulkhead/internal/harmless"
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

  run           look after this host (the default)
    --standalone DIR    without a controller: by the documents in DIR, which is watched
    --label KEY=VALUE   of this host, where no document says otherwise (with --standalone, repeatable)
    --confirm TIME      how long a change that closes something waits for ` + "`confirm`" + ` (2m; 0s: never)
    --host NAME         of this host's workload (the host name)
  status        how the agent on this host is doing
  flows         who talks to whom here, with the verdict and the rule
    --denied            only what was denied, or would have been under enforcement
    --follow            go on until interrupted
  break-glass   let everything pass for a time, whatever policy says; needs no controller and no agent
    --for TIME          how long (15m); it ends by itself
    --reason TEXT       for the audit log
    --end               policy is in force again
  isolate WORKLOAD      cut a workload of this host off, all but essentials and the forensic network
    --end               judge it by its policy again
  remove        take Bulkhead's programs out of the kernel; nothing is judged any more
  config check  read the configuration and say what is wrong with it
  version       print the version

Without a controller:
  explain FROM TO PROTO/PORT    why that is allowed or denied, rule by rule
  plan DIR      what the documents in another directory would change here
  confirm       keep the documents that are on trial
  reload        read the documents now, and try again what was refused or rolled back

Flags of every command:
  --config FILE  configuration (default ` + DefaultConfig + `)
  -o FORMAT      table or json
`

// options are the flags.
type options struct {
	config string
	output string

	long   time.Duration // of break-glass
	reason string
	end    bool // and of isolate

	standalone, host string // of run
	labels           map[string]string
	confirm          time.Duration

	denied, follow bool // of flows
}

// invocation is a command that was asked for.
type invocation struct {
	options
	args           []string
	cfg            agent.Config
	client         *status.Client
	stdout, stderr io.Writer
}

// command is one of the commands. What it returns beside a good exit code is printed as the error.
type command struct {
	args  []string // what it takes
	flags func(*options, *flag.FlagSet)
	run   func(context.Context, *invocation) (int, error)
}

func noFlags(*options, *flag.FlagSet) {}

var commands = map[string]command{
	"run":          {nil, runFlags, nil}, // knows its exit codes itself
	"status":       {nil, noFlags, showStatus},
	"flows":        {nil, flowFlags, showFlows},
	"explain":      {[]string{"FROM", "TO", "PROTO/PORT"}, noFlags, explainFlow},
	"plan":         {[]string{"DIR"}, noFlags, planDocuments},
	"confirm":      {nil, noFlags, confirmTrial},
	"reload":       {nil, noFlags, reloadDocuments},
	"isolate":      {[]string{"WORKLOAD"}, endFlag, isolate},
	"break-glass":  {nil, glassFlags, breakGlass},
	"remove":       {nil, noFlags, remove},
	"config check": {nil, noFlags, checkConfig},
	"version":      {nil, noFlags, nil}, // needs no configuration
}

// Run runs the command that args name and returns the exit code. Answers go to stdout, everything else to stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintf(stderr, "bulkhead-agent: %s\n", harmless.Text(err.Error(), false))
		return code
	}
	name, rest := split(args)
	if name == "help" {
		fmt.Fprint(stdout, usage)
		return exitGood
	}
	c, ok := commands[name]
	if !ok {
		return fail(exitUsage, fmt.Errorf("unknown command %q; see bulkhead-agent --help", name))
	}
	in := &invocation{stdout: stdout, stderr: stderr}
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&in.config, "config", DefaultConfig, "")
	set.StringVar(&in.output, "o", "table", "")
	c.flags(&in.options, set)
	switch err := in.parse(set, rest, c.args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitGood
	case err != nil:
		return fail(exitUsage, fmt.Errorf("%w; see bulkhead-agent --help", err))
	case in.output != "table" && in.output != "json":
		return fail(exitUsage, fmt.Errorf("-o %s: use table or json", in.output))
	}
	if name == "version" {
		fmt.Fprintln(stdout, "bulkhead-agent", version.String())
		return exitGood
	}
	given := map[string]bool{}
	set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var err error
	if in.cfg, err = in.load(name, given); err != nil {
		return fail(exitUsage, err)
	}
	in.client = status.NewClient(in.cfg.Socket)
	if name == "run" {
		if err := run(ctx, in.cfg, stderr); err != nil {
			return fail(exitCode(err), explain(err))
		}
		return exitGood
	}
	code, err := c.run(ctx, in)
	if err != nil {
		return fail(code, err)
	}
	return code
}

// parse reads flags and arguments in any order.
func (in *invocation) parse(set *flag.FlagSet, rest, takes []string) error {
	for {
		if err := set.Parse(rest); err != nil {
			return err
		}
		if set.NArg() == 0 {
			break
		}
		in.args, rest = append(in.args, set.Arg(0)), set.Args()[1:]
	}
	switch {
	case len(in.args) > len(takes):
		return fmt.Errorf("unexpected argument %q", in.args[len(takes)])
	case len(in.args) < len(takes):
		return fmt.Errorf("missing %s", strings.Join(takes[len(in.args):], " "))
	}
	return nil
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

// load reads the configuration. None need be there if flags say enough, or if only the agent is to be asked.
func (in *invocation) load(name string, given map[string]bool) (agent.Config, error) {
	var over []func(*agent.Config)
	running := name == "run" || name == "config check"
	if !running {
		over = append(over, agent.ForClients)
	}
	for flag, set := range map[string]func(*agent.Config){
		"standalone": func(c *agent.Config) { c.Standalone = in.standalone },
		"host":       func(c *agent.Config) { c.Host = in.host },
		"label":      func(c *agent.Config) { c.Labels = c.Labels.With(in.labels) },
		"confirm":    func(c *agent.Config) { c.Confirm = in.confirm },
	} {
		if given[flag] {
			over = append(over, set)
		}
	}
	data, err := os.ReadFile(in.config)
	if errors.Is(err, fs.ErrNotExist) && !given["config"] && (!running || given["standalone"]) {
		return agent.ParseConfig("command line", nil, over...)
	}
	if err != nil {
		return agent.Config{}, fmt.Errorf("%w; write one there, name another with --config, or do without a controller: bulkhead-agent --standalone DIR", err)
	}
	return agent.ParseConfig(in.config, data, over...)
}

func checkConfig(_ context.Context, in *invocation) (int, error) {
	fmt.Fprintf(in.stdout, "%s is good\n", in.config)
	return exitGood, nil
}

// print writes v as JSON, or text for people.
func (in *invocation) print(v any, text string) (int, error) {
	if in.output != "json" {
		_, err := io.WriteString(in.stdout, harmless.Text(text, false))
		return said(err)
	}
	out := json.NewEncoder(in.stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return said(out.Encode(v))
}

// said is how a command ends that has asked the agent.
func said(err error) (int, error) {
	var no *status.AnswerError
	switch {
	case err == nil:
		return exitGood, nil
	case errors.As(err, &no):
		return exitNo, err
	}
	return exitCannot, err
}

// exitCode is that of run.
func exitCode(err error) int {
	var no *enroll.RefusedError
	if errors.As(err, &no) || errors.Is(err, dataplane.ErrUnsupported) || errors.Is(err, inventory.ErrNoCgroup2) {
		return exitCannot
	}
	return exitNo
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

func runFlags(o *options, set *flag.FlagSet) {
	set.Func("standalone", "", func(dir string) (err error) {
		o.standalone, err = filepath.Abs(dir)
		return err
	})
	set.StringVar(&o.host, "host", "", "")
	set.DurationVar(&o.confirm, "confirm", 0, "")
	o.labels = map[string]string{}
	set.Func("label", "", func(list string) error {
		for _, pair := range strings.Split(list, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok {
				return fmt.Errorf("%q: use KEY=VALUE", pair)
			}
			o.labels[key] = value
		}
		return nil
	})
}

// run opens the dataplane and runs the agent on it.
func run(ctx context.Context, cfg agent.Config, stderr io.Writer) (err error) {
	agent.LimitResources()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	if err := complete(&cfg); err != nil {
		return err
	}
	dp, err := open(&cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dp.Close()) }()
	debug.FreeOSMemory() // to load the programs takes more than all that follows
	return agent.New(cfg, agent.Deps{Dataplane: dp, Log: log}).Run(ctx)
}

// remove takes the dataplane out, unless an agent looks after it.
func remove(ctx context.Context, in *invocation) (int, error) {
	if _, err := in.client.Status(ctx); err == nil {
		return exitCannot, errors.New("the agent is running; stop it first (systemctl stop bulkhead-agent)")
	}
	if err := errors.Join(ebpf.Uninstall(in.cfg.BPFFS), nft.Uninstall()); err != nil {
		return exitCannot, err
	}
	fmt.Fprintln(in.stdout, "removed; nothing of Bulkhead is in the kernel any more, and no traffic is judged")
	return exitGood, nil
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
