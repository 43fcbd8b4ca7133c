package cli

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
)

// diffFlags are the flags of diff.
type diffFlags struct {
	scene    sceneFlags
	base     string
	to       uint64
	flows    string
	exitCode bool
}

func (a *app) diffCommand() *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:   "diff --base OLD",
		Short: "The communications that a change opens and closes",
		Long: `Compare two states of the policy by what they allow, not by how they are written: the
communications that open and close, and with --flows the recorded flows whose verdict changes.

OLD is a directory or file, or the number of a revision of the controller. The new state is -f,
or a revision of the controller (--to, the newest if not given).`,
		Example: `  bulkhead diff -f policy/ --base policy-of-last-week/
  bulkhead diff -f policy/ --base policy-main/ --flows flows.jsonl -o json
  bulkhead diff --base 11 --to 12
  bulkhead diff -f policy/ --base 12 --exit-code      # status 1 if anything opens or closes`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			before, after, revision, err := a.diffScenes(cmd, &f)
			if err != nil {
				return err
			}
			was, err := before.world(cmd, "nothing was compared")
			if err != nil {
				return err
			}
			is, err := after.world(cmd, "nothing was compared")
			if err != nil {
				return err
			}
			var flows []model.RecordedFlow
			if f.flows != "" {
				if flows, err = readRecords(cmd, f.flows); err != nil {
					return err
				}
			}
			bar := newProgress(cmd.ErrOrStderr(), "comparing", 0)
			p, err := plan.Make(was, is, flows, plan.Options{BaseRevision: revision})
			bar.finish()
			if err != nil {
				return cannotf("%w", err)
			}
			if err := a.print(cmd, p, func(page *page) { page.text(p.Text()) }); err != nil {
				return err
			}
			changes := len(p.Opened)+len(p.Closed)+len(p.WouldClose)+len(p.WouldOpen) > 0
			return answer(!f.exitCode || !changes)
		},
	}
	f.scene.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.base, "base", "", "the old state: a directory, a file, or a revision of the controller")
	flags.Uint64Var(&f.to, "to", 0, "the new state, without -f: a revision of the controller; 0 is the newest")
	flags.StringVar(&f.flows, "flows", "", "recorded flows to judge in both states: JSON lines, a file or -")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit with status 1 if anything opens or closes")
	return cmd
}

// diffScenes returns the old and the new state, and the revision of the old one if it is one.
func (a *app) diffScenes(cmd *cobra.Command, f *diffFlags) (before, after *scene, revision uint64, err error) {
	fail := func(err error) (*scene, *scene, uint64, error) { return nil, nil, 0, err }
	switch {
	case f.base == "":
		return fail(usagef("diff needs --base: compared with what? To compare -f with what the controller holds, use bulkhead plan"))
	case f.to != 0 && len(f.scene.files) > 0:
		return fail(usagef("--to names the new state, and so does -f: use one of them"))
	}
	if err := onlyOneStdin(append([]string{f.base, f.flows, f.scene.workloads}, f.scene.files...)...); err != nil {
		return fail(err)
	}
	old, isFile, err := baseOf(f.base)
	if err != nil {
		return fail(err)
	}
	if isFile {
		if len(f.scene.files) == 0 {
			return fail(usagef("--base %s is a file; the new state is one too: add -f", f.base))
		}
		before, after, err = f.offline(cmd)
		return before, after, 0, err
	}
	before, after, err = a.diffOnline(cmd, f, old)
	return before, after, old, err
}

// baseOf says what --base names: a file or directory, or a revision.
func baseOf(text string) (revision uint64, isFile bool, err error) {
	_, err = os.Stat(text)
	if err == nil || text == "-" {
		return 0, true, nil
	}
	if n, e := strconv.ParseUint(text, 10, 64); e == nil && n > 0 {
		return n, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, false, cannotRead(err)
	}
	return 0, false, cannotf("--base %s is neither a file, nor a directory, nor the number of a revision", text)
}

func (f *diffFlags) offline(cmd *cobra.Command) (before, after *scene, err error) {
	parts := [2]*scene{}
	for i, paths := range [2][]string{{f.base}, f.scene.files} {
		files, err := readFiles(cmd, paths)
		if err != nil {
			return nil, nil, err
		}
		docs, err := parse(cmd, files, "nothing was compared")
		if err != nil {
			return nil, nil, err
		}
		if parts[i], err = f.scene.offline(cmd, docs); err != nil {
			return nil, nil, err
		}
		parts[i].origin = strings.Join(paths, ", ")
	}
	parts[1].options.Now = parts[0].options.Now // one moment for both
	return parts[0], parts[1], nil
}

// diffOnline compares a revision with another one, or with files, over the workloads that the controller knows now.
func (a *app) diffOnline(cmd *cobra.Command, f *diffFlags, old uint64) (before, after *scene, err error) {
	files := f.scene.files
	f.scene.files = nil
	now, err := a.online(cmd, &f.scene)
	if err != nil {
		return nil, nil, err
	}
	c, err := a.connect()
	if err != nil {
		return nil, nil, err
	}
	if before, err = c.sceneUnder(cmd, now, old); err != nil {
		return nil, nil, err
	}
	if len(files) == 0 {
		after, err = c.sceneUnder(cmd, now, f.to)
		return before, after, err
	}
	read, err := readFiles(cmd, files)
	if err != nil {
		return nil, nil, err
	}
	if err := documentsOnly(read); err != nil {
		return nil, nil, err
	}
	docs, err := parse(cmd, read, "nothing was compared")
	if err != nil {
		return nil, nil, err
	}
	after, err = now.under(docs, strings.Join(files, ", "))
	return before, after, err
}
