package embedded

import (
	"strings"

	"github.com/otad/otad/internal/mqtt"
)

// owns reports whether topic, a topic name or a filter, lies under the device's
// own prefixes. It compares bytes: a wildcard or $share in the leading levels
// is simply not the prefix.
func owns(deviceID, topic string) bool {
	rest, ok := strings.CutPrefix(topic, "$aws/things/"+deviceID+"/")
	if !ok {
		rest, ok = strings.CutPrefix(topic, "ota/"+deviceID+"/")
	}
	return ok && rest != "" && strings.Count(topic, "/") < MaxTopicLevels
}

func matchesAny(filters []string, topic string) bool {
	for _, f := range filters {
		if mqtt.Matches(f, topic) {
			return true
		}
	}
	return false
}
