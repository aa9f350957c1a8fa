package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

func TestSameDigest(t *testing.T) {
	document := func(digest string) shadow.Document {
		if digest == "" {
			return shadow.Document{}
		}
		u, err := shadow.ParseUpdate([]byte(`{"state":{"reported":{"firmware":{"name":"gw","digest":` + digest + `}}}}`))
		if err != nil {
			t.Fatal(err)
		}
		r, err := shadow.Apply(shadow.Document{}, u, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		return r.Document
	}
	a, b := `"`+strings.Repeat("a", 64)+`"`, `"`+strings.Repeat("b", 64)+`"`
	for _, c := range []struct {
		before, after string
		want          bool
	}{
		{a, a, true}, {a, b, false}, {"", a, false}, {a, "", false}, {"", "", true},
		{a, `"none"`, false}, {`"none"`, `"other"`, true}, {`1`, `"none"`, true}, {`1`, b, false},
	} {
		if got := fleet.SameDigest(document(c.before), document(c.after)); got != c.want {
			t.Errorf("%s and %s: %v", c.before, c.after, got)
		}
	}
}
