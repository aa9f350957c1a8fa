package mqtt

import "strings"

// The topics that devices send to, in the shape of AWS IoT (device-protocol.md).
// Two wildcards instead of '#' keep the server's own answers out.
var Filters = []string{
	"$aws/things/+/shadow/get", "$aws/things/+/shadow/update", "$aws/things/+/shadow/delete",
	"$aws/things/+/shadow/name/+/get", "$aws/things/+/shadow/name/+/update", "$aws/things/+/shadow/name/+/delete",
	"$aws/things/+/jobs/get", "$aws/things/+/jobs/start-next",
	"$aws/things/+/jobs/+/get", "$aws/things/+/jobs/+/update",
	"$aws/things/+/streams/+/describe/+", "$aws/things/+/streams/+/get/+",
	"ota/+/presence", "ota/+/events",
}

// ProvisioningFilters are the topics of fleet provisioning. They carry no device:
// only a broker that tells who sent a message, and answers nobody else, may have
// them served.
var ProvisioningFilters = []string{
	"$aws/certificates/create/+", "$aws/certificates/create-from-csr/+", "$aws/provisioning-templates/+/provision/+",
}

const thingsPrefix = "$aws/things/"

func jobsPrefix(deviceID string) string { return thingsPrefix + deviceID + "/jobs/" }

func streamPrefix(deviceID, stream string) string {
	return thingsPrefix + deviceID + "/streams/" + stream + "/"
}

func shadowPrefix(deviceID, name string) string {
	if name == "" {
		return thingsPrefix + deviceID + "/shadow/"
	}
	return thingsPrefix + deviceID + "/shadow/name/" + name + "/"
}

// request is a device topic, taken apart.
type request struct {
	device string
	kind   kind
	op     string // get, update, delete, start-next, describe; "" under ota/
	name   string // shadow name, job id, stream id or provisioning template
	format string // of a stream or of provisioning: json or cbor
}

type kind int

const (
	kindShadow kind = iota
	kindJobs        // of the device: get, start-next
	kindJob         // one job: get, update
	kindPresence
	kindStream
	kindEvents
	kindProvision // of a claim, not of a device
)

// parseTopic reads a topic that matched one of the Filters.
func parseTopic(topic string) (request, bool) {
	l := strings.Split(topic, "/")
	switch {
	case len(l) == 3 && l[0] == "ota" && l[2] == "presence":
		return request{device: l[1], kind: kindPresence}, true
	case len(l) == 3 && l[0] == "ota" && l[2] == "events":
		return request{device: l[1], kind: kindEvents}, true
	case provisioningCall(topic):
		return request{kind: kindProvision, name: l[2], op: l[len(l)-2], format: l[len(l)-1]}, true
	case len(l) < 5 || l[0] != "$aws" || l[1] != "things":
		return request{}, false
	case len(l) == 5 && l[3] == "shadow":
		return request{device: l[2], kind: kindShadow, op: l[4]}, shadowOps[l[4]]
	case len(l) == 7 && l[3] == "shadow" && l[4] == "name":
		return request{device: l[2], kind: kindShadow, name: l[5], op: l[6]}, shadowOps[l[6]] && l[5] != ""
	case len(l) == 7 && l[3] == "streams":
		return request{device: l[2], kind: kindStream, name: l[4], op: l[5], format: l[6]},
			(l[5] == "describe" || l[5] == "get") && wireFormats[l[6]].name != ""
	case len(l) == 5 && l[3] == "jobs":
		return request{device: l[2], kind: kindJobs, op: l[4]}, l[4] == "get" || l[4] == "start-next"
	case len(l) == 6 && l[3] == "jobs":
		return request{device: l[2], kind: kindJob, name: l[4], op: l[5]}, l[5] == "get" || l[5] == "update"
	}
	return request{}, false
}

var shadowOps = map[string]bool{"get": true, "update": true, "delete": true}
