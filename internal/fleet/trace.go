package fleet

import (
	"context"
	"log/slog"
)

type traceKey struct{}

// WithTrace notes the id of the request that ctx is of. What is no trace id is
// not noted.
func WithTrace(ctx context.Context, id string) context.Context {
	if !ValidTrace(id) {
		return ctx
	}
	return context.WithValue(ctx, traceKey{}, id)
}

// logger is Log, with the trace id of the request.
func (s *Service) logger(ctx context.Context) *slog.Logger {
	if id, ok := ctx.Value(traceKey{}).(string); ok {
		return s.Log.With("trace", id)
	}
	return s.Log
}
