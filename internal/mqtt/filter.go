package mqtt

import "strings"

// Matches reports whether a topic name matches a filter (MQTT 5, 4.7).
func Matches(filter, topic string) bool {
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
