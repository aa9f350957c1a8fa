package sqlstore

import (
	"strings"
	"testing"
)

func TestOpaque(t *testing.T) {
	for document, want := range map[string]int64{
		``: 0, `{}`: 0, `{"a":true,"b":1.5e10,"c":1e999,"d":-0E-12}`: 0,
		`{"a":"1e9999","b":"3e12345 \"1e99999"}`: 0, `{"1e9999":1}`: 0, `{"a\"1e9999":1}`: 0,
		`{"a":1e1000}`: 1, `{"a":[1E+9999]}`: 1, `{"a":1.5e-0001}`: 1, `{"a":"x\\","b":1e99999}`: 1,
		`{"a":"x\u0000"}`: 1, `{"\u0000":1}`: 1, `{"a":"\u0001"}`: 0,
		`{"a":` + strings.Repeat("9", maxDigits) + `}`: 0, `{"a":` + strings.Repeat("9", maxDigits+1) + `}`: 1, `{"a":0.` + strings.Repeat("9", maxDigits) + `e5}`: 1,
		`{"a":12e`: 0, `{"a":12e+`: 0, `5`: 0, `{"a":[1,2.5,3]}`: 0, `{"a":true,"e9999":false}`: 0,
		`{"a":"unfinished 1e9999`: 0, `{"a":"unfinished\`: 0,
	} {
		if got := opaque(document); got != want {
			t.Errorf("%s: %d, want %d", document, got, want)
		}
	}
}
