package fleet

import (
	"math"
	"testing"
	"time"

	"github.com/otad/otad/pkg/shadow"
)

// A number counts from the second of the update on, each by its own time.
func TestNumbersCountSinceTheUpdate(t *testing.T) {
	told := time.Unix(1_800_000_000, 0)
	var d shadow.Document
	for at, report := range []map[string]any{
		{"old": 1, "new": 1, "text": "x", "cpu": map[string]any{"temp": 50}},
		{"new": 2},
	} {
		r, err := shadow.Apply(d, shadow.NewUpdate(nil, report), told.Add(time.Duration(at)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		d = r.Document
	}
	none := math.NaN()
	for _, c := range []struct {
		path []string
		from time.Duration // after it was told first
		want float64
	}{
		{[]string{"old"}, -time.Second, 1}, {[]string{"old"}, 0, 1}, {[]string{"old"}, 999 * time.Millisecond, 1}, {[]string{"old"}, time.Second, none},
		{[]string{"new"}, time.Second, 2}, {[]string{"new"}, 2 * time.Second, none},
		{[]string{"cpu", "temp"}, 0, 50}, {[]string{"cpu", "temp"}, time.Second, none},
		{[]string{"cpu", "tmp"}, 0, none}, {[]string{"cpu"}, 0, none}, {[]string{"text"}, 0, none},
	} {
		if got := reported(d, c.path, told.Add(c.from)); got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
			t.Errorf("%v since %s: %g, want %g", c.path, c.from, got, c.want)
		}
	}
}
