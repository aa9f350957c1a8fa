package main

import (
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bar shows how far a stream has come; off a terminal it shows nothing.
type bar struct {
	pool *mpb.Progress
	bar  *mpb.Bar
}

// progress starts a bar over a number of bytes. End it with done.
func (a *app) progress(what string, size int64) bar {
	if a.flags.quiet || !a.terminal(a.stderr) {
		return bar{}
	}
	pool := mpb.New(mpb.WithOutput(a.stderr), mpb.WithAutoRefresh(), mpb.WithWidth(40))
	b := pool.AddBar(size,
		mpb.PrependDecorators(decor.Name(what, decor.WC{W: 8, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name("  "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	return bar{pool: pool, bar: b}
}

// set says how many bytes are done.
func (b bar) set(n int64) {
	if b.bar != nil {
		b.bar.SetCurrent(n)
	}
}

// done ends the bar and waits until it is drawn; what did not finish is left as
// it stands.
func (b bar) done(finished bool) {
	if b.bar == nil {
		return
	}
	if finished {
		b.bar.SetTotal(-1, true)
	} else {
		b.bar.Abort(false)
	}
	b.pool.Wait()
}
