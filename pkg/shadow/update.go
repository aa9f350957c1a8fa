package shadow

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// Patch is what an update says about one section: the zero value leaves the
// section alone, Set without an Object drops it, and an Object is merged into
// it, where null removes a key.
type Patch struct {
	Set    bool
	Object map[string]any // ignored unless Set

	checked bool // Object obeys the rules of a request already
}

// Update is one update request. Apply checks what ParseUpdate or NewUpdate has
// not, so an Update may be built by hand too.
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
	var u Update
	if u.Version, err = versionOf(top["version"]); err != nil {
		return Update{}, err
	}
	if u.ClientToken, err = tokenOf(top["clientToken"]); err != nil {
		return Update{}, err
	}
	state, ok := top["state"]
	if !ok {
		return Update{}, invalid("Missing required node: state")
	}
	if err := u.readState(state); err != nil {
		return Update{}, err
	}
	return u, nil
}

// readState fills in the two patches from the state of a request.
func (u *Update) readState(v any) (err error) {
	if v == nil {
		u.Desired, u.Reported = Patch{Set: true, checked: true}, Patch{Set: true, checked: true}
		return nil
	}
	state, ok := v.(map[string]any)
	if !ok {
		return invalid("State node must be an object")
	}
	for k := range state {
		if k != "desired" && k != "reported" && k != "delta" { // a client's delta is ignored
			return invalid("State contains an invalid node")
		}
	}
	if u.Desired, err = patchOf(state, "desired", "Desired node must be an object"); err != nil {
		return err
	}
	u.Reported, err = patchOf(state, "reported", "Reported node must be an object")
	return err
}

func patchOf(state map[string]any, section, fault string) (Patch, error) {
	v, ok := state[section]
	if !ok {
		return Patch{}, nil
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return Patch{}, invalid(fault)
	}
	if err := checkObject(m, 1); err != nil {
		return Patch{}, err
	}
	return Patch{Set: true, Object: m, checked: true}, nil
}

func versionOf(v any) (*int64, error) {
	if v == nil {
		return nil, nil
	}
	n, ok := integer(v)
	if !ok || n < 1 {
		return nil, invalid("Invalid version")
	}
	return &n, nil
}

func tokenOf(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	s, ok := v.(string)
	if !ok || len(s) > MaxClientTokenBytes {
		return "", invalid("Invalid clientToken")
	}
	return s, nil
}

// integer returns the value of a json.Number that is a plain integer.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	return i, err == nil
}

// checkObject checks the values of m, which are level levels below a section.
func checkObject(m map[string]any, level int) error {
	for _, v := range m {
		if level > MaxDepth {
			return tooDeep()
		}
		if err := checkValue(v, level); err != nil {
			return err
		}
	}
	return nil
}

func checkValue(v any, level int) error {
	switch v := v.(type) {
	case map[string]any:
		return checkObject(v, level+1)
	case []any:
		return checkArray(v, level+1)
	}
	return nil
}

func checkArray(a []any, level int) error {
	for _, v := range a {
		if level > MaxDepth {
			return tooDeep()
		}
		if v == nil || hasNull(v) {
			return invalid("State contains an invalid node")
		}
		if err := checkValue(v, level); err != nil {
			return err
		}
	}
	return nil
}

// hasNull reports whether there is a null anywhere below v.
func hasNull(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, c := range v {
			if c == nil || hasNull(c) {
				return true
			}
		}
	case []any:
		for _, c := range v {
			if c == nil || hasNull(c) {
				return true
			}
		}
	}
	return false
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
	return tokenOf(top["clientToken"])
}

// blank reports whether there is nothing but white space.
func blank(payload []byte) bool { return len(bytes.TrimSpace(payload)) == 0 }

// parseTop reads the object that a request is.
func parseTop(payload []byte) (map[string]any, error) {
	if len(payload) > MaxUpdateBytes {
		return nil, ErrTooLarge
	}
	if !utf8.Valid(payload) {
		return nil, ErrEncoding
	}
	p := parser{s: string(payload)}
	v, err := p.document()
	if err == errNesting {
		return nil, tooDeep()
	}
	top, ok := v.(map[string]any)
	if err != nil || !ok {
		return nil, invalid("Invalid JSON")
	}
	return top, nil
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
	token, _ := tokenOf(top["clientToken"])
	return token
}
