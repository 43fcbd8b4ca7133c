package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/policy"
	"bulkhead/internal/kube/importer"
)

// importView is what `import -o json` prints.
type importView struct {
	Manifests   string           `json:"manifests"`
	Policies    int              `json:"policies"`
	Diagnostics []diagnosticView `json:"diagnostics"`
}

// diagnosticView is an element of the input that the output does not simply repeat.
type diagnosticView struct {
	problemView
	Object string `json:"object"`
	Field  string `json:"field"`
}

func (a *app) importCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use:   "import",
		Short: "Turn the policies of other systems into policies that -f reads",
		Long: `Turn the policies of other systems into policies that -f reads, beside the manifests of the
pods, namespaces and nodes. An import never widens: what the output allows, the input allows.
What cannot be said is left out of what allows and widened in what denies; each time a line on
standard error names the place, what it means and what to do. docs/import.md lists it all.`,
	},
		a.importFrom("cilium", "Import CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2)", importer.Cilium),
		a.importFrom("calico", "Import NetworkPolicy, GlobalNetworkPolicy, Tier, NetworkSet and GlobalNetworkSet of Calico", importer.Calico),
	)
}

// importFrom is one command of import.
func (a *app) importFrom(name, short string, read func([]policy.File) (*importer.Result, error)) *cobra.Command {
	var (
		out               string
		strict, overwrite bool
	)
	cmd := &cobra.Command{
		Use:   name + " FILE…",
		Short: short,
		Long: short + `.

The manifests go to standard output, or with --out into a file in that directory; -o json prints
them together with the diagnostics. Other manifests in the files are passed over.

Exit status 1 if the output cannot hold something that the input denies (refused); with --strict
also if it denies something that the input allows (narrower). 2 if the input is at fault.`,
		Example: `  bulkhead import ` + name + ` policies/ > imported.yaml
  bulkhead check -f cluster.yaml -f imported.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs FILE: a file, a directory or - for standard input", cmd.CommandPath())
			}
			return onlyOneStdin(args...)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := readFiles(cmd, args)
			if err != nil {
				return err
			}
			result, err := read(files)
			if err != nil {
				problems := parseErrors(err)
				for _, e := range problems {
					complain(cmd, e.Error())
				}
				return usagef("%s in the manifests; nothing was imported", count(len(problems), "error"))
			}
			if result.Objects == 0 {
				return usagef("there is no policy of %s in the files", name)
			}
			text, err := result.Manifests()
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			if err := a.printImport(cmd, result, text, name, out, overwrite); err != nil {
				return err
			}
			worst := result.Worst()
			return answer(worst < importer.Refused && !(strict && worst >= importer.Narrower))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "write the manifests into this directory")
	flags.BoolVar(&overwrite, "overwrite", false, "with --out: replace the file that is there")
	flags.BoolVar(&strict, "strict", false, "exit with 1 also if the output denies what the input allows")
	return cmd
}

func (a *app) printImport(cmd *cobra.Command, result *importer.Result, text []byte, name, out string, overwrite bool) error {
	if out != "" {
		if err := writeImport(out, name+".yaml", text, overwrite); err != nil {
			return err
		}
	}
	if a.output == formatJSON {
		v := &importView{Manifests: string(text), Policies: len(result.Policies), Diagnostics: []diagnosticView{}}
		for i := range result.Diagnostics {
			d := &result.Diagnostics[i]
			p := problem(d.Pos, d.Severity.String(), d.Msg)
			p.Fix = d.Fix
			v.Diagnostics = append(v.Diagnostics, diagnosticView{p, d.Object, d.Field})
		}
		if err := writeJSON(cmd.OutOrStdout(), v); err != nil {
			return cannotf("write the output: %w", err)
		}
		return nil
	}
	if out == "" {
		if _, err := cmd.OutOrStdout().Write(text); err != nil {
			return cannotf("write the output: %w", err)
		}
	}
	said := [3]int{}
	for i := range result.Diagnostics {
		said[result.Diagnostics[i].Severity]++
		complain(cmd, result.Diagnostics[i].String())
	}
	summary := fmt.Sprintf("%s of %s became %s", count(result.Objects, "manifest"), name, counts(len(result.Policies), "one-sided policy", "one-sided policies"))
	if out != "" {
		summary += " in " + filepath.Join(out, name+".yaml")
	}
	complain(cmd, fmt.Sprintf("%s: %s, %d narrower, %d refused", summary, count(said[importer.Note], "note"), said[importer.Narrower], said[importer.Refused]))
	return nil
}

func counts(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func writeImport(dir, name string, text []byte, overwrite bool) error {
	path := filepath.Join(dir, name)
	if !overwrite {
		if _, err := os.Lstat(path); err == nil {
			return usagef("%s is there already; choose another --out, or replace it with --overwrite", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return cannotf("write the manifests: %w", err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cannotf("write the manifests: %w", err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return cannotf("write the manifests: %w", err)
	}
	return nil
}
