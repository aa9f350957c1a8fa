package fleet

import "context"

type principalKey struct{}

// WithPrincipal notes the name of the API token that a request was let in by.
func WithPrincipal(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, principalKey{}, name)
}

// principal is whose request it is; empty: nobody's.
func principal(ctx context.Context) string {
	name, _ := ctx.Value(principalKey{}).(string)
	return name
}
