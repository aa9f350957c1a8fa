package mqtt

import "strconv"

// MaxCompanions is how many connections a device may have beside its own.
const MaxCompanions = 4

// CompanionIDs are the client ids of a device's companions: connections with the
// device's credentials and its topics beside its own connection, for a tool that
// looks on or a second program. A device id has no slash, so they are no other
// device's; and as they are so few, a device can not fill the broker with
// sessions. Presence is told of the device's own connection only.
func CompanionIDs(deviceID string) []string {
	ids := make([]string, MaxCompanions)
	for i := range ids {
		ids[i] = deviceID + "/" + strconv.Itoa(i+1)
	}
	return ids
}
