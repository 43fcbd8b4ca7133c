// Command bulkhead is the command line of Bulkhead.
package main

import (
	"os"

	"bulkhead/internal/cli"
	"bulkhead/lab"
)

func main() {
	root := cli.New()
	root.AddCommand(lab.Command())
	os.Exit(cli.Run(root))
}
