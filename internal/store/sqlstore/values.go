package sqlstore

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// row is what a reading function scans: *sql.Row, *sql.Rows or a row of tx.
type row interface{ Scan(dest ...any) error }

// micros is a time as an argument: microseconds since 1970, nil for none.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// stored is a time as the store keeps it.
func stored(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// timeInto scans what micros wrote.
type timeInto struct{ t *time.Time }

func (s timeInto) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*s.t = time.Time{}
	case int64:
		*s.t = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("time of type %T", v)
	}
	return nil
}

// orNull is a text as an argument: nil for none.
func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// textInto scans what orNull wrote.
type textInto struct{ s *string }

func (s textInto) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*s.s = ""
	case string:
		*s.s = v
	case []byte:
		*s.s = string(v)
	default:
		return fmt.Errorf("text of type %T", v)
	}
	return nil
}

// durationInto scans microseconds.
type durationInto struct{ d *time.Duration }

func (s durationInto) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("duration of type %T", v)
	}
	*s.d = time.Duration(n) * time.Microsecond
	return nil
}

// jsonInto scans JSON text into a pointer.
type jsonInto struct{ v any }

func (s jsonInto) Scan(v any) error {
	switch v := v.(type) {
	case string:
		return json.Unmarshal([]byte(v), s.v)
	case []byte:
		return json.Unmarshal(v, s.v)
	}
	return fmt.Errorf("JSON text of type %T", v)
}

// mapInto scans a map of strings; an empty one is nil.
type mapInto struct{ m *map[string]string }

func (s mapInto) Scan(v any) error {
	*s.m = nil
	if v == emptyMap {
		return nil
	}
	return jsonInto{s.m}.Scan(v)
}

const emptyMap = "{}"

func mapText(m map[string]string) (string, error) {
	if len(m) == 0 {
		return emptyMap, nil
	}
	return jsonText(m)
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// hashInto scans the hexadecimal text of a sha256 sum.
type hashInto struct{ h *[32]byte }

func (s hashInto) Scan(v any) error {
	text, ok := v.(string)
	if !ok || len(text) != hex.EncodedLen(len(s.h)) {
		return fmt.Errorf("hash of type %T", v)
	}
	_, err := hex.Decode(s.h[:], []byte(text))
	return err
}

func hashText(h [32]byte) string { return hex.EncodeToString(h[:]) }
