// Command bulkhead-controller holds the policy of all hosts, gives each agent its part and takes flows in.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"bulkhead/internal/controller/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
