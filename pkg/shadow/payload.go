package shadow

import "time"

// payloadGuess is a first guess of the bytes of a payload besides its state.
const payloadGuess = 192

// payload starts the encoder of an answer.
func payload(size int) *encoder {
	return &encoder{buf: append(make([]byte, 0, payloadGuess+size), '{')}
}

// finish writes the members that end every answer.
func (e *encoder) finish(token string, now int64) []byte {
	e.int("timestamp", now)
	if token != "" {
		e.member("clientToken")
		e.buf = appendString(e.buf, token)
	}
	e.close()
	return e.buf
}

// Correlation is that of the update, nil for none.
func (r Result) Correlation() []byte { return r.update.Correlation }

// AcceptedPayload returns the payload for update/accepted: the fields of the
// request, nulls included, and their timestamps.
func (r Result) AcceptedPayload() []byte {
	u := r.update
	size := u.bytes // which is hardly more than what it says
	if size == 0 {
		size = u.Desired.Object.size() + u.Reported.Object.size()
	}
	e := payload(3 * size)
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
		e.value(Value{})
	default:
		e.member(name)
		e.object(p.Object)
	}
}

func (e *encoder) patchStamps(name string, p Patch, now int64) {
	if p.Set && p.Object != nil {
		e.member(name)
		e.stamps(p.Object, now)
	}
}

// sectionStamps writes when the leaves of a section were written, unless nothing says.
func (e *encoder) sectionStamps(name string, o Object, given int64) {
	if at, _, mixed := o.value().time(given); at != 0 || mixed {
		e.member(name)
		e.stamps(o, given)
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
	e := payload(3 * delta.size())
	e.int("version", r.Document.Version)
	e.member("state")
	e.object(delta)
	e.member("metadata")
	e.stamps(delta, r.Document.DesiredAt)
	return e.finish(r.update.ClientToken, r.now)
}

// DocumentsPayload returns the payload for update/documents: the document
// before and after, the former null when the update created the shadow.
func (r Result) DocumentsPayload() []byte {
	e := payload(3 * (r.previous.size() + r.Document.size()))
	e.member("previous")
	if r.previous.Exists() {
		e.document(r.previous)
	} else {
		e.value(Value{})
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
	e.close()
}

func (e *encoder) metadata(d Document) {
	e.open("metadata")
	e.sectionStamps("desired", d.Desired, d.DesiredAt)
	e.sectionStamps("reported", d.Reported, d.ReportedAt)
	e.close()
}

// GetAccepted returns the payload for get/accepted, which is also the body of
// the REST answer: the sections that are not empty, the delta if there is one,
// the metadata of the sections, and the version.
func (d Document) GetAccepted(clientToken string, now time.Time) []byte {
	e := payload(4 * d.size())
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
