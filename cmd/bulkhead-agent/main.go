// Command bulkhead-agent looks after one host: it keeps the host's policy in force and reports what it sees.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"bulkhead/internal/agent/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
