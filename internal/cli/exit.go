package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"bulkhead/internal/harmless"
)

// Exit statuses (DESIGN §5).
const (
	ExitGood   = 0 // done, or the answer is yes
	ExitNo     = 1 // the answer is no
	ExitUsage  = 2 // wrong use: the arguments or the documents are at fault
	ExitCannot = 3 // it cannot be done: something is out of reach or cannot be read
)

// exitError is an error with an exit status. Without an error in it everything has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// ExitCode returns the status with which the program ends. Commands that others add to the root may return errors
// with such a method too; an error without one is ExitCannot.
func (e *exitError) ExitCode() int { return e.code }

// usagef says that the command was used wrongly.
func usagef(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// cannotf says that something stands in the way.
func cannotf(format string, args ...any) error {
	return &exitError{ExitCannot, fmt.Errorf(format, args...)}
}

// nof says that the answer is no, and why.
func nof(format string, args ...any) error {
	return &exitError{ExitNo, fmt.Errorf(format, args...)}
}

// answer is nil for yes and a silent ExitNo for no: what was printed says it all.
func answer(yes bool) error {
	if yes {
		return nil
	}
	return &exitError{code: ExitNo}
}

// Run runs root with the arguments of the process until it is done or interrupted, prints its error and returns the
// exit status.
func Run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitGood
	}
	code := ExitCannot
	var coded interface{ ExitCode() int }
	switch {
	case errors.As(err, &coded):
		code = coded.ExitCode()
	case strings.HasPrefix(err.Error(), "unknown command "): // of cobra, for commands that do not use noSuchCommand
		code = ExitUsage
	}
	var silent *exitError
	switch {
	case errors.As(err, &silent) && silent.err == nil:
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(root.ErrOrStderr(), "bulkhead: interrupted")
	default:
		complain(root, fmt.Sprintf("bulkhead: %v", err))
	}
	return code
}

// complain prints to standard error, harmlessly.
func complain(cmd *cobra.Command, text string) { cmd.PrintErrln(harmless.Text(text, false)) }
