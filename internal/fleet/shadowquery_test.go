package fleet

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/otad/otad/pkg/shadow"
)

func TestShadowPaths(t *testing.T) {
	reported, err := shadow.NewObject(map[string]any{
		"a": map[string]any{"b": json.Number("1.50"), "c-d": "x"}, "list": []any{true}, "0": false,
	})
	if err != nil {
		t.Fatal(err)
	}
	v := DeviceView{Shadow: shadow.Document{Reported: reported}}
	paths, err := ParseShadowPaths([]string{"reported.a.b", `shadow.reported.a."c-d"`, "reported.a", "reported.list.0", "reported.nope.b", "desired", "reported.0"})
	if err != nil {
		t.Fatal(err)
	}
	values := paths.Values(v)
	for i, want := range []string{"1.50", `"x"`, `{"b":1.50,"c-d":"x"}`, "", "", "", "false"} {
		if string(values[i]) != want {
			t.Errorf("%s: %q, want %q", paths[i], values[i], want)
		}
	}
	for _, bad := range []string{"", "tags.site", "a.b", "reported.a-b", "reported:x OR id", "id"} {
		if _, err := ParseShadowPaths([]string{bad}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "begin with reported or desired") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseShadowPaths(make([]string, MaxShadowPaths+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many: %v", err)
	}
}
