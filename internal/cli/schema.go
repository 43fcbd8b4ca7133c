package cli

import (
	"github.com/spf13/cobra"

	"bulkhead/internal/core/policy"
)

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of documents, for editors",
		Long: `Print the JSON Schema (draft 2020-12) of one document of any kind. Editors complete fields
and underline mistakes with it. With the YAML language server (VS Code: the extension
redhat.vscode-yaml) write as the first line of a file

  # yaml-language-server: $schema=bulkhead.schema.json

or name the schema for a directory in settings.json:

  "yaml.schemas": {"./bulkhead.schema.json": "policy/**/*.yaml"}

What no schema can see is found by bulkhead check.`,
		Example: `  bulkhead schema > bulkhead.schema.json`,
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := cmd.OutOrStdout().Write(policy.Schema()); err != nil {
				return cannotf("write the output: %w", err)
			}
			return nil
		},
	}
}
