package shadow

import (
	"bytes"
	"unicode/utf8"
)

// Patch is what an update says about one section: the zero value leaves the
// section alone, Set without an Object drops it, and an Object is merged into
// it, where null removes a key.
type Patch struct {
	Set    bool
	Object Object // ignored unless Set; here nil is not empty
}

// Update is one update request.
type Update struct {
	Desired, Reported Patch
	// Version, when not nil, must equal the version of the stored document.
	Version *int64
	// ClientToken comes back in every answer; at most MaxClientTokenBytes.
	ClientToken string
	// Correlation is what the requester knows its request by, beside the document;
	// Result.Correlation hands it on to whoever sends the answer.
	Correlation []byte
	// MaxBytes is how much desired and reported together may take afterwards, in
	// compact JSON; 0: MaxStateBytes, and never more than StateBytesCeiling.
	MaxBytes int

	fault error // what NewUpdate could not read
	bytes int   // of the request; 0: there was none
}

// ParseUpdate reads the payload of an update request:
//
//	{"state":{"desired":{..}|null,"reported":{..}|null},"version":7,"clientToken":".."}
//
// The state is required; null there drops both sections. Unknown members
// beside it are passed over, and of a repeated key the last one counts. Every
// error is an *Error with the code and text of the AWS service.
func ParseUpdate(payload []byte) (Update, error) {
	top, err := parseTop(payload)
	if err != nil {
		return Update{}, err
	}
	u := Update{bytes: len(payload)}
	if u.Version, err = versionOf(top); err != nil {
		return Update{}, err
	}
	if u.ClientToken, err = tokenOf(top); err != nil {
		return Update{}, err
	}
	state, ok := top.Get("state")
	if !ok {
		return Update{}, invalid("Missing required node: state")
	}
	if err := u.readState(state); err != nil {
		return Update{}, err
	}
	return u, nil
}

// readState fills in the two patches from the state of a request.
func (u *Update) readState(v Value) (err error) {
	switch v.kind {
	case kindNull:
		u.Desired, u.Reported = Patch{Set: true}, Patch{Set: true}
		return nil
	case kindObject:
	default:
		return invalid("State node must be an object")
	}
	for _, m := range v.members {
		switch m.Key {
		case "desired":
			u.Desired, err = patchOf(m.Value, "Desired node must be an object")
		case "reported":
			u.Reported, err = patchOf(m.Value, "Reported node must be an object")
		case "delta": // a client's delta is ignored
		default:
			err = invalid("State contains an invalid node")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func patchOf(v Value, fault string) (Patch, error) {
	if v.kind != kindObject && v.kind != kindNull {
		return Patch{}, invalid(fault)
	}
	return Patch{Set: true, Object: v.members}, check(v.members, 1)
}

func versionOf(top Object) (*int64, error) {
	v, _ := top.Get("version")
	if v.IsNull() {
		return nil, nil
	}
	n, ok := v.integer()
	if !ok || n < 1 {
		return nil, invalid("Invalid version")
	}
	return &n, nil
}

func tokenOf(top Object) (string, error) {
	v, _ := top.Get("clientToken")
	if v.IsNull() {
		return "", nil
	}
	s, ok := v.Text()
	if !ok || len(s) > MaxClientTokenBytes {
		return "", invalid("Invalid clientToken")
	}
	return s, nil
}

// check holds what a request says of a section, or of an object that many levels below
// it, against the rules.
func check(o Object, level int) error {
	for i := range o {
		v := &o[i].Value
		if level+int(v.levels) > MaxDepth {
			return tooDeep()
		}
		if v.nulls {
			return invalid("State contains an invalid node")
		}
		if err := check(v.members, level+1); err != nil {
			return err
		}
	}
	return nil
}

// ParseGet reads the payload of a get request, which is empty or an object with
// a clientToken at most, and returns the token. Unknown members are passed over.
// Every error is an *Error.
func ParseGet(payload []byte) (clientToken string, err error) {
	if blank(payload) {
		return "", nil
	}
	top, err := parseTop(payload)
	if err != nil {
		return "", err
	}
	return tokenOf(top)
}

// blank reports whether there is nothing but white space.
func blank(payload []byte) bool { return len(bytes.TrimSpace(payload)) == 0 }

// parseTop reads the object that a request is.
func parseTop(payload []byte) (Object, error) {
	if len(payload) > MaxUpdateBytes {
		return nil, ErrTooLarge
	}
	if !utf8.Valid(payload) {
		return nil, ErrEncoding
	}
	v, err := parseValid(string(payload))
	if err == errNesting {
		return nil, tooDeep()
	}
	if err != nil || v.kind != kindObject {
		return nil, invalid("Invalid JSON")
	}
	return v.members, nil
}

// ClientToken returns the clientToken of a request of any kind, and "" when
// there is none or the payload is not well formed. It serves the answers to
// requests that are rejected before they are understood, and delete, whose body
// says nothing else.
func ClientToken(payload []byte) string {
	top, err := parseTop(payload)
	if err != nil {
		return ""
	}
	token, _ := tokenOf(top)
	return token
}
