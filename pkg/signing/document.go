package signing

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Caps of metadata files, checked before parsing on device, server and operator
// side alike.
const (
	MaxRootBytes      = 64 << 10
	MaxTimestampBytes = 16 << 10
	MaxSnapshotBytes  = 256 << 10
	MaxTargetsBytes   = 1 << 20
	// MaxDepth is how deep objects and arrays may nest in a signed document.
	MaxDepth = 32
	// MaxVersion is the highest version of a document: what every JSON reader
	// keeps exact.
	MaxVersion = 1 << 53
)

// issuedField is our own signed field: when the document was made, RFC 3339 in
// UTC. TUF documents carry only their end of life, which no clock floor can be
// made of.
const issuedField = "x-otad-issued"

// header is what the four kinds of documents have in common.
type header struct {
	role    string
	spec    string
	version int64
	expires time.Time
	extra   map[string]any // unrecognised, but signed, fields
}

func headerOf[T metadata.Roles](m *metadata.Metadata[T]) header {
	switch s := any(&m.Signed).(type) {
	case *metadata.RootType:
		return header{s.Type, s.SpecVersion, s.Version, s.Expires, s.UnrecognizedFields}
	case *metadata.TimestampType:
		return header{s.Type, s.SpecVersion, s.Version, s.Expires, s.UnrecognizedFields}
	case *metadata.SnapshotType:
		return header{s.Type, s.SpecVersion, s.Version, s.Expires, s.UnrecognizedFields}
	case *metadata.TargetsType:
		return header{s.Type, s.SpecVersion, s.Version, s.Expires, s.UnrecognizedFields}
	}
	return header{}
}

// issued returns the date of issue, zero when the document carries none.
func (h header) issued() (time.Time, error) {
	v, ok := h.extra[issuedField]
	if !ok {
		return time.Time{}, nil
	}
	text, _ := v.(string)
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.After(h.expires) {
		return time.Time{}, fmt.Errorf("%w %s: %s %.40q is no date before its expiry", ErrFormat, h.role, issuedField, text)
	}
	return at, nil
}

// kindOf returns the role and the cap of a kind of document.
func kindOf[T metadata.Roles]() (role string, limit int) {
	switch any(new(T)).(type) {
	case *metadata.RootType:
		return RoleRoot, MaxRootBytes
	case *metadata.TimestampType:
		return RoleTimestamp, MaxTimestampBytes
	case *metadata.SnapshotType:
		return RoleSnapshot, MaxSnapshotBytes
	}
	return RoleTargets, MaxTargetsBytes
}

// decode reads one document and checks everything but its signatures, versions
// and dates: cap, strict JSON, kind, the rules of checkBody, and that it reads
// exactly as it was signed. It fails with ErrTooLarge or ErrFormat.
func decode[T metadata.Roles](b []byte) (*metadata.Metadata[T], error) {
	if err := checkSize[T](b); err != nil {
		return nil, err
	}
	m := new(metadata.Metadata[T])
	err := guard(func() error {
		if err := checkJSON(b); err != nil {
			return err
		}
		if _, err := m.FromBytes(b); err != nil {
			return err
		}
		if err := checkHeader(headerOf(m)); err != nil {
			return err
		}
		if err := checkBody(m); err != nil {
			return err
		}
		return checkFaithful(b, m)
	})
	if err != nil {
		role, _ := kindOf[T]()
		return nil, fmt.Errorf("%s metadata: %w", role, translate(err))
	}
	return m, nil
}

func checkSize[T metadata.Roles](b []byte) error {
	role, limit := kindOf[T]()
	if len(b) > limit {
		return fmt.Errorf("%s metadata of %d bytes is %w: at most %d", role, len(b), ErrTooLarge, limit)
	}
	return nil
}

// encode writes a document in its shortest form and reads it back, so that
// nothing leaves that a client would refuse.
func encode[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	b, err := m.ToBytes(false)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	if _, err := decode[T](b); err != nil {
		return nil, err
	}
	return b, nil
}

