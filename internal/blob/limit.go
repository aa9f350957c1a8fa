package blob

import (
	"context"
	"fmt"
	"io"
)

// Limit reads r until the first of: the end, an error of r, the end of ctx, or
// one byte more than limit bytes, which is ErrTooLarge. Every adapter of Store
// reads bodies through it, so that all of them refuse alike. A Read that blocks
// in r is not interrupted by ctx: who owns r closes it.
func Limit(ctx context.Context, r io.Reader, limit int64) io.Reader {
	return &limited{ctx: ctx, src: r, limit: limit, left: limit}
}

type limited struct {
	ctx   context.Context // of the one Put this reader lives in
	src   io.Reader
	limit int64 // bytes, as given
	left  int64 // bytes, -1 once exceeded
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.left < 0 {
		return 0, l.tooLarge()
	}
	if int64(len(p))-1 > l.left {
		p = p[:l.left+1]
	}
	n, err := l.src.Read(p)
	if int64(n) > l.left {
		n, l.left = int(l.left), -1
		return n, l.tooLarge()
	}
	l.left -= int64(n)
	return n, err
}

func (l *limited) tooLarge() error {
	return fmt.Errorf("%w: more than %d bytes; raise the limit or send a smaller image", ErrTooLarge, l.limit)
}
