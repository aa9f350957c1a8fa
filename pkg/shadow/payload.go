package shadow

import (
	"strconv"
	"time"
)

// payloadGuess is a first guess of the bytes of a payload besides its state.
const payloadGuess = 192

// payload starts the encoder of an answer.
func payload(size int) *encoder {
	e := newEncoder(payloadGuess + size)
	e.buf = append(e.buf, '{')
	return e
}

// finish writes the members that end every answer.
func (e *encoder) finish(token string, now int64) []byte {
	e.int("timestamp", now)
	if token != "" {
		e.member("clientToken")
		e.buf = appendString(e.buf, token)
	}
	return append(e.buf, '}')
}

func (e *encoder) int(name string, n int64) {
	e.member(name)
	e.buf = strconv.AppendInt(e.buf, n, 10)
}

func (e *encoder) open(name string) {
	e.member(name)
	e.buf = append(e.buf, '{')
}

func (e *encoder) close() { e.buf = append(e.buf, '}') }

// Correlation is that of the update, nil for none.
func (r Result) Correlation() []byte { return r.update.Correlation }

// AcceptedPayload returns the payload for update/accepted: the fields of the
// request, nulls included, and their timestamps.
func (r Result) AcceptedPayload() []byte {
	u := r.update
	e := payload(3 * (sizeOf(u.Desired.Object) + sizeOf(u.Reported.Object)))
	e.open("state")
	e.patch("desired", u.Desired)
	e.patch("reported", u.Reported)
	e.close()
	e.open("metadata")
	e.patchStamps("desired", u.Desired, r.now)
	e.patchStamps("reported", u.Reported, r.now)
	e.close()
	e.int("version", r.Document.Version)
	return e.finish(u.ClientToken, r.now)
}

func (e *encoder) patch(name string, p Patch) {
	switch {
	case !p.Set:
	case p.Object == nil:
		e.member(name)
		e.buf = append(e.buf, "null"...)
	default:
		e.member(name)
		e.object(p.Object)
	}
}

func (e *encoder) patchStamps(name string, p Patch, now int64) {
	if p.Set && p.Object != nil {
		e.member(name)
		e.mirror(p.Object, Stamp(now))
	}
}

// mirror writes v with the timestamp at in place of every leaf.
func (e *encoder) mirror(v any, at Stamp) {
	switch v := v.(type) {
	case map[string]any:
		e.buf = append(e.buf, '{')
		start, end := e.sorted(v)
		for i := start; i < end; i++ {
			k := e.keys[i]
			e.member(k)
			e.mirror(v[k], at)
		}
		e.pop(start)
		e.buf = append(e.buf, '}')
	case []any:
		e.buf = append(e.buf, '[')
		for i, c := range v {
			if i > 0 {
				e.buf = append(e.buf, ',')
			}
			e.mirror(c, at)
		}
		e.buf = append(e.buf, ']')
	default:
		e.stamp(at)
	}
}

func (e *encoder) stamp(s Stamp) {
	e.buf = append(e.buf, `{"timestamp":`...)
	e.buf = strconv.AppendInt(e.buf, int64(s), 10)
	e.buf = append(e.buf, '}')
}

// meta writes the metadata of v as clients see it: of all that is in v, though
// meta may know more.
func (e *encoder) meta(v, meta any) {
	switch meta := meta.(type) {
	case Stamp:
		e.mirror(v, meta)
	case map[string]any:
		state, _ := v.(map[string]any)
		e.metaOf(state, meta)
	default:
		e.buf = append(e.buf, "{}"...)
	}
}

func (e *encoder) metaOf(state, meta map[string]any) {
	e.buf = append(e.buf, '{')
	start, end := e.sorted(state)
	for i := start; i < end; i++ {
		k := e.keys[i]
		if m, ok := meta[k]; ok {
			e.member(k)
			e.meta(state[k], m)
		}
	}
	e.pop(start)
	e.buf = append(e.buf, '}')
}

func (e *encoder) metaSection(name string, state map[string]any, meta any) {
	if len(state) > 0 && meta != nil {
		e.member(name)
		e.meta(state, meta)
	}
}

// DeltaPayload returns the payload for update/delta, the bare delta and
// desired's metadata of it; nil when desired and reported agree. There is one
// after every update that leaves a difference, also when the update did not
// touch it.
func (r Result) DeltaPayload() []byte {
	delta := r.Document.Delta()
	if len(delta) == 0 {
		return nil
	}
	e := payload(3 * sizeOf(delta))
	e.int("version", r.Document.Version)
	e.member("state")
	e.object(delta)
	e.member("metadata")
	e.meta(delta, r.Document.DesiredMeta)
	return e.finish(r.update.ClientToken, r.now)
}

// DocumentsPayload returns the payload for update/documents: the document
// before and after, the former null when the update created the shadow.
func (r Result) DocumentsPayload() []byte {
	e := payload(3 * (stateSize(r.previous) + stateSize(r.Document)))
	e.member("previous")
	if r.previous.Exists() {
		e.document(r.previous)
	} else {
		e.buf = append(e.buf, "null"...)
	}
	e.member("current")
	e.document(r.Document)
	return e.finish(r.update.ClientToken, r.now)
}

func (e *encoder) document(d Document) {
	e.buf = append(e.buf, '{')
	e.open("state")
	e.section("desired", d.Desired)
	e.section("reported", d.Reported)
	e.close()
	e.metadata(d)
	e.int("version", d.Version)
	e.buf = append(e.buf, '}')
}

func (e *encoder) metadata(d Document) {
	e.open("metadata")
	e.metaSection("desired", d.Desired, d.DesiredMeta)
	e.metaSection("reported", d.Reported, d.ReportedMeta)
	e.close()
}

// GetAccepted returns the payload for get/accepted, which is also the body of
// the REST answer: the sections that are not empty, the delta if there is one,
// the metadata of the sections, and the version.
func (d Document) GetAccepted(clientToken string, now time.Time) []byte {
	e := payload(4 * stateSize(d))
	e.open("state")
	e.section("desired", d.Desired)
	e.section("reported", d.Reported)
	e.section("delta", d.Delta())
	e.close()
	e.metadata(d)
	e.int("version", d.Version)
	return e.finish(clientToken, now.Unix())
}

// DeleteAccepted returns the payload for delete/accepted: the version of the
// document that was deleted.
func DeleteAccepted(deleted Document, clientToken string, now time.Time) []byte {
	e := payload(0)
	e.int("version", deleted.Version)
	return e.finish(clientToken, now.Unix())
}

// Payload returns the payload for the rejected topics.
func (e *Error) Payload(clientToken string, now time.Time) []byte {
	w := payload(len(e.Message))
	w.int("code", int64(e.Code))
	w.member("message")
	w.buf = appendString(w.buf, e.Message)
	return w.finish(clientToken, now.Unix())
}
