package fleet

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of what a store keeps for the embedded broker.
const (
	MaxStateKeyBytes   = 512
	MaxStateValueBytes = 512 << 10
)

// ValidState says whether a store can keep these values for the broker: keys
// are text of 1 to MaxStateKeyBytes bytes without a zero byte, values at most
// MaxStateValueBytes long. Otherwise it is ErrInvalid.
func ValidState(set map[string][]byte) error {
	for key, value := range set {
		if key == "" || len(key) > MaxStateKeyBytes || !utf8.ValidString(key) || strings.Contains(key, "\x00") {
			return fmt.Errorf("%w: broker state key %.64q: want 1 to %d bytes of UTF-8 without a zero byte", ErrInvalid, key, MaxStateKeyBytes)
		}
		if len(value) > MaxStateValueBytes {
			return fmt.Errorf("%w: broker state %.64q has %d bytes, at most %d: split it over several keys", ErrInvalid, key, len(value), MaxStateValueBytes)
		}
	}
	return nil
}
