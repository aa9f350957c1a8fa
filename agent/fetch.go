package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

// Limits of a download.
const (
	// spanBytes is how much is written between two watermarks: what a power cut
	// costs at most.
	spanBytes = 8 << 20
	// maxBadChunks is how often in a row the same chunk may be wrong.
	maxBadChunks = 5
	// maxBarren is how often in a row a source may fail, other than by being
	// unreachable, without one good chunk.
	maxBarren = 100
	// progressEvery bounds how often progress is reported.
	progressEvery = 5 * time.Second
	progressSteps = 10
)

// download fills the inactive slot from the record's watermark on.
type download struct {
	a    *Agent
	rec  Record
	plan plan
	slot SlotWriter

	written  int // chunks written
	unsynced int64
	bytes    int64 // fetched since the last count
	reported time.Time
	step     int
}

// stepFetchInWindow is stepFetch while the window lets it.
func (a *Agent) stepFetchInWindow(ctx context.Context) (Record, error) {
	anytime := a.rec.Window == (ota.Window{}) || a.rec.Window.Fetch == ota.FetchAnytime
	if !anytime {
		if p, opens := a.shut(a.rec.Window); !opens {
			return a.refuseLate(a.rec, reasonNeverOpens)
		} else if p.reason != "" {
			return a.guarded(ctx, false, func(ctx context.Context) (Record, error) {
				return a.rec, a.await(ctx, a.rec, p)
			})
		}
	}
	a.goesOn()
	return a.guarded(ctx, !anytime, a.stepFetch)
}

// stepFetch writes verified chunks into the inactive slot until it is full.
func (a *Agent) stepFetch(ctx context.Context) (Record, error) {
	p, rec, err := a.planFor(ctx)
	if err != nil || rec.State != StateFetch {
		return rec, err
	}
	if err := a.cfg.Boot.MarkUnbootable(); err != nil {
		return rec, diskError{err}
	}
	slot, err := a.cfg.Boot.OpenInactive(p.index.RawSize)
	if err != nil {
		return rec, diskError{err}
	}
	d := &download{a: a, rec: rec, plan: p, slot: slot}
	next, err := d.run(ctx)
	if closeErr := slot.Close(); err == nil && closeErr != nil {
		err = diskError{closeErr}
	}
	return next, err
}

// planFor returns the verified plan of the execution, from this life or anew,
// however long the server is away. A record in another state comes back when
// the release must not be fetched any more, or can not be verified.
func (a *Agent) planFor(ctx context.Context) (plan, Record, error) {
	rec := a.rec
	for a.checked == nil {
		p, err := a.verify(ctx, rec)
		if err == nil {
			a.holds(p)
			break
		}
		if isDisk(err) || ctx.Err() != nil {
			return p, rec, errors.Join(ctx.Err(), err)
		}
		if rec = rec.tried(err); rec.State != StateFetch {
			return p, rec, nil
		}
		a.note(err)
		if err := a.retry.wait(ctx); err != nil {
			return p, rec, err
		}
	}
	a.retry.reset()
	rec.Waits, rec.Doubts = 0, 0
	if a.checked.manifest.ImageDigest != rec.ToDigest {
		return *a.checked, rec.at(StateChecked), nil // signed anew with another image
	}
	return *a.checked, rec, nil
}

func (d *download) run(ctx context.Context) (Record, error) {
	if !d.spanHolds() {
		d.rec.Watermark, d.rec.SpanStart = 0, 0
	}
	d.written = d.rec.Watermark
	d.progress()
	barren, bad := 0, 0
	dec := image.NewDecoder(d.plan.index)
	for d.written < len(d.plan.index.Chunks) {
		if d.rec.Stores > maxStores {
			return failed(d.rec, ota.Failed, reasonTooManyStores), nil
		}
		before := d.written
		err := d.stream(ctx, dec)
		if isDisk(err) {
			return d.rec, err
		}
		if err := d.mark(); err != nil {
			return d.rec, err
		}
		if ctx.Err() != nil {
			return d.rec, ctx.Err()
		}
		if err == nil {
			continue
		}
		if d.written > before {
			barren, bad = 0, 0
			d.a.retry.reset()
		}
		if !errors.Is(err, ErrUnreachable) {
			barren++
		}
		if errors.Is(err, image.ErrChunk) || errors.Is(err, ErrNoSuchFile) {
			bad++
		}
		if bad >= maxBadChunks || barren >= maxBarren {
			return failed(d.rec, ota.Failed, "download: "+err.Error()), nil
		}
		d.a.note(fmt.Errorf("download of %s, %d of %d chunks: %w", d.rec.ID(), d.written, len(d.plan.index.Chunks), err))
		if err := d.a.retry.wait(ctx); err != nil {
			return d.rec, err
		}
	}
	d.a.retry.reset()
	return d.rec.at(StateStaged), nil
}

