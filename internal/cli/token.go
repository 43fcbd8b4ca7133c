package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
)

// tokenView is one entry of `token list -o json`.
type tokenView struct {
	ID        string       `json:"id"`
	Token     string       `json:"token,omitempty"` // on creation only
	Host      string       `json:"host,omitempty"`
	Labels    model.Labels `json:"labels,omitempty"`
	UsesLeft  uint32       `json:"uses_left"`
	Expires   *time.Time   `json:"expires"`
	Created   *time.Time   `json:"created,omitempty"`
	CreatedBy string       `json:"created_by,omitempty"`
	Note      string       `json:"note,omitempty"`
}

func (a *app) tokenCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use:   "token",
		Short: "Join tokens, with which new agents enrol",
		Example: `  bulkhead token create --host web-1 --label app=portal,role=web,env=prod
  bulkhead token list
  bulkhead token revoke 5f2c1a`,
	}, a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var (
		host, note string
		labels     []string
		uses       uint32
		ttl        = spanFlag(time.Hour)
	)
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a join token; it is shown once",
		Long: `Make a join token; it is shown once. The token itself is all that goes to standard output,
so that it can be written to a file.`,
		Example: `  bulkhead token create --host web-1 --label app=portal,role=web > join.token
  bulkhead token create --uses 20 --ttl 2h --label env=prod --note "rack 7"`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			bound, err := parseLabels(labels)
			if err != nil {
				return err
			}
			if uses == 0 {
				return usagef("--uses 0: a token that nobody can use")
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.CreateToken, &pb.CreateTokenRequest{
				Host: host, Labels: bound, Uses: uses, TtlSeconds: int64(time.Duration(ttl).Seconds()), Note: note,
			})
			if err != nil {
				return err
			}
			v := tokenView{ID: r.Id, Token: r.Token, Host: host, Labels: bound, UsesLeft: uses, Expires: stamp(r.ExpiresMs), Note: note}
			if a.output == formatTable {
				cmd.PrintErrf("token %s: %s, expires %s. It is shown this once.\n", v.ID, count(uses, "use"), ago(v.Expires))
			}
			return a.print(cmd, v, func(p *page) { p.line("%s", v.Token) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&host, "host", "", "the only host name that may enrol with it")
	flags.StringArrayVar(&labels, "label", nil, "labels that the host gets: key=value,… (repeatable)")
	flags.Uint32Var(&uses, "uses", 1, "how many hosts may enrol with it")
	flags.Var(&ttl, "ttl", "how long it can be used")
	flags.StringVar(&note, "note", "", "what it is for")
	return cmd
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "The join tokens that can still be used",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.ListTokens, &pb.ListTokensRequest{})
			if err != nil {
				return err
			}
			views := make([]tokenView, len(r.Tokens))
			for i, t := range r.Tokens {
				views[i] = tokenView{
					ID: t.Id, Host: t.Host, Labels: t.Labels, UsesLeft: t.UsesLeft, Expires: stamp(t.ExpiresMs),
					Created: stamp(t.CreatedMs), CreatedBy: t.CreatedBy, Note: t.Note,
				}
			}
			return a.print(cmd, views, func(p *page) {
				t := newTable("ID", "HOST", "LABELS", ">USES LEFT", "EXPIRES", "BY", "NOTE")
				for _, v := range views {
					host := v.Host
					if host == "" {
						host = "any"
					}
					t.add(v.ID, host, orDash(v.Labels.String()), v.UsesLeft, ago(v.Expires), orDash(v.CreatedBy), v.Note)
				}
				p.table(t, "No token. Make one with: bulkhead token create")
			})
		},
	}
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Make a join token useless at once",
		Args:  takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if _, err := ask(cmd.Context(), c, c.RevokeToken, &pb.RevokeTokenRequest{Id: args[0]}); err != nil {
				return err
			}
			return a.print(cmd, map[string]string{"revoked": args[0]}, func(p *page) { p.line("token %s is revoked", args[0]) })
		},
	}
}

// parseLabels reads key=value pairs, separated by commas or given one by one.
func parseLabels(texts []string) (model.Labels, error) {
	labels := model.Labels{}
	for _, text := range texts {
		for pair := range strings.SplitSeq(text, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok {
				return nil, usagef("label %q: use key=value", pair)
			}
			if err := model.CheckLabelKey(key); err != nil {
				return nil, usagef("%w", err)
			}
			if err := model.CheckLabelValue(value); err != nil {
				return nil, usagef("%w", err)
			}
			if before, ok := labels[key]; ok && before != value {
				return nil, usagef("label %q is given twice: %q and %q", key, before, value)
			}
			labels[key] = value
		}
	}
	return labels, nil
}
