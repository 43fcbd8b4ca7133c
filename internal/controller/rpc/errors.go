package rpc

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"

	"bulkhead/internal/controller/change"
	"bulkhead/internal/controller/quarantine"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/flowstore"
	"bulkhead/internal/store"
)

// observe measures requests, keeps panics of one from ending the controller, and records what fails by no fault of
// the caller.
func (s *Services) observe(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
		start := time.Now()
		defer func() {
			if r := recover(); r != nil {
				s.Log.Error("panic while serving", "procedure", spec.Procedure, "panic", r, "stack", string(debug.Stack()))
				err = connect.NewError(connect.CodeInternal, "the controller failed while serving this; its log says more")
			}
			if spec.StreamType != connect.StreamTypeUnary {
				return // how long streams last says nothing
			}
			code := "ok"
			if err != nil {
				code = connect.CodeOf(err).String()
			}
			s.Metrics.Requests.WithLabelValues(spec.Procedure, code).Observe(time.Since(start).Seconds())
		}()
		if spec.StreamType != connect.StreamTypeUnary {
			var cancel func()
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(s.Closing, cancel)()
		}
		return next(ctx, spec, stream)
	}
}

// fail turns an error into what the caller is told. The text of drivers and of the machine stays in the log.
func (s *Services) fail(doing string, err error) error {
	var (
		told    *connect.Error
		changed *change.Error
	)
	switch {
	case errors.As(err, &told):
		return told
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &changed):
		return connect.NewError(changeCodes[changed.Kind], changed.Text)
	case errors.Is(err, quarantine.ErrNoWorkload), errors.Is(err, quarantine.ErrNotHeld):
		return connect.NewError(connect.CodeNotFound, err.Error())
	case errors.Is(err, quarantine.ErrMalformed):
		return connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	if r := trust.AsRefusal(err); r != nil {
		return connect.NewError(refusalCodes[r.Kind], r.Text)
	}
	s.Metrics.StoreFailures.Inc()
	s.Log.Error("request failed", "doing", doing, "error", err)
	for _, c := range storeErrors {
		if errors.Is(err, c.err) {
			return connect.NewError(c.code, c.text).WithCause(err)
		}
	}
	return connect.NewError(connect.CodeInternal, "the controller failed; its log says more").WithCause(err)
}

var changeCodes = map[change.Kind]connect.Code{
	change.Invalid:  connect.CodeInvalidArgument,
	change.Unmet:    connect.CodeFailedPrecondition,
	change.Conflict: connect.CodeAborted,
	change.Missing:  connect.CodeNotFound,
}

var refusalCodes = map[trust.Kind]connect.Code{
	trust.Unauthenticated: connect.CodeUnauthenticated,
	trust.Forbidden:       connect.CodePermissionDenied,
	trust.Malformed:       connect.CodeInvalidArgument,
}

var storeErrors = []struct {
	err  error
	code connect.Code
	text string
}{
	{store.ErrFull, connect.CodeResourceExhausted, "the controller's disk is full and nothing was changed; make room in its data directory and try again"},
	{store.ErrBusy, connect.CodeUnavailable, "the controller's store is locked and nothing was changed; try again"},
	{store.ErrCorrupt, connect.CodeDataLoss, "the controller's store is damaged; its log says where; restore its data directory from a backup"},
	{flowstore.ErrFull, connect.CodeResourceExhausted, "the disk of the flow history is full; make room in the controller's data directory"},
	{flowstore.ErrBusy, connect.CodeUnavailable, "the flow history is locked; try again"},
	{flowstore.ErrCorrupt, connect.CodeDataLoss, "the flow history is damaged; remove flows.db from the controller's data directory and restart it, policy is not in there"},
	{store.ErrNotFound, connect.CodeNotFound, "there is no such thing"},
}
