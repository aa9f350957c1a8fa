package embedded

import "strings"

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

// matches reports whether a topic name matches a filter (MQTT 5, 4.7).
func matches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") != strings.HasPrefix(filter, "$") {
		return false // 4.7.2: no leading wildcard matches a topic that starts with $
	}
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, tRest, tMore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fMore || !tMore {
			return fMore == tMore || fRest == "#" // 4.7.1.2: a/# matches a
		}
		filter, topic = fRest, tRest
	}
}

func matchesAny(filters []string, topic string) bool {
	for _, f := range filters {
		if matches(f, topic) {
			return true
		}
	}
	return false
}
