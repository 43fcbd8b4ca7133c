package traffic

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Classify says what an error of a socket means.
func Classify(err error) Outcome {
	var netErr net.Error
	switch {
	case err == nil:
		return OK
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Denied
	case errors.Is(err, unix.ECONNREFUSED):
		return Refused
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPIPE),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Unreachable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.As(err, &netErr) && netErr.Timeout():
		return Timeout
	}
	return Failed
}

// settle writes the outcome of an attempt into its entry.
func (e *Entry) settle(err error) {
	e.Outcome = Classify(err)
	if err != nil {
		e.Err = err.Error()
	}
}