// checkFaithful refuses a document that go-tuf reads otherwise than it is
// written. Signatures are checked over what was read, so without this an
// unsigned change in the text (the case of a field name, an extra field beside
// "signed", the case of hex digits) would pass.
func checkFaithful[T metadata.Roles](b []byte, m *metadata.Metadata[T]) error {
	if len(m.UnrecognizedFields) != 0 {
		return fmt.Errorf("%w: only \"signed\" and \"signatures\" may stand at the top", ErrFormat)
	}
	for _, s := range m.Signatures {
		if len(s.UnrecognizedFields) != 0 {
			return fmt.Errorf("%w: a signature has only \"keyid\" and \"sig\"", ErrFormat)
		}
	}
	written, err := cjson.EncodeCanonical(json.RawMessage(b))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	read, err := cjson.EncodeCanonical(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if !bytes.Equal(written, read) {
		return fmt.Errorf("%w: fields that are missing, misspelt or not in their exact form", ErrFormat)
	}
	return nil
}

// checkJSON refuses what encoding/json lets pass: duplicate keys, deep nesting,
// bytes that are no UTF-8, anything after the value.
func checkJSON(b []byte) error {
	if !utf8.Valid(b) {
		return fmt.Errorf("%w: not UTF-8", ErrFormat)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := checkValue(d, 0); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(bytes.TrimRight(b, " \t\r\n"))) {
		return fmt.Errorf("%w: bytes after the document", ErrFormat)
	}
	return nil
}

func checkValue(d *json.Decoder, depth int) error {
	tok, err := d.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	open, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if depth == MaxDepth {
		return fmt.Errorf("%w: nested deeper than %d", ErrFormat, MaxDepth)
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			if err := checkName(d, seen); err != nil {
				return err
			}
		}
		if err := checkValue(d, depth+1); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

func checkName(d *json.Decoder, seen map[string]bool) error {
	tok, err := d.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	name, _ := tok.(string)
	if seen[name] {
		return fmt.Errorf("%w: duplicate key %.60q", ErrFormat, name)
	}
	seen[name] = true
	return nil
}

func checkHeader(h header) error {
	if !strings.HasPrefix(h.spec, "1.") {
		return fmt.Errorf("%w: spec_version %.20q, 1.x is understood", ErrFormat, h.spec)
	}
	if h.version < 1 || h.version > MaxVersion {
		return fmt.Errorf("%w: version %d, from 1 to %d", ErrFormat, h.version, int64(MaxVersion))
	}
	_, err := h.issued()
	return err
}

// sign adds the signature of one key, in place of an older one of that key.
func sign[T metadata.Roles](m *metadata.Metadata[T], s Signer) error {
	if s == nil || s.Public().isZero() {
		return fmt.Errorf("%w signer: no key", ErrInvalid)
	}
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	sig, err := s.Sign(payload)
	if err != nil {
		return fmt.Errorf("sign %s metadata: %w", headerOf(m).role, err)
	}
	id := s.Public().ID()
	if !s.Public().verify(payload, sig) {
		return fmt.Errorf("%w: signer %s gives wrong signatures", ErrSignature, id)
	}
	m.Signatures = slices.DeleteFunc(m.Signatures, func(o metadata.Signature) bool { return o.KeyID == id })
	m.Signatures = append(m.Signatures, metadata.Signature{KeyID: id, Signature: sig})
	slices.SortFunc(m.Signatures, func(a, b metadata.Signature) int { return strings.Compare(a.KeyID, b.KeyID) })
	return nil
}

// verify checks m's signatures against a role of root.
func verify[T metadata.Roles](root *metadata.Metadata[metadata.RootType], m *metadata.Metadata[T]) error {
	role, _ := kindOf[T]()
	return guard(func() error { return translate(root.VerifyDelegate(role, m)) })
}

// next returns the version after v.
func next(v int64) (int64, error) {
	if v >= MaxVersion {
		return 0, fmt.Errorf("%w: version %d is the last: rotate the keys and start again", ErrInvalid, v)
	}
	return v + 1, nil
}

// date is a time as metadata writes it: whole seconds, UTC.
func date(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
