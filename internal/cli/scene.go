package cli

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/wire"
)

// scene is what a question is about: the documents and the workloads there are, from files or from the controller.
type scene struct {
	docs    *model.Documents
	inv     *model.Inventory
	options compile.Options
	origin  string // for messages: "policy/" or "revision 12"
	online  map[string]presence
}

// presence is what only the controller knows of a workload.
type presence struct{ declared, connected bool }

// world compiles the scene. Documents that do not compile are wrong use, like documents that do not parse.
func (s *scene) world(cmd *cobra.Command, notDone string) (*compile.World, error) {
	w, err := compile.Compile(s.docs, s.inv, s.options)
	if err != nil {
		complain(cmd, err.Error())
		return nil, usagef("the documents do not compile; %s", notDone)
	}
	return w, nil
}

// sceneFlags are the flags of every verb that asks about policy.
type sceneFlags struct {
	files       []string
	workloads   string
	quarantine  []string
	at          string
	controllers []string
}

func (f *sceneFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "file", "f", nil, "documents, or manifests of Kubernetes: a directory, a file or - (repeatable); without it the controller is asked")
	flags.StringVar(&f.workloads, "workloads", "", "further workloads: documents, or what get workloads -o json printed")
	flags.StringArrayVar(&f.quarantine, "quarantine", nil, "what if: NAME=LEVEL with level watch, restrict, isolate or none (repeatable)")
	flags.StringVar(&f.at, "at", "", "as of that time, for rules that expire (default now)")
	flags.StringArrayVar(&f.controllers, "controller-at", nil, "IP:PORT at which agents reach the controller, for essential/controller (with -f, repeatable)")
}

// scene reads what the flags name: files, or else the controller.
func (a *app) scene(cmd *cobra.Command, f *sceneFlags, notDone string) (*scene, error) {
	if len(f.files) == 0 {
		return a.online(cmd, f)
	}
	files, err := f.read(cmd)
	if err != nil {
		return nil, err
	}
	docs, err := parse(cmd, files, notDone)
	if err != nil {
		return nil, err
	}
	return f.offline(cmd, docs)
}

// read reads the files of -f.
func (f *sceneFlags) read(cmd *cobra.Command) ([]policy.File, error) {
	if err := onlyOneStdin(append([]string{f.workloads}, f.files...)...); err != nil {
		return nil, err
	}
	return readFiles(cmd, f.files)
}

// now returns the time of --at, or otherwise.
func (f *sceneFlags) now(otherwise time.Time) (time.Time, error) {
	if f.at == "" {
		return otherwise, nil
	}
	return parseMoment(f.at, time.Now())
}

// offline puts documents, --workloads and --quarantine together.
func (f *sceneFlags) offline(cmd *cobra.Command, docs *model.Documents) (*scene, error) {
	now, err := f.now(time.Now())
	if err != nil {
		return nil, err
	}
	s := &scene{docs: docs, options: compile.Options{Now: now}, origin: strings.Join(f.files, ", ")}
	var leases []inventory.Lease
	if f.workloads != "" {
		more, held, err := readWorkloads(cmd, f.workloads)
		if err != nil {
			return nil, err
		}
		s.docs = withWorkloads(docs, more)
		leases = held
	}
	if leases, err = f.leases(leases); err != nil {
		return nil, err
	}
	for _, text := range f.controllers {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, usagef("--controller-at %s: use IP:PORT", text)
		}
		s.options.Controllers = append(s.options.Controllers, at)
	}
	if s.inv, err = inventory.Build(s.docs, nil, leases); err != nil {
		return nil, usagef("%w", err)
	}
	return s, f.known(s.inv)
}

// leases returns the quarantines there are with those of --quarantine in place of them.
func (f *sceneFlags) leases(held []inventory.Lease) ([]inventory.Lease, error) {
	byName := map[string]inventory.Lease{}
	var order []string
	put := func(l inventory.Lease) {
		if _, ok := byName[l.Workload]; !ok {
			order = append(order, l.Workload)
		}
		byName[l.Workload] = l
	}
	for _, l := range held {
		put(l)
	}
	for _, text := range f.quarantine {
		name, level, err := parseQuarantine(text)
		if err != nil {
			return nil, err
		}
		put(inventory.Lease{Workload: name, Level: level, InUse: byName[name].InUse})
	}
	out := make([]inventory.Lease, len(order))
	for i, name := range order {
		out[i] = byName[name]
	}
	return out, nil
}

// parseQuarantine reads NAME=LEVEL.
func parseQuarantine(text string) (string, model.QuarantineLevel, error) {
	name, level, ok := strings.Cut(text, "=")
	if !ok || name == "" {
		return "", 0, usagef("--quarantine %q: use NAME=LEVEL, such as portal-1=isolate", text)
	}
	if level == model.QuarantineNone.String() {
		return name, model.QuarantineNone, nil
	}
	q, err := parseLevel(level)
	if err != nil {
		return "", 0, usagef("--quarantine %s: %w", text, err)
	}
	return name, q, nil
}

