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
	// SIGHUP, too: who runs it in a session over the network and has just cut himself off gets his way in back, as the
	// agent rolls a trial back when it ends.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := command.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
