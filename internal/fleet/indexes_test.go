package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseIndexes(t *testing.T) {
	list, err := ParseIndexes([]string{"tags.site", `shadow.reported.a."b-c"`, `tags."site"`})
	if err != nil || len(list) != 2 || list[1].String() != "shadow.reported.a.b-c" {
		t.Fatalf("%v %v", list, err)
	}
	many := make([]string, MaxIndexes+1)
	for i := range many {
		many[i] = fmt.Sprint("tags.t", i)
	}
	if _, err := ParseIndexes(many[1:]); err != nil {
		t.Error(err)
	}
	deep := "shadow.desired" + strings.Repeat(".x", MaxIndexDepth)
	if _, err := ParseIndexes([]string{deep, "tags." + strings.Repeat("k", maxFieldKey)}); err != nil {
		t.Error(err)
	}
	for words, names := range map[string][]string{
		"17 indexed fields, at most 16": many,
		"no field color":                {"color"},
		"only tags and values":          {"hardware"},
		"name a key of it":              {"shadow.reported"},
		"9 keys deep, at most 8":        {deep + ".x"},
		"letters, digits, - and _":      {`tags."it's"`},
		`has other characters`:          {`shadow.reported."?"`},
		"or more than 64":               {"tags." + strings.Repeat("k", maxFieldKey+1)},
	} {
		if _, err := ParseIndexes(names); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%.40q: %v, want %q", names, err, words)
		}
	}
}
