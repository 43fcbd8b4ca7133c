package cli

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/plan"
)

func (a *app) planCommand() *cobra.Command {
	var (
		files, remove []string
		prune         bool
		since         string
	)
	cmd := &cobra.Command{
		Use:   "plan -f DIR|FILE|-",
		Short: "What apply would open, close and break; changes nothing",
		Long: `Say what apply would do and change nothing: which communications open and close, which
recorded flows would break, whether guardrails and expectations hold, and whether every host can
hold what it would be given.

Exit status 1 if a guardrail or an expectation fails, or if a host cannot hold the result. Flows
that break are for you to decide about and do not fail a plan.`,
		Example: `  bulkhead plan -f policy/
  bulkhead plan -f policy/ --prune --since 30d
  bulkhead plan --remove policy/payments-legacy -o json`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files)+len(remove) == 0 {
				return usagef("plan needs -f or --remove: what is to change?")
			}
			req := &pb.PlanRequest{Prune: prune}
			for _, text := range remove {
				ref, err := parseRef(text)
				if err != nil {
					return err
				}
				req.Remove = append(req.Remove, ref)
			}
			from, err := parseMoment(since, time.Now())
			if err != nil {
				return err
			}
			req.FlowsSinceMs = from.UnixMilli()
			docs, err := readFiles(cmd, files)
			if err != nil {
				return err
			}
			if err := documentsOnly(docs); err != nil {
				return err
			}
			req.Files = toProto(docs)
			c, err := a.connect()
			if err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "planning", 0)
			r, err := ask(cmd.Context(), c, c.Plan, req)
			bar.finish()
			if err != nil {
				return badDocuments(cmd, err, "nothing was planned")
			}
			var p plan.Plan
			if err := json.Unmarshal([]byte(r.PlanJson), &p); err != nil {
				return cannotf("the controller at %s sent a plan that this command cannot read: %w", c.where, err)
			}
			// The plan is passed on as it came, with whatever a newer controller says in it.
			if err := a.print(cmd, json.RawMessage(r.PlanJson), func(page *page) { page.text(p.Text()) }); err != nil {
				return err
			}
			return answer(r.Ok)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&files, "file", "f", nil, "documents: a directory, a file or - (repeatable)")
	flags.StringArrayVar(&remove, "remove", nil, "remove a document: KIND/NAME (repeatable)")
	flags.BoolVar(&prune, "prune", false, "remove the documents that are not in -f")
	flags.StringVar(&since, "since", "24h", "judge the flows recorded since then: how long ago, or a time")
	return cmd
}

// parseRef reads KIND/NAME.
func parseRef(text string) (*pb.DocumentRef, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || name == "" {
		return nil, usagef("--remove %q: use KIND/NAME, such as policy/payments", text)
	}
	k, err := parseKind(kind)
	if err != nil {
		return nil, err
	}
	return &pb.DocumentRef{Kind: string(k), Name: name}, nil
}