// known refuses a --quarantine of a workload that does not exist.
func (f *sceneFlags) known(inv *model.Inventory) error {
	for _, text := range f.quarantine {
		name, _, _ := strings.Cut(text, "=")
		if findInstance(inv, name) == nil {
			return usagef("--quarantine %s: there is no workload %q%s", text, name, didYouMean(similar(name, instanceNames(inv))))
		}
	}
	return nil
}

func findInstance(inv *model.Inventory, name string) *model.Instance {
	for i := range inv.Instances {
		if inv.Instances[i].Name == name {
			return &inv.Instances[i]
		}
	}
	return nil
}

func instanceNames(inv *model.Inventory) []string {
	names := make([]string, len(inv.Instances))
	for i := range inv.Instances {
		names[i] = inv.Instances[i].Name
	}
	return names
}

// online asks the controller for its newest world and lays --quarantine over it.
func (a *app) online(cmd *cobra.Command, f *sceneFlags) (*scene, error) {
	switch {
	case f.workloads != "":
		return nil, usagef("--workloads goes with -f: the controller knows its workloads")
	case len(f.controllers) > 0:
		return nil, usagef("--controller-at goes with -f: the controller knows where it answers")
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	s, err := c.scene(cmd, 0)
	if err != nil {
		return nil, err
	}
	if s.options.Now, err = f.now(s.options.Now); err != nil {
		return nil, err
	}
	for _, text := range f.quarantine {
		name, level, err := parseQuarantine(text)
		if err != nil {
			return nil, err
		}
		if inst := findInstance(s.inv, name); inst != nil {
			quarantineAs(inst, level)
		}
	}
	return s, f.known(s.inv)
}

// quarantineAs gives the workload another level than it has.
func quarantineAs(inst *model.Instance, level model.QuarantineLevel) {
	inst.Quarantine.Level = level
	inst.Labels = inst.Labels.With(nil)
	if level == model.QuarantineNone {
		delete(inst.Labels, model.QuarantineLabel)
	} else {
		inst.Labels[model.QuarantineLabel] = level.String()
	}
}

// scene returns the world of a revision: its documents, over the workloads there are now. 0 is the newest revision.
func (c *client) scene(cmd *cobra.Command, revision uint64) (*scene, error) {
	r, err := ask(cmd.Context(), c, c.GetWorld, &pb.GetWorldRequest{})
	if err != nil {
		return nil, err
	}
	s, err := c.newest(r)
	if err != nil {
		return nil, err
	}
	return c.sceneUnder(cmd, s, revision)
}

// sceneUnder returns the newest scene as it would be with the documents of a revision; 0 is the newest.
func (c *client) sceneUnder(cmd *cobra.Command, newest *scene, revision uint64) (*scene, error) {
	if revision == 0 || revisionName(revision) == newest.origin {
		return newest, nil
	}
	old, err := ask(cmd.Context(), c, c.GetRevision, &pb.GetRevisionRequest{Number: revision})
	if err != nil {
		return nil, err
	}
	docs, err := c.parse(revision, old.Documents)
	if err != nil {
		return nil, err
	}
	return newest.under(docs, revisionName(revision))
}

func revisionName(revision uint64) string { return fmt.Sprintf("revision %d", revision) }

// parse parses documents as the controller sent them.
func (c *client) parse(revision uint64, documents string) (*model.Documents, error) {
	docs, err := policy.Parse([]policy.File{{Name: revisionName(revision), Data: []byte(documents)}})
	if err != nil {
		return nil, cannotf("the controller at %s sent documents that this command cannot read; are they of one version?\n%w", c.where, err)
	}
	return docs, nil
}

// newest returns the scene that the controller sent.
func (c *client) newest(r *pb.GetWorldResponse) (*scene, error) {
	s := &scene{
		inv:     &model.Inventory{Instances: make([]model.Instance, len(r.Instances))},
		options: compile.Options{Now: time.UnixMilli(r.TimeMs)},
		origin:  revisionName(r.Revision),
		online:  make(map[string]presence, len(r.Instances)),
	}
	var err error
	if s.docs, err = c.parse(r.Revision, r.Documents); err != nil {
		return nil, err
	}
	for i, p := range r.Instances {
		if s.inv.Instances[i], err = wire.InstanceFromProto(p); err != nil {
			return nil, cannotf("the controller at %s sent a workload that this command cannot read: %q: %w", c.where, p.Name, err)
		}
		s.online[p.Name] = presence{p.Declared, p.Connected}
	}
	for _, text := range r.Controllers {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, cannotf("the controller at %s says that it answers at %q, which is no IP:PORT", c.where, text)
		}
		s.options.Controllers = append(s.options.Controllers, at)
	}
	return s, nil
}
