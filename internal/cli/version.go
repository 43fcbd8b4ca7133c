package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"bulkhead/internal/version"
)

// versionView is what `version -o json` prints.
type versionView struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a tree with changes that are in no commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Which build this is",
		Args:  takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildVersion()
			return a.print(cmd, v, func(p *page) {
				p.line("bulkhead %s", v.Version)
				if v.Commit != "" {
					modified := ""
					if v.Modified {
						modified = ", modified"
					}
					p.line("commit %s of %s%s", v.Commit, v.Time, modified)
				}
				p.line("%s %s", v.Go, v.Platform)
			})
		},
	}
}

func buildVersion() versionView {
	v := versionView{Version: version.String(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
