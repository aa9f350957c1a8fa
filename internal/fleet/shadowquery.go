package fleet

import (
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
func (p ShadowPaths) Values(v DeviceView) [][]byte {
	values := make([][]byte, len(p))
	for i, f := range p {
		section := v.Shadow.Reported
		if f.Source == selector.Desired {
			section = v.Shadow.Desired
		}
		if found, ok := section.At(f.Path...); ok {
			values[i] = found.JSON()
		}
	}
	return values
}
