package fleet

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/otad/otad/pkg/selector"
)

// MaxShadowPaths is how many values of each shadow one query returns.
const MaxShadowPaths = 16

// ShadowPaths picks values out of classic shadows.
type ShadowPaths []selector.Field

// ParseShadowPaths reads paths such as reported.firmware.version; a key that is
// not one word stands in quotes. The sections themselves are paths too.
func ParseShadowPaths(names []string) (ShadowPaths, error) {
	if len(names) > MaxShadowPaths {
		return nil, fmt.Errorf("%w: %d paths, at most %d", ErrInvalid, len(names), MaxShadowPaths)
	}
	paths := make(ShadowPaths, len(names))
	for i, name := range names {
		f, err := selector.ParseField("shadow." + strings.TrimPrefix(name, "shadow."))
		if err != nil {
			return nil, fmt.Errorf("%w: path %q: begin with reported or desired, such as reported.firmware.version, and put keys that are not one word in quotes", ErrInvalid, name)
		}
		paths[i] = f
	}
	return paths, nil
}

// Values returns what the shadow has at each path as JSON, nil where it has
// nothing.
func (p ShadowPaths) Values(v DeviceView) ([][]byte, error) {
	values := make([][]byte, len(p))
	for i, f := range p {
		section := v.Shadow.Reported
		if f.Source == selector.Desired {
			section = v.Shadow.Desired
		}
		found, ok := at(section, f.Path)
		if !ok {
			continue
		}
		var err error
		if values[i], err = json.Marshal(found); err != nil {
			return nil, fmt.Errorf("shadow of device %s: %w", v.ID, err)
		}
	}
	return values, nil
}

// at follows a path through objects.
func at(m map[string]any, path []string) (any, bool) {
	var v any = m
	for _, k := range path {
		m, _ = v.(map[string]any)
		var ok bool
		if v, ok = m[k]; !ok {
			return nil, false
		}
	}
	return v, len(path) > 0 || len(m) > 0
}