// stream fetches from the first missing chunk on until something fails.
func (d *download) stream(ctx context.Context, dec *image.Decoder) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	_, offset := d.plan.index.Span(d.written)
	body, err := d.a.cfg.Source.Image(ctx, d.plan.manifest.ImageDigest, offset, -1)
	if err != nil {
		return err
	}
	counted := &countReader{r: body}
	err = dec.Stream(ctx, counted, d.written, d.write)
	d.bytes += counted.n
	if closeErr := body.Close(); err == nil && closeErr != nil {
		return nil // every chunk was verified: how the peer says goodbye is no matter
	}
	return err
}

// write puts one verified chunk into the slot.
func (d *download) write(chunk int, offset int64, raw []byte) error {
	if _, err := d.slot.WriteAt(raw, offset); err != nil {
		return diskError{fmt.Errorf("write slot %s: %w", d.rec.To, err)}
	}
	d.written = chunk + 1
	d.unsynced += int64(len(raw))
	if d.unsynced >= spanBytes {
		return d.mark()
	}
	return nil
}

// mark makes what was written durable, and only then says so in the journal.
func (d *download) mark() error {
	d.rec.Bytes += d.bytes
	d.bytes = 0
	if d.written == d.rec.Watermark {
		return nil
	}
	if err := d.slot.Sync(); err != nil {
		return diskError{fmt.Errorf("sync slot %s: %w", d.rec.To, err)}
	}
	d.rec.SpanStart, d.rec.Watermark, d.unsynced = d.rec.Watermark, d.written, 0
	if err := d.a.store(&d.rec); err != nil {
		return err
	}
	d.progress()
	return nil
}

// progress reports each tenth, and at least progressEvery apart.
func (d *download) progress() {
	now := d.a.cfg.Now()
	step := progressSteps * d.written / len(d.plan.index.Chunks)
	if !d.reported.IsZero() && (step == d.step || now.Sub(d.reported) < progressEvery) {
		return
	}
	d.reported, d.step = now, step
	d.a.report(d.rec, ota.StepFetching, map[string]string{ota.DetailBytes: strconv.FormatInt(d.rec.Bytes, 10)})
}

// spanHolds re-hashes the last span below the watermark: what a disk that lied
// about its cache would have lost.
func (d *download) spanHolds() bool {
	ix := d.plan.index
	if d.rec.Watermark > len(ix.Chunks) || d.rec.SpanStart > d.rec.Watermark {
		return false
	}
	if d.rec.Watermark == 0 {
		return true
	}
	r, err := d.a.cfg.Boot.OpenSlot(d.rec.To)
	if err != nil {
		return false
	}
	defer r.Close()
	buf := make([]byte, image.MaxChunkBytes)
	offset, _ := ix.Span(d.rec.SpanStart)
	for _, c := range ix.Chunks[d.rec.SpanStart:d.rec.Watermark] {
		raw := buf[:c.Raw]
		if n, _ := r.ReadAt(raw, offset); n < len(raw) {
			return false
		}
		if sum := sha256.Sum256(raw); [image.DigestSize]byte(sum[:]) != c.Digest {
			return false
		}
		offset += int64(len(raw))
	}
	return true
}

// digestOf reads a slot whole and returns the digest of its first size bytes.
func (a *Agent) digestOf(ctx context.Context, slot string, size int64) (string, error) {
	r, err := a.cfg.Boot.OpenSlot(slot)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		h.Write(buf[:n])
		at += int64(n)
		if err != nil && at < size {
			return "", fmt.Errorf("read slot %s back: %w", slot, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
