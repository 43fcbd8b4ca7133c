// Command bulkhead is the command line of Bulkhead.
package main

import (
	"os"

	"bulkhead/internal/cli"
	"bulkhead/lab"
)

func main() {
	os.Exit(cli.Run(cli.New(lab.Command())))
}
